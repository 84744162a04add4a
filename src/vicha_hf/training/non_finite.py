"""Reaction to a loss or a gradient that is infinite or NaN: stop, or leave the step out."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import DistributedType, gather_object
from torch import Tensor, nn

from .arguments import TrainingArguments
from .checkpoints import Progress


logger = get_logger(__name__)


# Weights that a message names.
NAMED_WEIGHTS = 5


class NonFiniteLossError(RuntimeError):
    """A loss, a gradient or a weight became infinite or NaN; going on would only destroy the weights."""


@dataclass(frozen=True)
class Visit:
    """One forward pass of this process.

    Args:
        samples: dataset indices of its batch.
        losses: its losses by name, [] each, on the device.
    """

    samples: list[int]
    losses: dict[str, Tensor]


class NonFiniteGuard:
    """Keeps a gradient that is not finite away from the weights, with the same decision on every process.

    It judges numbers that were averaged over the processes, so that it costs nothing where all is well. Overflows that the
    loss scaling of fp16 provokes on purpose, and answers itself, are left to it.

    Args:
        model: unwrapped. In skipped steps its buffers (the queue) are put back: they took in what was not finite.
        arguments: `on_non_finite_loss`, `max_consecutive_skips`.
        accelerator: of the run.
        describe: text that names the samples of some dataset indices, called where a step fails.

    Raises:
        ValueError: skipping is asked for where the training engine does not let it happen.
    """

    def __init__(
        self,
        model: nn.Module,
        arguments: TrainingArguments,
        accelerator: Accelerator,
        describe: Callable[[list[int]], str],
    ):
        self.skips = arguments.on_non_finite_loss == "skip"
        if self.skips and accelerator.distributed_type == DistributedType.DEEPSPEED:
            raise ValueError(
                "on_non_finite_loss='skip' is not possible with DeepSpeed, which moves the weights within the backward "
                "pass: use 'stop'."
            )
        self.limit = arguments.max_consecutive_skips
        self.accelerator = accelerator
        self.describe = describe
        self._model = model
        self._before: list[tuple[Tensor, Tensor]] = []

    def require_finite_weights(self, consequence: str) -> None:
        """Every process must call it: each looks at the weights that it holds.

        Args:
            consequence: begins the message.

        Raises:
            NonFiniteLossError: a weight is infinite or NaN; the same message on all processes.
        """
        own = non_finite_names({name: _own_part(parameter) for name, parameter in self._model.named_parameters()})
        if bad := sorted(set(gather_object(own))):
            raise NonFiniteLossError(_weights_message(consequence, bad))

    @torch.no_grad()
    def begin_step(self) -> None:
        """Remember what a skipped step must leave as it is."""
        if self.skips:
            # Looked up anew each time: what prepares the model for training moves its buffers.
            self._before = [(buffer, buffer.clone()) for buffer in self._model.buffers()]

    def allows(
        self, progress: Progress, losses: Mapping[str, float], grad_norm: float | None, visits: Sequence[Visit]
    ) -> bool:
        """Whether the optimiser may step. Every process must call it with the same numbers.

        Args:
            progress: counts the skipped steps.
            losses: means over forward passes and processes.
            grad_norm: `None` where it is not known.
            visits: the forward passes of this process.

        Raises:
            NonFiniteLossError: by policy, or after too many skipped steps in a row.
        """
        bad = [name for name, value in losses.items() if not math.isfinite(value)]
        gradient_is_bad = grad_norm is not None and not math.isfinite(grad_norm)
        if not bad and (not gradient_is_bad or self._loss_scaling_answers()):
            progress.consecutive_skips = 0
            return True
        # No step that is left out would mend them.
        self.require_finite_weights(f"Step {progress.step + 1} has losses that are not finite")
        message = self._message(progress, bad, losses, grad_norm, visits)
        if not self.skips:
            raise NonFiniteLossError(message)
        progress.skipped_steps += 1
        progress.consecutive_skips += 1
        if progress.consecutive_skips > self.limit:
            raise NonFiniteLossError(
                f"{message} This is step {progress.consecutive_skips} in a row; max_consecutive_skips={self.limit}."
            )
        logger.warning("Skipped: %s", message)
        self._undo()
        return False

    def _loss_scaling_answers(self) -> bool:
        if self.accelerator.mixed_precision != "fp16":
            return False
        scaler = self.accelerator.scaler
        # At a scale of 1 it is not the scaling that overflows. DeepSpeed has its own scaler, with a limit of its own.
        return scaler is None or scaler.get_scale() > 1.0

    @torch.no_grad()
    def _undo(self) -> None:
        for buffer, kept in self._before:
            buffer.copy_(kept)
        if self.accelerator.scaler is not None:
            # It has looked at this gradient already, and would refuse to look at the next one.
            self.accelerator.scaler.update()

    def _message(self, progress, bad, losses, grad_norm, visits) -> str:
        listed = ", ".join(f"{name}={value:.4g}" for name, value in losses.items())
        if bad:
            # The total is not finite because a component is not; name the cause first.
            culprit = next((name for name in bad if name != "loss"), "loss")
            what = f"{culprit} is not finite ({listed})"
        else:
            what = f"the norm of the gradient is {grad_norm}, though every loss is finite ({listed})"
        own = [self._culprits(visit) for visit in visits if not bad or not _is_finite(visit)]
        # Each process knows only its own samples; the message is to be the same on all.
        where = " ".join(gather_object(own))
        return (
            f"step {progress.step + 1}: {what}. {where} Look at these samples; if they are sound, lower learning_rate, "
            "set max_grad_norm or use mixed_precision=no."
        )

    def _culprits(self, visit: Visit) -> str:
        values = ", ".join(f"{name}={value.item():.4g}" for name, value in visit.losses.items())
        return (
            f"Process {self.accelerator.process_index} had {values} at the dataset indices {visit.samples}"
            f"{self.describe(visit.samples)}."
        )


def require_finite(state_dict: Mapping[str, Tensor], consequence: str) -> None:
    """Raise a [`NonFiniteLossError`] that begins with `consequence` where a weight is infinite or NaN."""
    if bad := non_finite_names(state_dict):
        raise NonFiniteLossError(_weights_message(consequence, bad))


@torch.no_grad()
def non_finite_names(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors that hold a value which is infinite or NaN. Makes a GPU wait once for each device."""
    floating = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()}
    by_device: dict[torch.device, list[str]] = {}
    for name, tensor in floating.items():
        by_device.setdefault(tensor.device, []).append(name)
    return [
        name
        for names in by_device.values()
        for name, finite in zip(
            names, torch.stack([floating[name].isfinite().all() for name in names]).tolist(), strict=True
        )
        if not finite
    ]


def _own_part(tensor: Tensor) -> Tensor:
    """The part that this process holds of a tensor that may be split over the processes (ZeRO-3, FSDP2)."""
    if hasattr(tensor, "ds_tensor"):
        return tensor.ds_tensor
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor.detach()


def _weights_message(consequence: str, bad: Sequence[str]) -> str:
    listed = ", ".join(bad[:NAMED_WEIGHTS]) + (
        f" and {len(bad) - NAMED_WEIGHTS} more" if len(bad) > NAMED_WEIGHTS else ""
    )
    return (
        f"{consequence}: weights are infinite or NaN ({listed}). Start from other weights, continue from an earlier "
        "checkpoint, lower learning_rate, or set max_grad_norm."
    )


def _is_finite(visit: Visit) -> bool:
    return all(bool(value.isfinite()) for value in visit.losses.values())
