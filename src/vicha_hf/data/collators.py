"""Lists of dataset items to the tensors that a model's `forward` takes."""

from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedTokenizerBase
from transformers.processing_utils import ProcessorMixin

from ..models.visual_tokenizer import VisualTokenizer
from .datasets_entailment import EntailmentItem
from .datasets_grounding import GroundingItem
from .datasets_pretraining import PretrainingItem
from .datasets_reasoning import ReasoningItem
from .datasets_vqa import QuestionItem


class _Collator:
    """
    What all collators share.

    Args:
        processor: a `ViChaProcessor`; its lengths limit texts (25 tokens) and concepts (55).
        with_concepts: whether batches hold concepts. They then hold them always, as a mask of zeros where no picture of
            the batch has any: distributed training needs the same parameters in use on every process.
        pad_to_max_length: pad texts and concepts to the processor's lengths instead of the batch's longest row, for
            hardware and compilers that want fixed shapes.
        with_indices: whether batches hold `indices` [B], int64: where in the dataset each item stands. Models do not take
            it; evaluation gathers it to know whose predictions it has.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        *,
        with_concepts: bool = True,
        pad_to_max_length: bool = False,
        with_indices: bool = False,
    ):
        self.processor = processor
        self.with_concepts = with_concepts
        self.padding = "max_length" if pad_to_max_length else "longest"
        self.with_indices = with_indices

    def _shared(self, items: Sequence[Mapping], text_field: str, **text_options) -> dict[str, torch.Tensor]:
        batch = {
            "pixel_values": torch.stack([item["pixel_values"] for item in items]),
            **self.processor(
                text=[item[text_field] for item in items], padding=self.padding, return_tensors="pt", **text_options
            ),
        }
        if self.with_indices:
            batch["indices"] = torch.tensor([item["index"] for item in items], dtype=torch.int64)
        return batch

    def _concepts(self, concepts: list[list[str]]) -> dict[str, torch.Tensor]:
        if not self.with_concepts:
            return {}
        if any(concepts):
            return dict(self.processor(concepts=concepts, padding=self.padding, return_tensors="pt"))
        width = self.processor.max_concept_length if self.padding == "max_length" else 1
        shape = (len(concepts), width)
        return {
            "concept_input_ids": torch.full(shape, self.processor.tokenizer.pad_token_id),
            "concept_attention_mask": torch.zeros(shape, dtype=torch.int64),
        }


class PretrainingCollator(_Collator):
    """
    Batches of pretraining, and of fine-tuning for retrieval and grounding.

    Args:
        processor, with_concepts, pad_to_max_length: as in `_Collator`.
        visual_tokenizer: makes the visual tokens of pictures that come without stored ones, from the very pixel values of
            the batch, crop and augmentation included. A large one is better called on the accelerator.

    Returns (from calling it with B items):
        `pixel_values` [B, 3, H, W]; `input_ids`, `attention_mask` [B, T]; `concept_input_ids`, `concept_attention_mask`
        [B, C]; `image_ids` [B], int64; with a tokenizer or stored tokens `visual_token_ids` [B, P], int64. Masks: 1 =
        attend.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        *,
        with_concepts: bool = True,
        pad_to_max_length: bool = False,
        visual_tokenizer: VisualTokenizer | None = None,
    ):
        super().__init__(processor, with_concepts=with_concepts, pad_to_max_length=pad_to_max_length)
        self.visual_tokenizer = visual_tokenizer

    def __call__(self, items: Sequence[PretrainingItem]) -> dict[str, torch.Tensor]:
        batch = {
            **self._shared(items, "caption"),
            **self._concepts([item["concepts"] for item in items]),
            "image_ids": torch.tensor([item["image_id"] for item in items], dtype=torch.int64),
        }
        if "visual_token_ids" in items[0]:
            batch["visual_token_ids"] = torch.stack([item["visual_token_ids"] for item in items])
        elif self.visual_tokenizer is not None:
            batch["visual_token_ids"] = self.visual_tokenizer(batch["pixel_values"])
        return batch


class QuestionAnsweringCollator(_Collator):
    """
    Batches of questions.

    Args:
        with_answers: whether batches hold the answers, as training needs them. Leave them out in evaluation.
        processor, with_concepts, pad_to_max_length, with_indices: as in `_Collator`.

    Returns (from calling it with B items):
        `pixel_values` [B, 3, H, W]; `input_ids`, `attention_mask` [B, T]; `concept_input_ids`, `concept_attention_mask`
        [B, C]; `answer_input_ids`, `answer_attention_mask` [n, A], every question's answers one question after the other;
        `answer_counts` [B], `answer_weights` [n]. Masks: 1 = attend.
    """

    def __init__(self, processor: ProcessorMixin, *, with_answers: bool = True, **options):
        super().__init__(processor, **options)
        self.with_answers = with_answers

    def __call__(self, items: Sequence[QuestionItem]) -> dict[str, torch.Tensor]:
        batch = {**self._shared(items, "question"), **self._concepts([item["concepts"] for item in items])}
        if self.with_answers:
            answers = tokenize_answers(self.processor.tokenizer, [text for item in items for text in item["answers"]])
            weights = [weight for item in items for weight in item["weights"]]
            batch |= {f"answer_{name}": tensor for name, tensor in answers.items()}
            batch["answer_counts"] = torch.tensor([len(item["answers"]) for item in items], dtype=torch.int64)
            batch["answer_weights"] = torch.tensor(weights, dtype=torch.float32)
        return batch


def tokenize_answers(tokenizer: PreTrainedTokenizerBase, answers: Sequence[str]) -> dict[str, torch.Tensor]:
    """
    Answers as `rank_answers` and the training of visual question answering take them: `input_ids` and `attention_mask`
    [n, A], each [CLS] answer [SEP], whatever the processor does with texts: [SEP] tells that the answer ends.

    Raises:
        ValueError: no answers.
    """
    if not answers:
        raise ValueError("there are no answers: give at least one, and questions with answers to train on")
    encoded = tokenizer(
        list(answers), padding="longest", padding_side="right", return_token_type_ids=False, return_tensors="pt"
    )
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


class EntailmentCollator(_Collator):
    """
    Batches of sentences about pictures; arguments as in `_Collator`.

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
    Batches of statements about two pictures.

    Args:
        truncate_text: whether to cut statements at the processor's length; NLVR2's are not cut. With `pad_to_max_length`
            they are in any case.
        processor, with_concepts, pad_to_max_length, with_indices: as in `_Collator`.

    Returns (from calling it with B items):
        `pixel_values` [B, 2, 3, H, W]; `input_ids`, `attention_mask` [B, T]; `concept_input_ids`, `concept_attention_mask`
        [B, 2, C]; `labels` [B], int64, where every item has one. Masks: 1 = attend.
    """

    def __init__(self, processor: ProcessorMixin, *, truncate_text: bool = False, **options):
        super().__init__(processor, **options)
        self.truncate_text = truncate_text

    def __call__(self, items: Sequence[ReasoningItem]) -> dict[str, torch.Tensor]:
        # Both pictures' concepts padded alike: row 2b is the left picture of item b, row 2b + 1 the right one.
        concepts = self._concepts([concepts for item in items for concepts in item["concepts"]])
        return {
            **self._shared(items, "text", truncation=self.truncate_text or self.padding == "max_length"),
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
