"""
Registry of the class that serves a task, one table for every family, so that no script has a switch between families.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants
from transformers import AutoConfig, AutoProcessor, PreTrainedConfig, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ProcessorMixin
from transformers.utils import logging as transformers_logging

from .arguments import one_line
from .models import encoder_image_pair, task_question_answering
from .models.image_processing_simla import SimlaImageProcessor
from .models.image_processing_vicha import ViChaImageProcessor
from .models.modeling_simla import (
    SimlaForGrounding,
    SimlaForPreTraining,
    SimlaForRetrieval,
    SimlaForTextAssignment,
    SimlaForVisualEntailment,
    SimlaForVisualReasoning,
    SimlaForVQA,
)
from .models.modeling_vicha import (
    ViChaForGrounding,
    ViChaForPreTraining,
    ViChaForRetrieval,
    ViChaForTextAssignment,
    ViChaForVisualEntailment,
    ViChaForVisualReasoning,
    ViChaForVQA,
)
from .models.pretrained_encoders import require_loaded_encoders
from .models.processing_simla import SimlaProcessor
from .models.processing_vicha import ViChaProcessor
from .models.processing_vision_text import VisionTextProcessor
from .onnx_backend.loading import choose_backend, load_onnx
from .onnx_backend.sessions import OnnxModel
from .weight_files import require_weights_of_folder


logger = logging.getLogger(__name__)

# The longest wait for the Hub's answer whether it has a model.
HUB_SECONDS = 10.0

# Of a run's output: the last weights, ready for `from_pretrained`.
MODEL_FOLDER = "model"
# Of a run that evaluated: the weights of the best evaluation.
BEST_MODEL_FOLDER = "best_model"

# What `vicha-hf evaluate` knows; text assignment is a pretraining for reasoning.
EVALUATED_TASKS = ("retrieval", "vqa", "entailment", "reasoning", "grounding")

# Modules that say how they start weights which a folder lacks.
_STARTS = (task_question_answering.__name__, encoder_image_pair.__name__)

# `model_type` of a folder's configuration -> task -> class.
HEADS: dict[str, dict[str, type[PreTrainedModel]]] = {
    "vicha": {
        "pretraining": ViChaForPreTraining,
        "retrieval": ViChaForRetrieval,
        "vqa": ViChaForVQA,
        "entailment": ViChaForVisualEntailment,
        "grounding": ViChaForGrounding,
        "reasoning": ViChaForVisualReasoning,
        "text-assignment": ViChaForTextAssignment,
    },
    "simla": {
        "pretraining": SimlaForPreTraining,
        "retrieval": SimlaForRetrieval,
        "vqa": SimlaForVQA,
        "entailment": SimlaForVisualEntailment,
        "grounding": SimlaForGrounding,
        "reasoning": SimlaForVisualReasoning,
        "text-assignment": SimlaForTextAssignment,
    },
}

# `model_type` -> image processor and processor, for models that come without theirs.
PROCESSORS: dict[str, tuple[type[BaseImageProcessor], type[VisionTextProcessor]]] = {
    "vicha": (ViChaImageProcessor, ViChaProcessor),
    "simla": (SimlaImageProcessor, SimlaProcessor),
}


def read_for_task(processor: VisionTextProcessor, task: str, num_positions: int) -> None:
    """
    Makes a processor read texts as the published code of a task does. Questions are cleaned less than captions, and
    reasoning's statements are not cut. A processor that does not clean goes on so.

    Args:
        processor: of a model for the task.
        task: one of the family's in `HEADS`.
        num_positions: of the model's text encoder.
    """
    if processor.text_cleaning is not None:
        processor.text_cleaning = "question" if task == "vqa" else "caption"
    if task == "reasoning":
        processor.max_words, processor.max_text_length = None, num_positions


def head_class(model_type: str, task: str) -> type[PreTrainedModel]:
    """The class that serves `task` in a family. Raises a `ValueError` that lists what there is."""
    if model_type not in HEADS:
        raise ValueError(f"model_type={model_type!r} is not a family of this library; there are {', '.join(HEADS)}.")
    if task not in HEADS[model_type]:
        raise ValueError(f"{model_type} has no head for task={task!r}; choose one of {', '.join(HEADS[model_type])}.")
    return HEADS[model_type][task]


def trained_task(model: PreTrainedModel) -> str:
    """The task, a key of [`HEADS`], whose class a model is of; the nearest, for one head may be made of another."""
    tasks = {head: task for task, head in HEADS[model.config.model_type].items()}
    return next(tasks[parent] for parent in type(model).__mro__ if parent in tasks)


def task_of(model: PreTrainedModel) -> str | None:
    """The task that a model is evaluated on; a pretraining model is one for retrieval. None for text assignment."""
    for heads in HEADS.values():
        for task, head in heads.items():
            if type(model) is head:
                task = "retrieval" if task == "pretraining" else task
                return task if task in EVALUATED_TASKS else None
    return None


def task_of_config(config: PreTrainedConfig) -> str | None:
    """The task that a folder's configuration is evaluated on, by the head that it names; as [`task_of`]."""
    for heads in HEADS.values():
        for task, head in heads.items():
            if head.__name__ in (config.architectures or ()):
                task = "retrieval" if task == "pretraining" else task
                return task if task in EVALUATED_TASKS else None
    return None


