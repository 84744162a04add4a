"""One step of the optimiser: its forward and backward passes, the reading of its numbers, and the move of the weights."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from ..models.pair_step import ContrastPart, cache_contrast
from .arguments import TrainingArguments
from .batch_sources import Batch
from .batch_statistics import BatchStatistics
from .checkpoints import Progress
from .forward_options import ForwardOptions
from .interruption import SigtermNotice
from .non_finite import NonFiniteGuard, Visit
from .process_means import process_means


@dataclass(frozen=True)
class StepReport:
    """One optimiser step in numbers.

    Args:
        losses: each averaged over the step's forward passes and over all processes.
        statistics: of the batch, averaged likewise; see [`~vicha_hf.training.batch_statistics.BatchStatistics`].
        state: learning rate, alpha, gradient norm and temperature, where they exist.
        skipped: whether the weights were left as they were, because something was not finite.
        stop: whether one of the processes has got a SIGTERM.
    """

    losses: dict[str, float]
    statistics: dict[str, float]
    state: dict[str, float]
    skipped: bool
    stop: bool


class OptimizerStep:
    """
    The step that a run repeats.

    Args:
        arguments: of the run.
        accelerator: that prepared model and optimiser.
        model, optimizer: as they were prepared.
        options: of the model's forward.
        statistics: that watch the model.
        temperature: parameter of the model, for the report of one whose output has none; None without.
        guard: keeps from the weights what is not finite.
        sigterm: of this process.
    """

    def __init__(
        self,
        arguments: TrainingArguments,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: Optimizer,
        options: ForwardOptions,
        statistics: BatchStatistics,
        temperature: Tensor | None,
        guard: NonFiniteGuard,
        sigterm: SigtermNotice,
    ):
        self.arguments = arguments
        self.accelerator = accelerator
        self.model = model
        self.optimizer = optimizer
        self.options = options
        self.statistics = statistics
        self.temperature = temperature
        self.guard = guard
        self.sigterm = sigterm

    def take(
        self, progress: Progress, learning_rate: float, samples_and_batches: Iterator[tuple[list, Batch]]
    ) -> StepReport:
        """
        Takes one step. Every process must call it.

        Args:
            progress: before the step; counts those that are skipped.
            learning_rate: of parameters whose `lr_scale` is 1.
            samples_and_batches: of the step's forward passes and of later ones.

        Raises:
            NonFiniteLossError: see [`~vicha_hf.training.non_finite.NonFiniteGuard.allows`].
            TypeError: the batch holds what the model's forward does not take.
            ValueError: the model's output has no loss.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["lr_scale"]
        options = self.options.of_step(progress.step)
        state = {"learning_rate": learning_rate}
        if "distillation_alpha" in options:
            state["distillation_alpha"] = options["distillation_alpha"]
        if self.options.moves_teacher_between_steps:
            self.accelerator.unwrap_model(self.model).update_teacher()
        self.guard.begin_step()
        visits: list[Visit] = []
        grad_norm = None
        for micro_step, (samples, batch, part) in enumerate(self._micro_batches(samples_and_batches)):
            options |= self.options.of_micro_step(micro_step)
            if part is not None:
                options["contrast_part"] = part
            with self.accelerator.accumulate(self.model):
                output = self.model(**batch, **options)
                visits.append(Visit(samples, {name: loss.detach() for name, loss in _losses(output).items()}))
                self.accelerator.backward(output["loss"])
                if self.accelerator.sync_gradients:
                    grad_norm = self._clip_gradients()

        losses, statistics, numbers, notice = self._read_numbers(visits, grad_norm, output)
        allowed = self.guard.allows(progress, losses, numbers.get("grad_norm"), visits)
        if allowed:
            self.optimizer.step()
        self.optimizer.zero_grad()
        state |= {name: value for name, value in numbers.items() if math.isfinite(value)}
        return StepReport(losses, statistics, state, skipped=not allowed, stop=notice["sigterm"] > 0)

    def _micro_batches(
        self, samples_and_batches: Iterator[tuple[list, Batch]]
    ) -> Iterator[tuple[list, Batch, ContrastPart | None]]:
        """The forward passes of the step: samples, the batch on the device, and what it knows of the others."""
        own = islice(samples_and_batches, self.arguments.gradient_accumulation_steps)
        moved = ((samples, self._moved(batch)) for samples, batch in own)
        if not self.arguments.gradient_caching:
            yield from ((*each, None) for each in moved)
            return
        all_samples, batches = zip(*moved, strict=True)
        # Gradients flow to what is computed here, so it must be computed as in the forward pass.
        with self.accelerator.autocast():
            parts = cache_contrast(self.accelerator.unwrap_model(self.model), batches)
        yield from zip(all_samples, batches, parts, strict=True)

    def _moved(self, batch: Batch) -> Batch:
        self.options.require_known(batch)
        device = self.accelerator.device
        return {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in batch.items()
        }

    def _clip_gradients(self) -> Tensor | None:
        limit = self.arguments.max_grad_norm
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), math.inf if limit is None else limit)
        return None if norm is None else torch.as_tensor(norm, device=self.accelerator.device)

    def _read_numbers(
        self, visits: Sequence[Visit], grad_norm: Tensor | None, output: Mapping
    ) -> list[dict[str, float]]:
        """Losses, statistics and state of the step, and the share of the processes that have got a SIGTERM."""
        losses = {name: torch.stack([visit.losses[name] for visit in visits]).mean() for name in visits[0].losses}
        state = {} if grad_norm is None else {"grad_norm": grad_norm}
        temperature = output.get("temperature", self.temperature)
        if temperature is not None and temperature.numel() == 1:
            state["temperature"] = temperature
        notice = {"sigterm": torch.tensor(float(self.sigterm.received), device=self.accelerator.device)}
        return process_means(self.accelerator, losses, self.statistics.take(), state, notice)


def _losses(output: Mapping) -> dict[str, Tensor]:
    losses = {
        name: value
        for name, value in output.items()
        if value is not None and (name == "loss" or name.endswith("_loss"))
    }
    if "loss" not in losses:
        raise ValueError("the model's output has no loss: the collator did not give it what it needs to train.")
    return losses
