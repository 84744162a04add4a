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
        """teacher <- momentum * teacher + (1 - momentum) * online, parameters only."""
        teacher = list(self.teacher.parameters())
        online = list(nn.ModuleDict(online).parameters())
        torch._foreach_lerp_(teacher, [parameter.detach() for parameter in online], 1.0 - momentum)
