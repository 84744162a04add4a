"""Registration of the tasks' pipelines with transformers, so that `pipeline(task, model=folder)` finds them."""

from importlib import import_module
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pipelines import PIPELINE_REGISTRY, REMOVED_TASKS

from . import models
from .families import HEADS, load_finetuned
from .models.hub_export import PIPELINES
from .onnx_backend.export_manifest import ExportManifest
from .onnx_backend.sessions import OnnxModel


class HeadLoader:
    """Loader of a task's head, whichever family the folder is of. Subclasses name the task."""

    task: str

    @classmethod
    def from_pretrained(
        cls, folder: str, config: PreTrainedConfig | None = None, _from_pipeline: str | None = None, **options: Any
    ) -> PreTrainedModel:
        """Loads as [`load_finetuned`] does; `options` are those of `PreTrainedModel.from_pretrained`."""
        return load_finetuned(cls.task, folder, config, **options)


class ExportLoader:
    """Loader of what `vicha-hf export` wrote. To be mixed in before an Auto class, which loads every other folder."""

    @classmethod
    def from_pretrained(cls, folder: str, *arguments: Any, **options: Any) -> PreTrainedModel | OnnxModel:
        """Loads as the Auto class does; an export as [`load_finetuned`] does."""
        if ExportManifest.of(folder) is None:
            return super().from_pretrained(folder, *arguments, **options)
        return load_finetuned("retrieval", folder, options.get("config"))


def register_pipelines() -> None:
    """Makes the tasks known to `transformers.pipeline`."""
    for name, (reference, head) in PIPELINES.items():
        file_name, class_name = reference.split(".")
        pipeline_class = getattr(import_module(f"{models.__name__}.{file_name}"), class_name)
        if head is None:
            # transformers' own task: models of others go on as before.
            own = PIPELINE_REGISTRY.supported_tasks[name]
            loaders = tuple(type(loader.__name__, (ExportLoader, loader), {}) for loader in own["pt"])
            own |= {"impl": pipeline_class, "pt": loaders}
            continue
        task = next(task for task, model in HEADS["vicha"].items() if model.__name__.endswith(head))
        loader = type(f"AutoModel{head}", (HeadLoader,), {"task": task})
        PIPELINE_REGISTRY.register_pipeline(name, pipeline_class, pt_model=loader, type="multimodal")
        # transformers had a task of this name once, and refuses it before it looks at what is registered.
        REMOVED_TASKS.pop(name, None)
