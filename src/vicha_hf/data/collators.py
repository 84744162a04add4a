"""Lists of dataset items to the tensors that a model's `forward` takes."""

from collections.abc import Sequence

import torch
from transformers.processing_utils import ProcessorMixin

from .datasets_pretraining import PretrainingItem
from .datasets_retrieval import RetrievalImage


class PretrainingCollator:
    """
    Batches of pretraining and retrieval fine-tuning.

    Args:
        processor: a `ViChaProcessor`; its lengths limit captions (25 tokens) and concepts (55).
        with_concepts: whether batches hold concepts. They then hold them always, as a mask of zeros where no picture of
            the batch has any: distributed training needs the same parameters in use on every process.
        pad_to_max_length: pad captions and concepts to the processor's lengths instead of the batch's longest row, for
            hardware and compilers that want fixed shapes.

    Returns (from calling it with B items):
        `pixel_values` [B, 3, H, W]; `input_ids`, `attention_mask` [B, T]; `concept_input_ids`, `concept_attention_mask`
        [B, C]; `image_ids` [B], int64. Masks: 1 = attend.
    """

    def __init__(self, processor: ProcessorMixin, *, with_concepts: bool = True, pad_to_max_length: bool = False):
        self.processor = processor
        self.with_concepts = with_concepts
        self.pad_to_max_length = pad_to_max_length

    def __call__(self, items: Sequence[PretrainingItem]) -> dict[str, torch.Tensor]:
        padding = "max_length" if self.pad_to_max_length else True
        batch = _stack_images(items)
        texts = self.processor(text=[item["caption"] for item in items], padding=padding, return_tensors="pt")
        batch |= texts
        if self.with_concepts:
            batch |= _encode_concepts(self.processor, items, self.pad_to_max_length)
        batch["image_ids"] = torch.tensor([item["image_id"] for item in items], dtype=torch.int64)
        return batch


class RetrievalImageCollator:
    """
    Batches of pictures for encoding: `pixel_values` [B, 3, H, W] and, where any picture of the batch has concepts,
    `concept_input_ids`, `concept_attention_mask` [B, C] (1 = attend).
    """

    def __init__(self, processor: ProcessorMixin, *, with_concepts: bool = True):
        self.processor = processor
        self.with_concepts = with_concepts

    def __call__(self, items: Sequence[RetrievalImage]) -> dict[str, torch.Tensor]:
        batch = _stack_images(items)
        if self.with_concepts and any(item["concepts"] for item in items):
            batch |= _encode_concepts(self.processor, items, pad_to_max_length=False)
        return batch


def _stack_images(items: Sequence) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.stack([item["pixel_values"] for item in items])}


def _encode_concepts(processor: ProcessorMixin, items: Sequence, pad_to_max_length: bool) -> dict[str, torch.Tensor]:
    padding = "max_length" if pad_to_max_length else True
    encoded = processor(concepts=[item["concepts"] for item in items], padding=padding, return_tensors="pt")
    if not encoded:
        width = processor.max_concept_length if pad_to_max_length else 1
        shape = (len(items), width)
        return {
            "concept_input_ids": torch.full(shape, processor.tokenizer.pad_token_id),
            "concept_attention_mask": torch.zeros(shape, dtype=torch.int64),
        }
    return dict(encoded)
