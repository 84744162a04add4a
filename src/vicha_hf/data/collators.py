"""Lists of dataset items to the tensors that a model's `forward` takes."""

from collections.abc import Sequence

import torch
from transformers.processing_utils import ProcessorMixin

from .datasets_pretraining import PretrainingItem


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
        self.padding = "max_length" if pad_to_max_length else "longest"

    def __call__(self, items: Sequence[PretrainingItem]) -> dict[str, torch.Tensor]:
        captions = [item["caption"] for item in items]
        return {
            "pixel_values": torch.stack([item["pixel_values"] for item in items]),
            **self.processor(text=captions, padding=self.padding, return_tensors="pt"),
            **(self._encode_concepts([item["concepts"] for item in items]) if self.with_concepts else {}),
            "image_ids": torch.tensor([item["image_id"] for item in items], dtype=torch.int64),
        }

    def _encode_concepts(self, concepts: list[list[str]]) -> dict[str, torch.Tensor]:
        if any(concepts):
            return dict(self.processor(concepts=concepts, padding=self.padding, return_tensors="pt"))
        width = self.processor.max_concept_length if self.padding == "max_length" else 1
        shape = (len(concepts), width)
        return {
            "concept_input_ids": torch.full(shape, self.processor.tokenizer.pad_token_id),
            "concept_attention_mask": torch.zeros(shape, dtype=torch.int64),
        }
