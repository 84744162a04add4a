"""Attention in operators that every ONNX runtime knows, with one result where a row may attend to nothing."""

import torch
from torch import Tensor, nn

from ..models.encoder_text import CrossAttention, SelfAttention
from ..models.encoder_vision import VisionAttention


class PlainAttention:
    """
    Softmax attention over boolean masks. A row that may attend to nothing gives 0, as torch's SDPA does; ONNX's own
    operators give the mean of all values, NaN or 0, depending on their version.
    """

    def __call__(self, module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling, **_):
        """Keys and values [B, H, K, d], queries [B, H, Q, d], mask [B, 1, Q or 1, K], true = attend -> [B, Q, H, d]."""
        scores = torch.matmul(query * scaling, key.transpose(2, 3))
        if module.is_causal and attention_mask is None:
            attention_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if attention_mask is None:
            probabilities = scores.softmax(dim=-1)
        else:
            probabilities = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min).softmax(dim=-1)
            probabilities = probabilities * attention_mask
        return torch.matmul(probabilities, value).transpose(1, 2), None


def use_plain_attention(model: nn.Module) -> None:
    """Makes every attention of a model compute as [`PlainAttention`], for good."""
    for module in model.modules():
        if isinstance(module, VisionAttention | SelfAttention | CrossAttention):
            module.replaced_attention = PlainAttention()
