"""
A contrast over more pairs than one forward pass can hold: in parts, with the loss and the gradients of the whole.

Reference:
    [1] Gao et al., GradCache, arXiv 2101.06983. There every feature is computed once without a graph, so that its gradient
        can be cached, and once more with one. Where the columns are a teacher's they have no gradient, and one pass is enough.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from .encodings import ImageEncoding, TextEncoding
from .objective_itc import ContrastColumns


@dataclass
class CachedLoss:
    """
    A loss of the whole batch that one part contributes to.

    Args:
        loss: [], of the whole batch, without gradient.
        gradients: of the loss, for each tensor that the part contributes.
        num_parts: how many parts are averaged to the whole.
    """

    loss: torch.Tensor
    gradients: list[torch.Tensor]
    num_parts: int

    def through(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """
        The loss, with its gradient flowing into the part's own `tensors`: times the number of parts, since they are averaged.
        """
        carrier = sum((tensor * gradient).sum() for tensor, gradient in zip(tensors, self.gradients, strict=True))
        return self.loss + self.num_parts * (carrier - carrier.detach())


@dataclass
class ContrastPart:
    """
    Knowledge that a part of a batch needs of the other parts.

    Args:
        teacher_images, teacher_texts: the part's own encodings by the teacher.
        columns: the teacher's features of the whole batch.
        enqueued: image features, text features [n * B, E] and image ids of all parts, for the queue; the last part has
            them, for the others must not find them there.
        levels: the hierarchical contrast of the whole batch, where there is one.
        random_state: to encode the part as the cached loss saw it; `None` where that does not matter.
    """

    teacher_images: ImageEncoding
    teacher_texts: TextEncoding
    columns: ContrastColumns
    enqueued: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None = None
    levels: CachedLoss | None = None
    random_state: "RandomState | None" = None


class RandomState:
    """Present state of the generators of the CPU and of a device; replaying draws the same numbers again."""

    def __init__(self, device: torch.device):
        self.device = device
        self.cpu_state = torch.get_rng_state()
        self.device_state = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Inside, the numbers that were drawn from here on; afterwards the generators go on as if nothing had been drawn."""
        if self.device_state is None:
            forked = torch.random.fork_rng(devices=[])
        else:
            forked = torch.random.fork_rng(devices=[self.device], device_type=self.device.type)
        with forked:
            torch.set_rng_state(self.cpu_state)
            if self.device_state is not None:
                torch.get_device_module(self.device).set_rng_state(self.device_state, self.device)
            yield
