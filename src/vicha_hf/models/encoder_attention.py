"""What every attention layer here shares: the plain attention function and the choice of backend."""

from collections.abc import Callable

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Softmax attention with its probabilities kept. `query` [B, H, Q, d], `key` and `value` [B, H, K, d],
    `attention_mask` additive, broadcastable to [B, H, Q, K]. Returns the context [B, Q, H, d] and the
    probabilities [B, H, Q, K].
    """
    if scaling is None:
        scaling = query.size(-1) ** -0.5
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    # Half-precision softmax loses the small probabilities that long image sequences are made of.
    probabilities = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    probabilities = nn.functional.dropout(probabilities, p=dropout, training=module.training)
    context = torch.matmul(probabilities, value).transpose(1, 2).contiguous()
    return context, probabilities


def attention_function(implementation: str) -> Callable:
    """The function that the configuration's `attn_implementation` names."""
    return ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)


def split_heads(hidden_states: torch.Tensor, head_dim: int) -> torch.Tensor:
    """[B, T, H * d] -> [B, H, T, d]"""
    return hidden_states.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def cross_attention_implementation(implementation: str) -> str:
    """
    The backend for cross-attention. Flash kernels unpad queries and keys with one mask, which is wrong where the
    two have different lengths and only the keys are padded (visual concepts), so cross-attention uses SDPA there.
    """
    return implementation if implementation == "eager" else "sdpa"


def expand_key_mask(attention_mask: torch.Tensor | None, dtype: torch.dtype, implementation: str):
    """[B, K], 1 = attend -> [B, 1, 1, K]: boolean for SDPA, additive for eager attention. `None` stays `None`."""
    if attention_mask is None:
        return None
    allowed = attention_mask[:, None, None, :].to(torch.bool)
    if implementation == "eager":
        return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
    return allowed
