"""How much a forward pass leaves allocated."""

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def bytes_kept(function: Callable[[], torch.Tensor]) -> tuple[int, torch.Tensor]:
    """What a function leaves allocated on the CPU, its result included, by torch's own record; and the result."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = function()
    events = recorded.profiler.kineto_results.events()
    return sum(event.nbytes() for event in events if event.name() == "[memory]"), result
