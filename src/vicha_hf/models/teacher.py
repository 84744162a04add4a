"""The momentum teacher and everything else that exists only while training (ALBEF section 3.3)."""

import copy

import torch
from torch import nn

from .feature_queue import FeatureQueue


class TrainingState(nn.Module):
    """
    A copy of the online modules that follows them as a moving average, and the feature queue that it fills. The
    teacher gets no gradient and always runs without dropout: its outputs are targets.

    Args:
        online: the modules to follow, by name; copied together, so that weights tied between them stay tied.
        queue: where the teacher's features are kept; `None` for heads without a contrastive loss.
    """

    def __init__(self, online: dict[str, nn.Module], queue: FeatureQueue | None = None):
        super().__init__()
        self.teacher = copy.deepcopy(nn.ModuleDict(online)).requires_grad_(False).eval()
        self.queue = queue

    def train(self, mode: bool = True):
        """Keeps the teacher in evaluation mode."""
        super().train(False)
        return self

    @torch.no_grad()
    def update_teacher(self, online: dict[str, nn.Module], momentum: float) -> None:
        """
        teacher <- momentum * teacher + (1 - momentum) * online, parameters only. Where parameters are split over the
        processes (ZeRO-3, FSDP2), each process moves its own part: both are split alike.
        """
        teacher = list(self.teacher.parameters())
        online = list(nn.ModuleDict(online).parameters())
        _require_alike(teacher, online)
        _require_precision(teacher, momentum)
        kept = [_kept_part(parameter) for parameter in teacher]
        torch._foreach_lerp_(kept, [_kept_part(parameter) for parameter in online], 1.0 - momentum)
        for parameter in teacher:
            _forget_gathered_copy(parameter)


def is_sharded(parameter: nn.Parameter) -> bool:
    """Whether this process keeps only a part of a parameter: DeepSpeed's ZeRO-3 or FSDP2."""
    return hasattr(parameter, "ds_tensor") or hasattr(parameter, "device_mesh")


def _kept_part(parameter: nn.Parameter) -> torch.Tensor:
    """
    Part of a parameter that lies on this process: DeepSpeed's ZeRO-3 has it in `ds_tensor`, and gathers the rest into
    `data`.
    """
    return parameter.ds_tensor if hasattr(parameter, "ds_tensor") else parameter.detach()


def _forget_gathered_copy(parameter: nn.Parameter) -> None:
    """Small parameters stay gathered under ZeRO-3; after a change of their parts they must be gathered anew."""
    if hasattr(parameter, "ds_tensor") and parameter.ds_status.name == "AVAILABLE":
        parameter.partition()


def _require_alike(teacher: list[nn.Parameter], online: list[nn.Parameter]) -> None:
    if [_kept_part(parameter).shape for parameter in teacher] != [_kept_part(parameter).shape for parameter in online]:
        raise RuntimeError(
            "Teacher and model are not split over the processes alike. Call `add_training_state()` before the model is "
            "prepared for distributed training, and shard both by the same rule."
        )


def _require_precision(teacher: list[nn.Parameter], momentum: float) -> None:
    """A step of 1 - momentum between two neighbouring numbers is rounded away, and the teacher stays where it is."""
    coarsest = max((torch.finfo(parameter.dtype).eps for parameter in teacher), default=0.0)
    if 1.0 - momentum < coarsest and momentum < 1.0:
        raise RuntimeError(
            f"The teacher's weights are {teacher[0].dtype}, too coarse to follow at momentum={momentum}: a step of "
            f"{1.0 - momentum:.3g} is rounded away. Keep the weights in float32 and compute in lower precision by autocast."
        )
