"""Recomputation, in the backward pass, of results that are cheap to compute, so that they need not be kept."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import nn


Result = TypeVar("Result")


class _Recomputed(torch.autograd.graph.saved_tensors_hooks):
    def __init__(self, sources: dict[tuple[int, int], Callable[[], torch.Tensor]]):
        def pack(tensor: torch.Tensor):
            source = sources.get((tensor.data_ptr(), tensor.numel()))
            # Detached: an operation that saves its own result would otherwise hold on to itself, and a step without a
            # backward pass would never be freed. torch attaches the graph again.
            return tensor.detach() if source is None else (source, tensor.shape, tensor.stride())

        def unpack(packed) -> torch.Tensor:
            if isinstance(packed, torch.Tensor):
                return packed
            source, shape, stride = packed
            with torch.no_grad():
                # What is saved may be a transposed view.
                return source().as_strided(shape, stride)

        super().__init__(pack, unpack)


def recomputed(
    *tensors: tuple[torch.Tensor, Callable[[], torch.Tensor]], checkpointed: bool = False
) -> AbstractContextManager:
    """
    Inside, operations that save one of the tensors for their backward pass save how to get it instead.

    Args:
        tensors: contiguous ones, each with the function that computes it again. The function should hold on to nothing
            that is not kept anyway.
        checkpointed: whether everything here is computed again anyway; or, see [`keeps_all`], nothing may be.
    """
    # A compiler chooses by itself what to keep.
    if checkpointed or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return nullcontext()
    return _Recomputed({(tensor.data_ptr(), tensor.numel()): function for tensor, function in tensors})


def recomputed_input(
    function: Callable[[torch.Tensor], torch.Tensor],
    states: torch.Tensor,
    consumer: Callable[[torch.Tensor], Result],
    checkpointed: bool = False,
) -> Result:
    """
    `consumer(function(states))` for an elementwise function, which needs `states` for its own gradient: what it returns is
    not kept for the consumer's. Computing it twice costs little beside a matrix product.

    Args:
        checkpointed: as [`recomputed`] has it.
    """
    result, states = function(states), states.detach()
    with recomputed((result, lambda: function(states)), checkpointed=checkpointed):
        return consumer(result)


def keeps_all(module: nn.Module) -> bool:
    """
    Whether a module leaves nothing to be computed again by itself. Checkpointing recomputes all of it. ZeRO-3 gathers
    weights only for as long as nothing else holds on to them.
    """
    return (module.training and module.gradient_checkpointing) or hasattr(next(module.parameters()), "ds_tensor")