def find_model_folder(folder: str) -> str:
    """
    The folder of a model, given it, the folder of the run that wrote it, or a Hub id.

    Raises:
        FileNotFoundError: a folder that is not there, or that holds no model.
        OSError: a name that is no folder, and that the Hub does not give.
    """
    path = Path(folder).expanduser()
    if path.is_file():
        raise NotADirectoryError(
            f"{folder} is a file: give the folder of a model, or a Hub id such as org/vicha-base."
        )
    if not path.is_dir():
        # A Hub id is `organisation/name` or `name`; a neighbour on the disk says that a folder was meant.
        has_neighbours = path.parent != Path() and path.parent.is_dir()
        if path.is_absolute() or folder.startswith((".", "~")) or len(path.parts) > 2 or has_neighbours:
            raise FileNotFoundError(
                f"{folder} is not there: give the folder of a model, or a Hub id such as org/vicha-base."
            )
        require_there(folder)
        return folder
    for candidate in (path, path / MODEL_FOLDER, path / BEST_MODEL_FOLDER):
        if (candidate / "config.json").is_file():
            if candidate != path:
                logger.warning("%s is a run: using its %s.%s", folder, candidate, _beside(candidate))
            return str(candidate)
    raise FileNotFoundError(
        f"{folder} holds no model: there is no config.json, nor a folder {MODEL_FOLDER} with one as a run writes it."
    )


def _beside(model: Path) -> str:
    """Says that a run has weights of its best evaluation beside the last ones that are used."""
    best = model.with_name(BEST_MODEL_FOLDER)
    if model == best or not (best / "config.json").is_file():
        return ""
    return f" The weights of its best evaluation are in {best}."


def require_there(model_id: str) -> None:
    """
    Raises an OSError for a name that is no folder, and that neither the cache nor the Hub has. It asks once, where loading
    would ask again and again for half a minute.
    """
    if Path(model_id).expanduser().is_dir():
        return
    if (Path(constants.HF_HUB_CACHE) / f"models--{model_id.replace('/', '--')}" / "snapshots").is_dir():
        return
    try:
        HfApi().model_info(model_id, timeout=HUB_SECONDS)
    except Exception as error:
        # The client's, the connection's, or that of a name which no model can have.
        raise OSError(f"{model_id} is no folder here, and cannot be had from the Hub: {error}") from error


def load_finetuned(
    task: str, folder: str, config: PreTrainedConfig | None = None, backend: str | None = None, **options: Any
) -> PreTrainedModel | OnnxModel:
    """
    A model that has been trained for `task`, in evaluation mode.

    Args:
        task: one of the family's in `HEADS`.
        folder: folder or Hub id; its configuration says which family it is.
        config: the folder's configuration, where it has been read already.
        backend: "torch", or "onnx" for a folder that `vicha-hf export` wrote; by default what the folder is for.
        options: further ones of `from_pretrained`, such as `dtype` and `revision`.

    Raises:
        ValueError: unknown task or family, or a folder that lacks weights of the head, by name: random ones answer at
            random. Or one whose configuration leaves weights of an encoder over, or one that the backend cannot run.
        ImportError: onnxruntime is needed and not installed.
    """
    config = read_config(folder) if config is None else config
    if choose_backend(folder, backend) == "onnx":
        return load_onnx(task, folder, config)
    require_weights_of_folder(folder)
    with without_load_report(starts_too=True):
        model, info = head_class(config.model_type, task).from_pretrained(
            folder, config=config, output_loading_info=True, **options
        )
    require_loaded_encoders(model, info, folder)
    if missing := sorted(info["missing_keys"]):
        own = task_of_config(config)
        kind = (
            f"It is a model for {own}, which `vicha-hf evaluate --task {own}` evaluates. "
            if own not in (None, task)
            else ""
        )
        raise ValueError(
            f"{folder} is not fine-tuned for {task}: it has no {missing[0]} ({len(missing)} weights are missing). "
            f"{kind}Give a folder that the task's fine-tuning script wrote."
        )
    return model.eval()


def load_processor(folder: str) -> ProcessorMixin:
    """
    The processor that a model was saved with.

    Args:
        folder: folder or Hub id.

    Raises:
        ValueError: a folder that lacks one of its files, or has a damaged one.
        OSError: a name that is no folder, and that the Hub does not give.
    """
    try:
        return AutoProcessor.from_pretrained(folder)
    except Exception as error:
        # The library behind tokenizers raises bare exceptions for damaged files.
        if not Path(folder).expanduser().is_dir():
            raise
        raise ValueError(
            f"{folder} holds no processor that can be loaded ({one_line(error)}): copy or download the whole folder again."
        ) from error


def read_config(folder: str, **options: Any) -> PreTrainedConfig:
    """
    The configuration of a model.

    Args:
        folder: folder or Hub id.
        options: of `AutoConfig.from_pretrained`.

    Raises:
        OSError: a name that is no folder, and that the Hub does not give.
    """
    try:
        return AutoConfig.from_pretrained(folder, **options)
    except OSError as error:
        if Path(folder).expanduser().is_dir():
            raise
        raise OSError(f"{folder} is no folder here, and cannot be had from the Hub: {error}") from error


@contextmanager
def without_load_report(starts_too: bool = False) -> Iterator[None]:
    """
    Holds back transformers' table of missing weights, which the caller reports in one line.

    Args:
        starts_too: also what models themselves say of the start of missing weights, for a caller that refuses those.
    """
    names = ["transformers.modeling_utils", *(_STARTS if starts_too else ())]
    loggers = [transformers_logging.get_logger(name) for name in names]
    # A filter, for a level of its own makes transformers report what tensor parallelism would not shard.
    for logger_of_module in loggers:
        logger_of_module.addFilter(_is_error)
    try:
        yield
    finally:
        for logger_of_module in loggers:
            logger_of_module.removeFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
