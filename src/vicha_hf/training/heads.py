"""Which class serves a task: one table for every family, so that no script has a switch between families."""

from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ProcessorMixin

from ..models.image_processing_vicha import ViChaImageProcessor
from ..models.modeling_vicha import ViChaForRetrieval
from ..models.modeling_vicha_entailment import ViChaForVisualEntailment
from ..models.modeling_vicha_grounding import ViChaForGrounding
from ..models.modeling_vicha_reasoning import ViChaForTextAssignment, ViChaForVisualReasoning
from ..models.modeling_vicha_vqa import ViChaForVQA
from ..models.processing_vicha import ViChaProcessor


# Task -> `model_type` of a folder's configuration -> class.
HEADS: dict[str, dict[str, type[PreTrainedModel]]] = {
    "retrieval": {"vicha": ViChaForRetrieval},
    "vqa": {"vicha": ViChaForVQA},
    "entailment": {"vicha": ViChaForVisualEntailment},
    "reasoning": {"vicha": ViChaForVisualReasoning},
    "text-assignment": {"vicha": ViChaForTextAssignment},
    "grounding": {"vicha": ViChaForGrounding},
}

# `model_type` -> image processor and processor, for models that come without theirs.
PROCESSORS: dict[str, tuple[type[BaseImageProcessor], type[ProcessorMixin]]] = {
    "vicha": (ViChaImageProcessor, ViChaProcessor),
}


def head_class(task: str, model_type: str) -> type[PreTrainedModel]:
    """The class that serves `task` in the family `model_type`. Raises a `ValueError` that lists what there is."""
    if task not in HEADS:
        raise ValueError(f"task={task!r} is not known; choose one of {', '.join(HEADS)}.")
    if model_type not in HEADS[task]:
        raise ValueError(
            f"model_type={model_type!r} has no head for {task}; the families that have one: {', '.join(HEADS[task])}."
        )
    return HEADS[task][model_type]


def load_finetuned(task: str, folder: str, config: PreTrainedConfig | None = None) -> PreTrainedModel:
    """
    A model that has been trained for `task`, in evaluation mode.

    Args:
        task: a key of `HEADS`.
        folder: folder or Hub id; its configuration says which family it is.
        config: the folder's configuration, where it has been read already.

    Raises:
        ValueError: unknown task or family, or a folder that lacks weights of the head, by name: random ones answer at
            random.
    """
    config = AutoConfig.from_pretrained(folder) if config is None else config
    model, info = head_class(task, config.model_type).from_pretrained(folder, config=config, output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"{folder} is not fine-tuned for {task}: it has no {missing[0]} ({len(missing)} weights are missing). "
            "Give a folder that the task's fine-tuning script wrote."
        )
    return model.eval()
