"""Base of the tasks' datasets: one item per annotation, a text, images, and their concepts."""

from collections.abc import Callable, Sequence
from typing import Generic, Literal, TypeVar

import numpy as np
import torch
from PIL import Image

from .annotations import Annotations
from .concept_augmentation import check_concept_fraction, sample_concepts
from .image_files import LazyImage
from .seeded_dataset import SeededDataset


_RecordType = TypeVar("_RecordType")


class AnnotatedDataset(SeededDataset, Generic[_RecordType]):
    """
    Item i belongs to `annotations[i]` and is a function of (seed, epoch, i) alone. The same class serves training and
    evaluation: the transform and `concept_fraction` make the difference. Images are never mirrored where the text says
    left or right.

    Args:
        annotations: the task's records.
        transform: `PretrainingTransform` in training (crop scale `FINETUNING_CROP_SCALE`; None for grounding),
            `EvaluationTransform` in evaluation, or a callable with the same arguments.
        seed: of all draws.
        concept_fraction: share of an image's concepts in an item; 1 (all of them) in fine-tuning and evaluation.
        use_concepts: False gives items without concepts.
        on_bad_record: as in `SeededDataset`.

    Raises:
        ValueError: a fraction outside (0, 1], a negative seed.
        ImageReadError: from `__getitem__`, an image that cannot be decoded.
    """

    def __init__(
        self,
        annotations: Annotations[_RecordType],
        transform: Callable[[Image.Image | LazyImage, np.random.Generator, bool], torch.Tensor],
        *,
        seed: int = 0,
        concept_fraction: float = 1.0,
        use_concepts: bool = True,
        on_bad_record: Literal["raise", "skip"] = "raise",
    ):
        super().__init__(seed, on_bad_record)
        check_concept_fraction(concept_fraction)
        self.annotations = annotations
        self.transform = transform
        self.concept_fraction = concept_fraction
        self.use_concepts = use_concepts

    def __len__(self) -> int:
        return len(self.annotations)

    def _draw_concepts(self, concepts: Sequence[str], rng: np.random.Generator) -> list[str]:
        return sample_concepts(concepts, self.concept_fraction, rng) if self.use_concepts else []
