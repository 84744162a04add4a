"""
Text assignment: which of two pictures does a text belong to, if any?

Reference:
    [1] Li et al., Align before Fuse (ALBEF), arXiv 2107.07651, section 5 (pretraining for NLVR2).
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import ModelOutput


FIRST, SECOND, NEITHER = 0, 1, 2

# Of the published code; the model's own learned temperature is not used here.
SIMILARITY_TEMPERATURE = 0.07


@dataclass
class PicturePairs(ModelOutput):
    """
    `indices` [B, 2]: the rows of each text's two pictures; `labels` [B]: 0 the own picture comes first, 1 second,
    2 it is neither; `exists` [B]: false where the batch holds no other picture (both indices are then the row itself).
    """

    indices: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    exists: torch.Tensor | None = None


class PicturePairSampler(nn.Module):
    """
    Draws each class with probability 1/3 and the other pictures in proportion to their softmaxed similarity to the own
    one. Pictures with the own image id are never drawn; where only one other picture is left, it is never "neither".
    """

    @torch.no_grad()
    def weights(self, image_embeds: torch.Tensor, image_ids: torch.Tensor | None = None) -> torch.Tensor:
        """L2-normalised [B, E], ids [B] -> sampling weights [B, B], 0 for pictures that are not to be drawn."""
        similarity = image_embeds.float() @ image_embeds.float().T / SIMILARITY_TEMPERATURE
        return similarity.softmax(dim=1).masked_fill(_same_picture(image_embeds, image_ids), 0.0)

    @torch.no_grad()
    def forward(self, image_embeds: torch.Tensor, image_ids: torch.Tensor | None = None) -> PicturePairs:
        """`image_embeds` [B, E], L2-normalised; `image_ids` [B], equal for the same picture."""
        batch_size, device = len(image_embeds), image_embeds.device
        same = _same_picture(image_embeds, image_ids)
        similarity = image_embeds.float() @ image_embeds.float().T / SIMILARITY_TEMPERATURE
        # Adding Gumbel noise and taking the largest draws without replacement in proportion to the softmax, for all
        # rows at once and without underflow.
        noise = -torch.empty_like(similarity).exponential_().log()
        others = (similarity + noise).masked_fill(same, -torch.inf).topk(min(2, batch_size), dim=1).indices
        num_others = (~same).sum(dim=1)
        own = torch.arange(batch_size, device=device)
        first_other = torch.where(num_others > 0, others[:, 0], own)
        labels = torch.randint(3, (batch_size,), device=device)
        labels = torch.where(num_others > 1, labels, torch.randint(2, (batch_size,), device=device))
        indices = torch.stack(
            [torch.where(labels == FIRST, own, first_other), torch.where(labels == SECOND, own, first_other)], dim=1
        )
        indices[:, 1] = torch.where(labels == NEITHER, others[:, -1], indices[:, 1])
        return PicturePairs(indices=indices, labels=labels, exists=num_others > 0)


def _same_picture(image_embeds, image_ids):
    same = torch.eye(len(image_embeds), dtype=torch.bool, device=image_embeds.device)
    return same if image_ids is None else same | (image_ids[:, None] == image_ids[None, :])
