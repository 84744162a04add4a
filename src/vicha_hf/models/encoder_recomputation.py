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
            return tensor.detach() if source is None else (source, tensor.dtype, tensor.shape, tensor.stride())

        def unpack(packed) -> torch.Tensor:
            if isinstance(packed, torch.Tensor):
                return packed
            source, dtype, shape, stride = packed
            with torch.no_grad():
                # Autocast is over by now. What is saved may be a transposed view.
                return source().to(dtype).as_strided(shape, stride)

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


def in_product_precision(states: torch.Tensor) -> torch.Tensor:
    """
    States in the precision in which autocast multiplies them. Otherwise every product would make a copy of its own, and
    keep it.
    """
    device = states.device.type
    return states.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else states


def recomputed_input(
    function: Callable[[torch.Tensor], torch.Tensor],
    states: torch.Tensor,
    consumer: Callable[[torch.Tensor], Result],
    checkpointed: bool = False,
) -> Result:
    """
    `consumer(function(states))` for a cheap function (an activation, a norm), which needs `states` for its own gradient:
    what it returns is not kept for the consumer's products. Computing it twice costs little beside one of them.

    Args:
        checkpointed: as [`recomputed`] has it.
    """
    result, states = in_product_precision(function(states)), states.detach()
    with recomputed((result, lambda: function(states)), checkpointed=checkpointed):
        return consumer(result)


def keeps_all(module: nn.Module) -> bool:
    """
    Whether a module leaves nothing to be computed again by itself. Checkpointing recomputes all of it. ZeRO-3 gathers
    weights only for as long as nothing else holds on to them.
    """
    return (module.training and module.gradient_checkpointing) or hasattr(next(module.parameters()), "ds_tensor")
