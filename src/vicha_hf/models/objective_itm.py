"""
Image-text matching with hard negatives from the batch, the process's own or that of all.

Reference:
    [1] Li et al., Align before Fuse (ALBEF), arXiv 2107.07651, section 3.2 (ITM).
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import ModelOutput

from .process_group import mean_over_processes


MATCH = 1
MISMATCH = 0


@dataclass
class HardNegatives(ModelOutput):
    """
    `image_indices` [B]: for each text an image that it does not describe; `text_indices` [B]: for each image a text.
    `image_exists`, `text_exists` [B]: false where there is no negative to draw (the index is then the own pair).
    `weights_i2t`, `weights_t2i` [B, N]: the sampling weights. Indices count the N candidates.
    """

    image_indices: torch.Tensor | None = None
    text_indices: torch.Tensor | None = None
    image_exists: torch.Tensor | None = None
    text_exists: torch.Tensor | None = None
    weights_i2t: torch.Tensor | None = None
    weights_t2i: torch.Tensor | None = None


class HardNegativeSampler(nn.Module):
    """Draws negatives in proportion to the softmaxed similarity; pairs of the same image are never drawn."""

    @torch.no_grad()
    def forward(
        self,
        sim_i2t: torch.Tensor,
        sim_t2i: torch.Tensor,
        image_ids: torch.Tensor | None = None,
        image_indices: torch.Tensor | None = None,
        text_indices: torch.Tensor | None = None,
        own_start: int = 0,
        candidate_ids: torch.Tensor | None = None,
    ) -> HardNegatives:
        """
        Args:
            sim_i2t, sim_t2i: [B, N], similarities with the candidates, divided by the temperature: the process's own batch
                (N = B), or the batch of all processes.
            image_ids: [B], equal for the same image.
            image_indices, text_indices: [B], negatives given instead of drawn.
            own_start: the candidate that is the first row's own pair; the others follow.
            candidate_ids: [N], the candidates' image ids, where they are not `image_ids`.
        """
        weights_i2t, weights_t2i = sim_i2t.softmax(dim=1), sim_t2i.softmax(dim=1)
        rows, candidates = (torch.arange(size, device=sim_i2t.device) for size in sim_i2t.shape)
        own_pair = rows[:, None] + own_start == candidates
        same = own_pair
        if image_ids is not None:
            candidate_ids = image_ids if candidate_ids is None else candidate_ids
            same = same | (image_ids[:, None] == candidate_ids[None, :])
        weights_i2t, weights_t2i = weights_i2t.masked_fill(same, 0.0), weights_t2i.masked_fill(same, 0.0)
        exists = ~same.all(dim=1)
        if image_indices is None:
            image_indices = _draw(sim_t2i, same, own_pair)
        if text_indices is None:
            text_indices = _draw(sim_i2t, same, own_pair)
        return HardNegatives(
            image_indices=image_indices,
            text_indices=text_indices,
            image_exists=exists,
            text_exists=exists,
            weights_i2t=weights_i2t,
            weights_t2i=weights_t2i,
        )


def _draw(similarity: torch.Tensor, same: torch.Tensor, own_pair: torch.Tensor) -> torch.Tensor:
    """One column for each row of [B, N] similarities; a row whose columns are all `same` draws its own pair."""
    # The softmax over the candidates alone has the same proportions as one over all columns, and cannot underflow to
    # nothing where the own pair is far ahead.
    similarity = similarity.float().masked_fill(same, torch.finfo(torch.float32).min)
    weights = similarity.softmax(dim=1).masked_fill(same, 0.0)
    weights = weights + (own_pair & same.all(dim=1, keepdim=True)).to(weights.dtype)
    # What is not finite cannot be drawn by; whoever reads the loss, which is not finite either, says what happened.
    weights = torch.where(weights.isfinite().all(dim=1, keepdim=True), weights, own_pair.to(weights.dtype))
    return torch.multinomial(weights, 1).squeeze(1)


@dataclass
class MatchingOutput(ModelOutput):
    """`logits` [3B, 2]: the pairs, (negative image, own text), (own image, negative text); `labels` [3B]."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    labels: torch.Tensor | None = None


class ImageTextMatching(nn.Module):
    """Binary cross-entropy over positive and hard negative pairs, averaged over the pairs of all processes."""

    def forward(self, logits: torch.Tensor, negatives: HardNegatives) -> MatchingOutput:
        """`logits` [3B, 2] in the order of [`MatchingOutput`]; negatives that do not exist are left out of the mean."""
        batch_size = logits.shape[0] // 3
        positive = torch.ones(batch_size, dtype=torch.bool, device=logits.device)
        labels = torch.cat([positive, ~positive, ~positive]).long()
        losses = nn.functional.cross_entropy(logits.float(), labels, reduction="none")
        exists = torch.cat([positive, negatives.image_exists, negatives.text_exists]).to(losses.dtype)
        loss = mean_over_processes((losses * exists).sum(), exists.sum())
        return MatchingOutput(loss=loss, logits=logits, labels=labels)
