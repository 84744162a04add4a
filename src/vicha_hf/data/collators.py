"""Lists of dataset items to the tensors that a model's `forward` takes."""

from collections.abc import Mapping, Sequence

import torch
from transformers.processing_utils import ProcessorMixin

from .datasets_entailment import EntailmentItem
from .datasets_grounding import GroundingItem
from .datasets_pretraining import PretrainingItem
from .datasets_reasoning import ReasoningItem
from .datasets_vqa import QuestionItem


class _Collator:
    """
    Processor and options that all collators share.

    Args:
        processor: a `ViChaProcessor`; its lengths limit texts (25 tokens) and concepts (55).
        with_concepts: whether batches hold concepts. They then hold them always, as a mask of zeros where a batch has
            none. Distributed training needs the same parameters in use on every process.
    """

    def __init__(self, processor: ProcessorMixin, *, with_concepts: bool = True):
        self.processor = processor
        self.with_concepts = with_concepts

    def _shared(self, items: Sequence[Mapping], text_field: str, **text_options) -> dict[str, torch.Tensor]:
        texts = [item[text_field] for item in items]
        return {
            "pixel_values": torch.stack([item["pixel_values"] for item in items]),
            **self.processor(text=texts, padding="longest", return_tensors="pt", **text_options),
        }

    def _concepts(self, concepts: list[list[str]]) -> dict[str, torch.Tensor]:
        if not self.with_concepts:
            return {}
        if any(concepts):
            return dict(self.processor(concepts=concepts, padding="longest", return_tensors="pt"))
        return {
            "concept_input_ids": torch.full((len(concepts), 1), self.processor.tokenizer.pad_token_id),
            "concept_attention_mask": torch.zeros(len(concepts), 1, dtype=torch.int64),
        }


class PretrainingCollator(_Collator):
    """
    Batches of pretraining, and of fine-tuning for retrieval and grounding.

    Args:
        processor, with_concepts: as in `_Collator`.

    Returns (from calling it with B items):
        `pixel_values` [B, 3, H, W]; `input_ids`, `attention_mask` [B, T]; `concept_input_ids`, `concept_attention_mask`
        [B, C]; `image_ids` [B], int64. With stored tokens `visual_token_ids` [B, P], int64. `return_loss`, true. Masks:
        1 = attend.
    """

    def __call__(self, items: Sequence[PretrainingItem]) -> dict[str, torch.Tensor]:
        batch = {
            **self._shared(items, "caption"),
            **self._concepts([item["concepts"] for item in items]),
            "image_ids": torch.tensor([item["image_id"] for item in items], dtype=torch.int64),
            # In evaluation mode grounding answers with heat maps otherwise.
            "return_loss": True,
        }
        if "visual_token_ids" in items[0]:
            batch["visual_token_ids"] = torch.stack([item["visual_token_ids"] for item in items])
        return batch


class QuestionAnsweringCollator(_Collator):
    """
    Batches of questions.

    Args:
        with_answers: whether batches hold the answers, as training needs them. Leave them out in evaluation.
        processor, with_concepts: as in `_Collator`.

    Returns (from calling it with B items):
        `pixel_values` [B, 3, H, W]; `input_ids`, `attention_mask` [B, T]; `concept_input_ids`, `concept_attention_mask`
        [B, C]. Every question's answers follow those of the question before it: `answer_input_ids`,
        `answer_attention_mask` [n, A], `answer_counts` [B], `answer_weights` [n]. Masks: 1 = attend.
    """

    def __init__(self, processor: ProcessorMixin, *, with_answers: bool = True, **options):
        super().__init__(processor, **options)
        self.with_answers = with_answers

    def __call__(self, items: Sequence[QuestionItem]) -> dict[str, torch.Tensor]:
        batch = {**self._shared(items, "question"), **self._concepts([item["concepts"] for item in items])}
        if self.with_answers:
            answers = self.processor.tokenize_answers([text for item in items for text in item["answers"]])
            weights = [weight for item in items for weight in item["weights"]]
            batch |= {f"answer_{name}": tensor for name, tensor in answers.items()}
            batch["answer_counts"] = torch.tensor([len(item["answers"]) for item in items], dtype=torch.int64)
            batch["answer_weights"] = torch.tensor(weights, dtype=torch.float32)
        return batch


class EntailmentCollator(_Collator):
    """
    Batches of sentences about images; arguments as in `_Collator`.

    Returns (from calling it with B items):
        `pixel_values` [B, 3, H, W]; `input_ids`, `attention_mask` [B, T]; `concept_input_ids`, `concept_attention_mask`
        [B, C]; `labels` [B], int64, where every item has one. Masks: 1 = attend.
    """

    def __call__(self, items: Sequence[EntailmentItem]) -> dict[str, torch.Tensor]:
        return {
            **self._shared(items, "text"),
            **self._concepts([item["concepts"] for item in items]),
            **_labels(items),
        }


class ReasoningCollator(_Collator):
    """
    Batches of statements about two images, which are not cut; arguments as in `_Collator`.

    Returns (from calling it with B items):
        `pixel_values` [B, 2, 3, H, W]; `input_ids`, `attention_mask` [B, T]; `concept_input_ids`, `concept_attention_mask`
        [B, 2, C]; `labels` [B], int64, where every item has one. Masks: 1 = attend.
    """

    def __call__(self, items: Sequence[ReasoningItem]) -> dict[str, torch.Tensor]:
        # Both images' concepts padded alike: row 2b is the left image of item b, row 2b + 1 the right one.
        concepts = self._concepts([concepts for item in items for concepts in item["concepts"]])
        return {
            **self._shared(items, "text", truncation=False),
            **{name: tensor.unflatten(0, (len(items), 2)) for name, tensor in concepts.items()},
            **_labels(items),
        }


class GroundingCollator(_Collator):
    """
    Batches of expressions, for evaluation; arguments as in `_Collator`.

    Returns (from calling it with B items):
        `pixel_values` [B, 3, H, W]; `input_ids`, `attention_mask` [B, T]; `concept_input_ids`, `concept_attention_mask`
        [B, C]. Masks: 1 = attend.
    """

    def __call__(self, items: Sequence[GroundingItem]) -> dict[str, torch.Tensor]:
        return {**self._shared(items, "text"), **self._concepts([item["concepts"] for item in items])}


def _labels(items: Sequence[Mapping]) -> dict[str, torch.Tensor]:
    labels = [item["label"] for item in items]
    return {} if None in labels else {"labels": torch.tensor(labels, dtype=torch.int64)}
