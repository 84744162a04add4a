"""Plain attention function, choice of backend and the place of padding for every attention layer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

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
    probabilities = attention_probabilities(query, key, attention_mask, scaling)
    probabilities = nn.functional.dropout(probabilities, p=dropout, training=module.training)
    context = torch.matmul(probabilities, value).transpose(1, 2).contiguous()
    return context, probabilities


def attention_probabilities(
    query: torch.Tensor, key: torch.Tensor, attention_mask: torch.Tensor | None, scaling: float | None
) -> torch.Tensor:
    """Softmax over the keys [B, H, Q, K]; arguments as in [`eager_attention_forward`]."""
    if scaling is None:
        scaling = query.size(-1) ** -0.5
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    # Half-precision softmax loses the small probabilities that long image sequences are made of.
    precision = torch.promote_types(scores.dtype, torch.float32)
    return nn.functional.softmax(scores, dim=-1, dtype=precision).to(query.dtype)


class AttentionRecord:
    """
    Attention that keeps its `probabilities`, detached, of all queries [B, H, Q, K], or of those that `added` is for.

    Args:
        added: [B, H, q, K], joins the probabilities of the first q queries. The gradient with respect to zeros is that of
            these probabilities, and costs one backward pass through what follows.
    """

    probabilities: torch.Tensor | None = None

    def __init__(self, added: torch.Tensor | None = None):
        self.added = added

    def __call__(self, backend: Callable, module, query, key, value, attention_mask, scaling=None, **kwargs):
        number = query.shape[2] if self.added is None else self.added.shape[2]
        mask = _additive_mask(attention_mask, query.dtype)
        if mask is not None and mask.shape[2] > 1:
            mask = mask[:, :, :number]
        with torch.no_grad():
            self.probabilities = attention_probabilities(query[:, :, :number], key, mask, scaling)
        context, probabilities = backend(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        if self.added is not None:
            # Attention is linear in its probabilities, so the backend need not give them out.
            first = torch.matmul(self.added.to(value.dtype), value).transpose(1, 2)
            context = torch.cat([context[:, :number] + first, context[:, number:]], dim=1)
        return context, probabilities


@contextmanager
def recorded_attention(module: nn.Module, added: torch.Tensor | None = None) -> Iterator[AttentionRecord]:
    """One attention module is heard by an [`AttentionRecord`] inside the block, whatever implementation is configured."""
    module.attention_record = AttentionRecord(added)
    try:
        yield module.attention_record
    finally:
        del module.attention_record


def attention_function(module: nn.Module, implementation: str, output_attentions: bool | None = None) -> Callable:
    """
    The function that the configuration's `attn_implementation` names, with the record that listens to the module. Where
    the probabilities are asked for, attention is computed plainly: no other backend has them.
    """
    backend = _backend(module, implementation, output_attentions)
    record = getattr(module, "attention_record", None)
    return backend if record is None else partial(record, backend)


def _backend(module: nn.Module, implementation: str, output_attentions: bool | None) -> Callable:
    # An export has its own.
    replaced = getattr(module, "replaced_attention", None)
    if replaced is not None:
        return replaced
    if output_attentions is None:
        output_attentions = getattr(module.config, "output_attentions", False)
    if output_attentions and implementation != "eager":
        return _plain_attention
    if implementation == "sdpa" and _has_no_fused_kernel(module):
        return _plain_attention
    return ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)


def _has_no_fused_kernel(module: nn.Module) -> bool:
    """
    Whether SDPA would fall back to an attention that keeps scaled copies of queries and keys beside the probabilities:
    on a CPU it has no kernel for dropout.
    """
    has_dropout = module.training and module.config.attention_probs_dropout_prob > 0
    return has_dropout and not module.is_causal and next(module.parameters()).device.type == "cpu"


def _plain_attention(module, query, key, value, attention_mask, **kwargs):
    return eager_attention_forward(module, query, key, value, _additive_mask(attention_mask, query.dtype), **kwargs)


def _additive_mask(attention_mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """Any backend's mask as eager attention wants it: SDPA's is boolean, flash attention's is [B, K], 1 = attend."""
    if attention_mask is None or attention_mask.is_floating_point():
        return attention_mask
    if attention_mask.dim() == 2:
        return expand_key_mask(attention_mask, dtype, "eager")
    return torch.zeros_like(attention_mask, dtype=dtype).masked_fill(~attention_mask, torch.finfo(dtype).min)


def split_heads(hidden_states: torch.Tensor, head_dim: int) -> torch.Tensor:
    """[B, T, H * d] -> [B, H, T, d]"""
    return hidden_states.unflatten(-1, (-1, head_dim)).transpose(1, 2)


@dataclass(frozen=True)
class RealTokens:
    """
    The tokens of padded texts [B, T] that are no padding. Layers that work on each token alone run on these; attention
    sees the padded texts, as its kernels want them.

    Args:
        index: [tokens], of the flattened [B * T].
        shape: (B, T).
    """

    index: torch.Tensor
    shape: tuple[int, int]

    @classmethod
    def of(cls, attention_mask: torch.Tensor) -> "RealTokens | None":
        """
        Tokens that the mask [B, T], 1 = attend, marks, and every text's first, which the heads read. `None` where there
        is no padding, and for a compiler, which needs to know the number of tokens.
        """
        if torch.compiler.is_compiling():
            return None
        first = torch.arange(attention_mask.shape[1], device=attention_mask.device) == 0
        index = (attention_mask.bool() | first).flatten().nonzero()[:, 0]
        return None if len(index) == attention_mask.numel() else cls(index, tuple(attention_mask.shape))

    def pack(self, states: torch.Tensor) -> torch.Tensor:
        """[B, T, d] -> [tokens, d]"""
        return states.flatten(0, 1).index_select(0, self.index)

    def pad(self, states: torch.Tensor) -> torch.Tensor:
        """[tokens, d] -> [B, T, d], zeros where there is padding."""
        padded = states.new_zeros(self.shape[0] * self.shape[1], states.shape[-1])
        return padded.index_copy(0, self.index, states).unflatten(0, self.shape)


def cross_attention_implementation(implementation: str) -> str:
    """
    The backend for cross-attention. Flash kernels unpad queries and keys with one mask. That is wrong where the two
    have different lengths and only the keys are padded (visual concepts), so cross-attention uses SDPA there.
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
