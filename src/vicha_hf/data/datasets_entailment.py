"""Sentences that an image may entail, for fine-tuning and evaluation."""

from typing import NotRequired, TypedDict

import numpy as np
import torch

from .annotations_entailment import EntailmentRecord
from .datasets_annotated import AnnotatedDataset, TaskItems
from .named_sides import names_side


class EntailmentItem(TypedDict):
    """`pixel_values` float [3, H, W], the `text`, the image's `concepts`, `label` or None, in a dataset its `index`."""

    pixel_values: torch.Tensor
    text: str
    concepts: list[str]
    label: int | None
    index: NotRequired[int]


class EntailmentItems(TaskItems[EntailmentRecord]):
    """Examples of sentences; see `TaskItems`."""

    def make(self, record: EntailmentRecord, rng: np.random.Generator) -> EntailmentItem:
        concepts = self._draw_concepts(record.concepts, rng)
        return EntailmentItem(
            pixel_values=self.transform(record.open_image(), rng, may_mirror=not names_side(record.sentence)),
            text=record.sentence,
            concepts=concepts,
            label=record.label,
        )


class EntailmentDataset(AnnotatedDataset[EntailmentRecord]):
    """Records of `read_entailment_records`; see `AnnotatedDataset`."""

    item_type = EntailmentItems
