"""Model folders that load where this package is not installed: the custom code travels, and `auto_map` names it."""

import shutil
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import logging


logger = logging.get_logger(__name__)

# For every `model_type`, the Auto classes that can load any of its folders, whichever head was saved: weights that a
# class does not have are left aside, those that it adds start anew. The package registers the same table.
AUTO_CLASSES = {
    "vicha": {
        "AutoConfig": "configuration_vicha.ViChaConfig",
        "AutoModel": "modeling_vicha.ViChaModel",
        "AutoModelForPreTraining": "modeling_vicha.ViChaForPreTraining",
        "AutoModelForVisualQuestionAnswering": "modeling_vicha.ViChaForVQA",
        "AutoModelForZeroShotImageClassification": "modeling_vicha.ViChaModel",
    },
    "simla": {
        "AutoConfig": "configuration_simla.SimlaConfig",
        "AutoModel": "modeling_simla.SimlaModel",
        "AutoModelForPreTraining": "modeling_simla.SimlaForPreTraining",
        "AutoModelForVisualQuestionAnswering": "modeling_simla.SimlaForVQA",
        "AutoModelForZeroShotImageClassification": "modeling_simla.SimlaModel",
    },
}


class HubExportMixin:
    """Makes `save_pretrained`, and with it `push_to_hub`, write the custom code and the family's whole `auto_map`.

    transformers on its own writes only the class that was saved, so a folder saved from one head could not be loaded
    by `AutoModel`. To be mixed in before `PreTrainedModel`.
    """

    def save_pretrained(self, save_directory, is_main_process: bool = True, **kwargs):
        """
        Saves as `PreTrainedModel.save_pretrained` does; afterwards the folder loads with `trust_remote_code=True`
        anywhere.
        """
        if self.should_save_on_this_rank(is_main_process):
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            self.config.auto_map = export_code(self.config.model_type, save_directory)
        return super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)


def export_code(model_type: str, save_directory) -> dict[str, str]:
    """Copies the files that define a family's Auto classes, and all that they import, flat into a folder.

    Args:
        model_type: a key of `AUTO_CLASSES`.
        save_directory: an existing folder.

    Returns:
        The `auto_map` that belongs into the folder's `config.json`.
    """
    here, auto_map = Path(__file__).parent, {}
    for auto_class, reference in AUTO_CLASSES[model_type].items():
        source = here / f"{reference.split('.')[0]}.py"
        if not source.is_file():
            # In code that came from the Hub only what the loaded class imports is there.
            logger.warning(
                f"{source.name} is not beside {Path(__file__).name}: {auto_class} is left out of the folder"
            )
            continue
        for file in [source, *map(Path, get_relative_import_files(source))]:
            shutil.copyfile(file, Path(save_directory) / file.name)
        auto_map[auto_class] = reference
    return auto_map


__all__ = ["AUTO_CLASSES", "HubExportMixin", "export_code"]
