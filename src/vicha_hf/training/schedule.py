"""Learning rate and distillation share as pure functions of the position in a run, so that resuming needs no state."""

import math
from dataclasses import dataclass
from typing import Protocol


# The published schedule raises the learning rate once in so many iterations of the first epoch.
PUBLISHED_WARMUP_STRIDE = 100


class LearningRateSchedule(Protocol):
    """Maps the number of optimiser steps already taken to the learning rate of the next one."""

    def __call__(self, step: int) -> float: ...


@dataclass(frozen=True)
class WarmupCosineSchedule:
    """Linear warm-up, then half a cosine, both advancing with every optimiser step.

    The warm-up is never shortened: a run that ends inside it has followed the beginning of a longer run.

    Args:
        total_steps: optimiser steps of the run, warm-up included.
        learning_rate: the peak, reached at step `warmup_steps`.
        min_learning_rate: approached at `total_steps`.
        warmup_learning_rate: of the first step.
        warmup_steps: 0 starts at the peak.
    """

    total_steps: int
    learning_rate: float
    min_learning_rate: float
    warmup_learning_rate: float
    warmup_steps: int

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            rise = (self.learning_rate - self.warmup_learning_rate) * step / self.warmup_steps
            return self.warmup_learning_rate + rise
        cosine_steps = self.total_steps - self.warmup_steps
        share = min(1.0, (step - self.warmup_steps) / cosine_steps) if cosine_steps > 0 else 0.0
        return _cosine(share, self.learning_rate, self.min_learning_rate)


def published_learning_rate(
    epoch: int,
    iteration: int,
    *,
    num_epochs: int,
    learning_rate: float,
    min_learning_rate: float,
    warmup_learning_rate: float,
    warmup_epochs: int,
) -> float:
    """Learning rate of the published scripts (ALBEF, ViCHA, SIMLA), which moves in jumps.

    In the first epoch it rises after iterations 100, 200, ...; an epoch that ends earlier cuts
    the warm-up. Each later epoch has one constant value on the cosine, so the minimum itself is never used.

    Args:
        epoch: counted from 0.
        iteration: optimiser steps since the epoch began, counted from 0.
        num_epochs: epochs of the whole run.
        learning_rate: the peak.
        min_learning_rate: where the cosine would end.
        warmup_learning_rate: of the first iterations.
        warmup_epochs: number of rises; the published configurations call these hundreds of iterations epochs.
    """
    if epoch > 0 or warmup_epochs == 0:
        return _cosine(epoch / num_epochs, learning_rate, min_learning_rate)
    # A rise happens after the iteration that is a multiple of 100, so that the next one is the first to use it.
    rises = min(max(iteration - 1, 0) // PUBLISHED_WARMUP_STRIDE, warmup_epochs)
    return warmup_learning_rate + rises * (learning_rate - warmup_learning_rate) / warmup_epochs


@dataclass(frozen=True)
class PublishedSchedule:
    """[`published_learning_rate`] by optimiser step.

    Args:
        steps_per_epoch: optimiser steps of one epoch.
        num_epochs: epochs of the whole run.
        warmup_steps: length of the warm-up in optimiser steps, a multiple of 100.

    Raises:
        ValueError: the warm-up is not a multiple of 100 steps.
    """

    steps_per_epoch: int
    num_epochs: int
    learning_rate: float
    min_learning_rate: float
    warmup_learning_rate: float
    warmup_steps: int

    def __post_init__(self):
        if self.warmup_steps % PUBLISHED_WARMUP_STRIDE:
            raise ValueError(
                f"warmup_steps={self.warmup_steps}: the published schedule warms up in jumps of "
                f"{PUBLISHED_WARMUP_STRIDE} steps; give a multiple of it or set lr_schedule=cosine."
            )

    def __call__(self, step: int) -> float:
        epoch, iteration = divmod(step, self.steps_per_epoch)
        return published_learning_rate(
            epoch,
            iteration,
            num_epochs=self.num_epochs,
            learning_rate=self.learning_rate,
            min_learning_rate=self.min_learning_rate,
            warmup_learning_rate=self.warmup_learning_rate,
            warmup_epochs=self.warmup_steps // PUBLISHED_WARMUP_STRIDE,
        )


def ramped_alpha(alpha: float, epoch: int, iteration: int, iterations_per_epoch: int) -> float:
    """Share of the teacher's soft targets: linear from 0 over the first epoch, then `alpha` (ALBEF section 3.3).

    A teacher that has just been copied knows nothing that the hard targets do not say.

    Args:
        alpha: the share after the ramp.
        epoch: counted from 0.
        iteration: optimiser steps since the epoch began, counted from 0.
        iterations_per_epoch: optimiser steps of one epoch.
    """
    if epoch > 0:
        return alpha
    return alpha * min(1.0, iteration / iterations_per_epoch)


def _cosine(share: float, start: float, end: float) -> float:
    return end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * share))
