"""Base of the tasks' training examples and datasets: one item per annotation, a text, images, and their concepts."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, Literal, TypeVar

import numpy as np
import torch
from PIL import Image

from .annotations import Annotations
from .concept_augmentation import check_concept_fraction, sample_concepts
from .image_files import LazyImage
from .seeded_dataset import SeededDataset


_RecordType = TypeVar("_RecordType")


@dataclass(frozen=True)
class TaskItems(ABC, Generic[_RecordType]):
    """
    The making of examples out of a task's records, the same for corpora that are read by number and for streams. Images
    are never mirrored where the text says left or right.

    Args:
        transform: `PretrainingTransform` in training (crop scale `FINETUNING_CROP_SCALE`; None for grounding),
            `EvaluationTransform` in evaluation, or a callable with the same arguments.
        concept_fraction: share of an image's concepts in an item; 1 (all of them) in fine-tuning and evaluation.
        use_concepts: False gives items without concepts.

    Raises:
        ValueError: a fraction outside (0, 1].
    """

    transform: Callable[[Image.Image | LazyImage, np.random.Generator, bool], torch.Tensor]
    concept_fraction: float = 1.0
    use_concepts: bool = True

    def __post_init__(self):
        check_concept_fraction(self.concept_fraction)

    @abstractmethod
    def make(self, record: _RecordType, rng: np.random.Generator) -> Mapping:
        """The example of a record, with what it draws from `rng`. Raises `ImageReadError`."""

    def _draw_concepts(self, concepts: Sequence[str], rng: np.random.Generator) -> list[str]:
        return sample_concepts(concepts, self.concept_fraction, rng) if self.use_concepts else []


class AnnotatedDataset(SeededDataset, Generic[_RecordType]):
    """
    Item i belongs to `annotations[i]` and is a function of (seed, epoch, i) alone; its `index` is i. The same class serves
    training and evaluation: the transform and `concept_fraction` make the difference.

    Args:
        annotations: the task's records.
        transform: as in `TaskItems`.
        seed: of all draws.
        on_bad_record: as in `SeededDataset`.
        item_options: of `TaskItems`.

    Raises:
        ValueError: a fraction outside (0, 1], a negative seed.
        ImageReadError: from `__getitem__`, an image that cannot be decoded.
    """

    item_type: ClassVar[type[TaskItems]]

    def __init__(
        self,
        annotations: Annotations[_RecordType],
        transform: Callable[[Image.Image | LazyImage, np.random.Generator, bool], torch.Tensor],
        *,
        seed: int = 0,
        on_bad_record: Literal["raise", "skip"] = "raise",
        **item_options,
    ):
        super().__init__(seed, on_bad_record)
        self.annotations = annotations
        self.items = self.item_type(transform, **item_options)

    def __len__(self) -> int:
        return len(self.annotations)

    def make_item(self, index: int, rng: np.random.Generator) -> Mapping:
        return {**self.items.make(self.annotations[index], rng), "index": index}
