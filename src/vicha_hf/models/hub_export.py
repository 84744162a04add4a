"""Model folders that load where this package is not installed: the custom code travels, and `auto_map` names it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import cached_file, logging


logger = logging.get_logger(__name__)
_MARK = "# All code that was saved with this file: sha256 "

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


# The pipelines of every folder, and the head that each needs; None where the bare model serves.
PIPELINES = {
    "zero-shot-image-classification": ("pipeline_finding.ZeroShotPipeline", None),
    "image-feature-extraction": ("pipeline_finding.ImageFeaturePipeline", None),
    "feature-extraction": ("pipeline_finding.TextFeaturePipeline", None),
    "image-text-retrieval": ("pipeline_finding.ImageTextRetrievalPipeline", "ForRetrieval"),
    "visual-grounding": ("pipeline_finding.VisualGroundingPipeline", "ForGrounding"),
    "visual-question-answering": ("pipeline_answering.VisualQuestionAnsweringPipeline", "ForVQA"),
    "visual-entailment": ("pipeline_answering.VisualEntailmentPipeline", "ForVisualEntailment"),
    "visual-reasoning": ("pipeline_answering.VisualReasoningPipeline", "ForVisualReasoning"),
}

# What sentence-transformers reads: its own module around AutoModel, and the method that embeds each kind of input.
_EMBEDDING = {"method_output_name": "pooler_output"}
SENTENCE_TRANSFORMERS_FILES = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
    ],
    "sentence_bert_config.json": {
        "transformer_task": "feature-extraction",
        "modality_config": {
            "text": {"method": "get_text_features"} | _EMBEDDING,
            "image": {"method": "get_image_features"} | _EMBEDDING,
        },
        "module_output_name": "sentence_embedding",
    },
    "config_sentence_transformers.json": {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"},
}


class HubExportMixin:
    """
    Makes `save_pretrained`, and with it `push_to_hub`, write the custom code and the family's whole `auto_map`, and for
    models with a joint space the files of sentence-transformers.

    transformers on its own writes only the class that was saved, so a folder saved from one head could not be loaded
    by `AutoModel`. To be mixed in before `PreTrainedModel`.

    Attributes:
        companion_files: names of files beside the weights that inference needs too.
    """

    companion_files: tuple[str, ...] = ()

    def save_pretrained(self, save_directory: str | Path, is_main_process: bool = True, **kwargs) -> None:
        """
        Saves as `PreTrainedModel.save_pretrained` does; afterwards the folder loads with `trust_remote_code=True`
        anywhere.
        """
        if self.should_save_on_this_rank(is_main_process):
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            self.config.auto_map = export_code(self.config.model_type, save_directory)
            self.config.custom_pipelines = export_pipelines(self.config.model_type, save_directory)
            mark_code(self.config.auto_map, self.config.custom_pipelines, save_directory)
            if getattr(self.base_model, "vision_projection", None) is not None:
                export_sentence_embedding(save_directory)
            self._copy_companions(save_directory)
        try:
            return super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        finally:
            # They belong into the folder: in memory they would have transformers ask for trust in code that runs already.
            vars(self.config).pop("custom_pipelines", None)

    def warn_before_upload(self) -> None:
        """Warns of what others would miss in this model's folder; a part that names such things says so here."""

    def _copy_companions(self, save_directory) -> None:
        """Takes small files along that inference needs, from where the model was loaded; those that are there stay."""
        for name in self.companion_files:
            source = find_companion(self.name_or_path, name)
            target = Path(save_directory) / name
            if source is not None and not target.exists():
                target.write_bytes(source.read_bytes())


def find_companion(folder: str, name: str) -> Path | None:
    """A file beside a model in its folder, or in the cache of its Hub id; None without."""
    if not folder:
        return None
    if Path(folder).is_dir():
        return Path(folder) / name if (Path(folder) / name).is_file() else None
    try:
        found = cached_file(folder, name, local_files_only=True, _raise_exceptions_for_missing_entries=False)
    except OSError:
        # The folder that the model came from is gone.
        return None
    return found and Path(found)


def export_code(model_type: str, save_directory) -> dict[str, str]:
    """Copies the files that define a family's Auto classes, and all that they import, flat into a folder.

    Args:
        model_type: a key of `AUTO_CLASSES`.
        save_directory: an existing folder.

    Returns:
        The `auto_map` that belongs into the folder's `config.json`.
    """
    return {
        auto_class: reference
        for auto_class, reference in AUTO_CLASSES[model_type].items()
        if _copy_code(reference, save_directory)
    }


def export_pipelines(model_type: str, save_directory) -> dict[str, dict]:
    """Copies the files of the pipelines into a folder.

    Args:
        model_type: a key of `AUTO_CLASSES`.
        save_directory: an existing folder.

    Returns:
        The `custom_pipelines` of the folder's `config.json`: for each task its pipeline and the Auto class that loads
        its model. `head` is the class that the pipeline exchanges this bare model for, where it needs one.
    """
    bare = AUTO_CLASSES[model_type]["AutoModel"]
    pipelines = {}
    for task, (reference, suffix) in PIPELINES.items():
        if _copy_code(reference, save_directory):
            pipelines[task] = {"impl": reference, "pt": ["AutoModel"], "type": "multimodal"}
            if suffix is not None:
                pipelines[task]["head"] = bare.removesuffix("Model") + suffix
    return pipelines


def export_sentence_embedding(save_directory) -> None:
    """Writes the files with which `SentenceTransformer(folder)` embeds images and texts into the joint space."""
    for name, content in SENTENCE_TRANSFORMERS_FILES.items():
        (Path(save_directory) / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def mark_code(auto_map: Mapping[str, str], pipelines: Mapping[str, Mapping], save_directory) -> None:
    """
    Ends the configuration's file with a hash of all code that was exported with it.

    transformers keeps a configuration's class by its file alone, and finds the model's class by the configuration's. A
    second folder with other modeling code and the same configuration would run the first folder's code.

    Args:
        auto_map, pipelines: what `export_code` and `export_pipelines` returned.
        save_directory: the folder that they wrote to.
    """
    folder = Path(save_directory)
    references = [*auto_map.values(), *(entry["impl"] for entry in pipelines.values())]
    sources = {folder / f"{reference.split('.')[0]}.py" for reference in references}
    files = {path for source in sources for path in (source, *map(Path, get_relative_import_files(source)))}
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    configuration = folder / f"{auto_map['AutoConfig'].split('.')[0]}.py"
    with configuration.open("a", encoding="utf-8") as file:
        file.write(f"{_MARK}{digest.hexdigest()}\n")


def _copy_code(reference: str, save_directory) -> bool:
    """Copies the file that defines a class, and all that it imports; false where it is not there."""
    source = Path(__file__).parent / f"{reference.split('.')[0]}.py"
    if not source.is_file():
        # In code that came from the Hub only what the loaded class imports is there.
        logger.warning(f"{source.name} is not beside {Path(__file__).name}: {reference} is left out of the folder")
        return False
    for file in [source, *map(Path, get_relative_import_files(source))]:
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = "".join(line for line in lines if not line.startswith(_MARK))
        (Path(save_directory) / file.name).write_text(kept, encoding="utf-8")
    return True


__all__ = [
    "AUTO_CLASSES",
    "PIPELINES",
    "SENTENCE_TRANSFORMERS_FILES",
    "HubExportMixin",
    "export_code",
    "export_pipelines",
    "export_sentence_embedding",
    "mark_code",
]
