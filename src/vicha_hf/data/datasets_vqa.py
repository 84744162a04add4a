"""Questions about images, for fine-tuning and evaluation."""

from typing import NotRequired, TypedDict

import numpy as np
import torch

from .annotations_vqa import QuestionRecord
from .datasets_annotated import AnnotatedDataset, TaskItems
from .named_sides import names_side


class QuestionItem(TypedDict):
    """
    `pixel_values` float [3, H, W], the `question`, the image's `concepts`, the different `answers` with their
    `weights` (empty where none are known), and in a dataset the item's `index`.
    """

    pixel_values: torch.Tensor
    question: str
    concepts: list[str]
    answers: list[str]
    weights: list[float]
    index: NotRequired[int]


class QuestionItems(TaskItems[QuestionRecord]):
    """Examples of questions; see `TaskItems`."""

    def make(self, record: QuestionRecord, rng: np.random.Generator) -> QuestionItem:
        concepts = self._draw_concepts(record.concepts, rng)
        weights = record.answer_weights()
        return QuestionItem(
            pixel_values=self.transform(record.open_image(), rng, may_mirror=not names_side(record.question)),
            question=record.question,
            concepts=concepts,
            answers=list(weights),
            weights=list(weights.values()),
        )


class QuestionAnsweringDataset(AnnotatedDataset[QuestionRecord]):
    """Records of `read_question_records`; see `AnnotatedDataset`."""

    item_type = QuestionItems
