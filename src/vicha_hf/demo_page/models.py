"""The models of a page, by the task that each can do."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import pipeline

from ..devices import choose_device
from ..families import HEADS, find_model_folder, load_finetuned, load_processor, read_config
from ..models.concept_selector import CONCEPT_INDEX_FOLDER, ConceptSelector
from ..search.embedder import Embedder


# Heads whose weights do a task; the first that is among the models does it.
HEADS_OF_TASK = {
    "retrieval": ("retrieval", "grounding", "pretraining"),
    "grounding": ("grounding", "retrieval", "pretraining"),
    "vqa": ("vqa",),
    "entailment": ("entailment",),
    "reasoning": ("reasoning",),
}
PIPELINE_OF_TASK = {
    "retrieval": "image-text-retrieval",
    "grounding": "visual-grounding",
    "vqa": "visual-question-answering",
    "entailment": "visual-entailment",
    "reasoning": "visual-reasoning",
}


@dataclass(frozen=True)
class PageModels:
    """
    Folders of models, and which of them does what.

    Args:
        folders: task -> folder, for the tasks that the models can do.
        device: where they run.
    """

    folders: dict[str, str]
    device: str | None = None

    @classmethod
    def find(cls, models: Sequence[str], device: str | None = None) -> "PageModels":
        """
        Sorts models by what they were trained for.

        Args:
            models: folders or Hub ids.
            device: where they run; by default on a GPU where there is one.

        Raises:
            ValueError, OSError: a model that can do nothing here, or none.
        """
        head_of = {}
        for model in models:
            folder = find_model_folder(model)
            config = read_config(folder)
            saved = set(config.architectures or ())
            heads = [task for task, head in HEADS.get(config.model_type, {}).items() if head.__name__ in saved]
            if not heads or heads[0] not in {head for usable in HEADS_OF_TASK.values() for head in usable}:
                known = ", ".join(HEADS_OF_TASK)
                raise ValueError(
                    f"{model} is of {sorted(saved)}, which a page has no use for; give models for {known}."
                )
            head_of.setdefault(heads[0], folder)
        folders = {}
        for task, heads in HEADS_OF_TASK.items():
            found = [head_of[head] for head in heads if head in head_of]
            if found:
                folders[task] = found[0]
        return cls(folders, None if device is None else str(choose_device(device)))

    def __contains__(self, task: str) -> bool:
        return task in self.folders

    @cached_property
    def pipelines(self) -> dict[str, Any]:
        """The pipeline of every task, all loaded."""
        made = {}
        for task, folder in self.folders.items():
            model, processor = load_finetuned(task, folder), load_processor(folder)
            made[task] = pipeline(PIPELINE_OF_TASK[task], model=model, processor=processor, device=self.device)
        return made

    @cached_property
    def embedder(self) -> Embedder:
        """The retrieval model as search uses it."""
        return Embedder(self.folders["retrieval"], self.device)

    @cached_property
    def concept_selector(self) -> ConceptSelector | None:
        """The concepts of the first model that has an index of them."""
        for folder in self.folders.values():
            if (Path(folder) / CONCEPT_INDEX_FOLDER).is_dir():
                return ConceptSelector.from_pretrained(folder)
        return None

    def describe(self) -> str:
        """A line for every task and its model, in Markdown."""
        return "\n".join(f"- {PIPELINE_OF_TASK[task]}: `{Path(folder)}`" for task, folder in self.folders.items())
