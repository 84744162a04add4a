"""Display of a running training: the bar with its losses, durations in words, memory."""

import resource
import sys
from collections.abc import Mapping

import torch
from tqdm.auto import tqdm


SHORT_NAMES = {"learning_rate": "lr", "distillation_alpha": "alpha"}


def progress_bar(total_steps: int, step: int, shown: bool) -> tqdm:
    """A bar over optimiser steps that stands at `step` of `total_steps`."""
    return tqdm(
        total=total_steps,
        initial=step,
        desc="training",
        unit="step",
        # The losses need the room that the drawing of a bar would take.
        bar_format="{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]",
        mininterval=1.0,
        dynamic_ncols=True,
        disable=not shown,
    )


def bar_numbers(losses: Mapping[str, float], state: Mapping[str, float]) -> dict[str, str]:
    """The numbers of a step that stand behind the bar, short."""
    values = {name.removesuffix("_loss"): value for name, value in losses.items()}
    values |= {SHORT_NAMES[name]: value for name, value in state.items() if name in SHORT_NAMES}
    return {name: f"{value:.3g}" for name, value in values.items()}


def duration(seconds: float) -> str:
    """`95` -> `1 min 35 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def peak_memory_gib(device: torch.device) -> float:
    """The most memory that this process has held so far, in GiB: of the GPU, or resident without one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    # Kilobytes everywhere but on macOS, which counts bytes.
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
