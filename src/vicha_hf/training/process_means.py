"""Numbers of all processes as their means, read from the device at once."""

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor


def process_means(accelerator: Accelerator, *groups: Mapping[str, Tensor]) -> list[dict[str, float]]:
    """
    Means over the processes. All together, for reading makes a GPU wait: the loop does it once in a step.

    Args:
        accelerator: of the run; every process must call it with the same names.
        groups: numbers by name, [] or [1] each, on the device.
    """
    packed = torch.stack([_local(value).detach().float().reshape(()) for group in groups for value in group.values()])
    values = iter(accelerator.reduce(packed, reduction="mean").tolist())
    return [{name: next(values) for name in group} for group in groups]


def _local(tensor: Tensor) -> Tensor:
    """A number that is sharded over the processes, in one piece."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
