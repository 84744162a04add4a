"""The queue of teacher features that serve as negatives in later steps (ALBEF section 3.2, after MoCo)."""

import weakref

import torch
from torch import nn

from .configuration_vision_text import VisionTextConfig
from .process_group import gather


UNKNOWN_IMAGE = -1


class PastFeatures:
    """
    Features [K, E] of a queue as they are now, whatever joins it later: only the rows that are replaced meanwhile are
    copied. A backward pass asks for them after the batch has joined.
    """

    def __init__(self, features: torch.Tensor):
        self.features = features
        self.replaced: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self) -> torch.Tensor:
        """[K, E]"""
        if not self.replaced:
            return self.features
        past = self.features.clone()
        for positions, rows in reversed(self.replaced):
            past.index_copy_(0, positions, rows)
        return past


def _complete_empty(queue: "FeatureQueue", state_dict: dict, prefix: str, *_) -> None:
    """
    Gives a queue of size 0 its buffers: tensors without content count as one, of which accelerate's checkpoints keep the
    first, and a run could not go on from them.
    """
    if queue.size == 0:
        for name, buffer in queue.named_buffers(recurse=False):
            if not buffer.numel():
                state_dict.setdefault(f"{prefix}{name}", buffer)


class FeatureQueue(nn.Module):
    """
    A ring buffer of the last `size` image and text features with the ids of their images. It starts empty: entries that
    may serve as negatives are told by [`~FeatureQueue.usable`]. Any batch size fits any queue size.

    Args:
        size: number K of entries; 0 for no queue.
        width: of the features, E.
        warmup_batches: batches to see before any entry is used. From random weights the first features change so
            quickly that a past batch's are told from the present ones by their age, which teaches nothing.

    Buffers: `image_features`, `text_features` [K, E]; `image_ids` [K]; `pointer` [1], the next entry to be written;
    `num_filled` [1]; `num_batches` [1], how many were seen.
    """

    def __init__(self, size: int, width: int, warmup_batches: int = 0):
        super().__init__()
        self.size = size
        self.warmup_batches = warmup_batches
        self.register_buffer("image_features", torch.zeros(size, width))
        self.register_buffer("text_features", torch.zeros(size, width))
        self.register_buffer("image_ids", torch.full((size,), UNKNOWN_IMAGE, dtype=torch.long))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long))
        self.register_buffer("num_filled", torch.zeros(1, dtype=torch.long))
        self.register_buffer("num_batches", torch.zeros(1, dtype=torch.long))
        self._remembered: list[weakref.ref] = []
        self.register_load_state_dict_pre_hook(_complete_empty)

    def __getstate__(self):
        # A copy of the queue is asked for nothing of its past.
        return super().__getstate__() | {"_remembered": []}

    def remember(self) -> tuple[PastFeatures, PastFeatures]:
        """Image features and text features [K, E] as they are now, for as long as the caller holds on to them."""
        past = PastFeatures(self.image_features), PastFeatures(self.text_features)
        # A compiler chooses by itself what to keep.
        if not torch.compiler.is_compiling():
            self._remembered += map(weakref.ref, past)
        return past

    def _keep_replaced(self, positions: torch.Tensor) -> None:
        """Gives those who remember the rows that are about to be replaced."""
        self._remembered = [reference for reference in self._remembered if reference() is not None]
        for reference in self._remembered:
            past = reference()
            past.replaced.append((positions, past.features.index_select(0, positions)))

    @classmethod
    def of(cls, config: VisionTextConfig) -> "FeatureQueue":
        """The queue that a configuration describes, empty."""
        return cls(config.queue_size, config.projection_dim, config.queue_warmup_batches)

    def usable(self) -> torch.Tensor:
        """[K], true where an entry holds a feature and the warm-up is over."""
        filled = torch.arange(self.size, device=self.num_filled.device) < self.num_filled
        return filled & (self.num_batches >= self.warmup_batches)

    @torch.no_grad()
    def enqueue(
        self, image_features: torch.Tensor, text_features: torch.Tensor, image_ids: torch.Tensor | None = None
    ) -> None:
        """Appends the features [B, E] and image ids [B] of every process, in rank order; the oldest entries go."""
        if self.size == 0:
            return
        if image_ids is None:
            image_ids = torch.full_like(image_features[:, 0], UNKNOWN_IMAGE, dtype=torch.long)
        gathered = [gather(image_features), gather(text_features), gather(image_ids)]
        written = gathered[0].shape[0]
        start = self.pointer + max(written - self.size, 0)
        kept = min(written, self.size)
        positions = (start + torch.arange(kept, device=self.pointer.device)) % self.size
        if not torch.compiler.is_compiling():
            self._keep_replaced(positions)
        for buffer, values in zip((self.image_features, self.text_features, self.image_ids), gathered, strict=True):
            buffer.index_copy_(0, positions, values[written - kept :].to(buffer.dtype))
        self.pointer.copy_((self.pointer + written) % self.size)
        self.num_filled.copy_((self.num_filled + written).clamp(max=self.size))
        self.num_batches.add_(1)
