"""Expressions that name a part of an image, for the evaluation of grounding; it is trained as retrieval."""

from typing import NotRequired, TypedDict

import numpy as np
import torch

from .annotations_grounding import GroundingRecord
from .datasets_annotated import AnnotatedDataset, TaskItems
from .named_sides import names_side


class GroundingItem(TypedDict):
    """`pixel_values` float [3, H, W], the `text`, the image's `concepts`, in a dataset its `index`."""

    pixel_values: torch.Tensor
    text: str
    concepts: list[str]
    index: NotRequired[int]


class GroundingItems(TaskItems[GroundingRecord]):
    """Examples of expressions; see `TaskItems`."""

    def make(self, record: GroundingRecord, rng: np.random.Generator) -> GroundingItem:
        concepts = self._draw_concepts(record.concepts, rng)
        return GroundingItem(
            pixel_values=self.transform(record.open_image(), rng, may_mirror=not names_side(record.text)),
            text=record.text,
            concepts=concepts,
        )


class GroundingDataset(AnnotatedDataset[GroundingRecord]):
    """
    Records of `read_grounding_records(..., for_evaluation=True)`, which hold the boxes; see `AnnotatedDataset`. To train,
    give the records to `PretrainingDataset(captions="all")`.
    """

    item_type = GroundingItems
