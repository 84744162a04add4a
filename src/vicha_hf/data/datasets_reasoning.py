"""Statements about two images, for fine-tuning and evaluation."""

from typing import NotRequired, TypedDict

import numpy as np
import torch

from .annotations_reasoning import ReasoningRecord
from .datasets_annotated import AnnotatedDataset, TaskItems
from .named_sides import names_side


class ReasoningItem(TypedDict):
    """
    `pixel_values` float [2, 3, H, W] and `concepts`, the left image's and the right one's; the `text`, `label` (1 =
    true) or None, and in a dataset the item's `index`.
    """

    pixel_values: torch.Tensor
    text: str
    concepts: tuple[list[str], list[str]]
    label: int | None
    index: NotRequired[int]


class ReasoningItems(TaskItems[ReasoningRecord]):
    """Examples of statements; see `TaskItems`. Both images are augmented apart."""

    def make(self, record: ReasoningRecord, rng: np.random.Generator) -> ReasoningItem:
        left, right = (self._draw_concepts(concepts, rng) for concepts in record.concepts)
        may_mirror = not names_side(record.sentence)
        return ReasoningItem(
            pixel_values=torch.stack(
                [self.transform(image, rng, may_mirror=may_mirror) for image in record.open_images()]
            ),
            text=record.sentence,
            concepts=(left, right),
            label=record.label,
        )


class ReasoningDataset(AnnotatedDataset[ReasoningRecord]):
    """Records of `read_reasoning_records`; see `AnnotatedDataset`."""

    item_type = ReasoningItems
