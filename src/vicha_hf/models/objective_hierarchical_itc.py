"""
Hierarchical image-text contrastive learning: the objective repeated between intermediate levels of the two encoders.

Reference:
    [1] Shukor et al., ViCHA, arXiv 2208.13628, section 3.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import ModelOutput

from .objective_itc import soft_cross_entropy
from .pair_step import PairStep
from .process_group import gather, gather_with_gradient, rank, world_size


@dataclass
class HierarchicalContrastiveOutput(ModelOutput):
    """`loss` = sum over levels of weight * loss; `sim_i2t`, `sim_t2i`, `targets`: one [B, W * B] tensor per level."""

    loss: torch.Tensor | None = None
    level_losses: tuple[torch.Tensor, ...] | None = None
    sim_i2t: tuple[torch.Tensor, ...] | None = None
    sim_t2i: tuple[torch.Tensor, ...] | None = None
    targets: tuple[torch.Tensor, ...] | None = None


class HierarchicalContrast(nn.Module):
    """
    Contrast between levels. At each level a pair of projections embeds the [CLS] of image and text, which are
    contrasted within the batch of all processes. There is no teacher and no queue: the levels are a side objective
    that must stay cheap. Gradient flows through both sides.

    Args:
        vision_width, text_width: of the encoders' hidden states.
        projection_dim: of the joint space.
        num_levels: levels below the top.
        level_weights: one weight per level, lowest first; all 1 by default.
        local_diagonal: quirk `hitc_local_diagonal`, positives on the diagonal on every rank and keys without gradient.
    """

    def __init__(
        self,
        vision_width: int,
        text_width: int,
        projection_dim: int,
        num_levels: int,
        level_weights: Sequence[float] | None = None,
        local_diagonal: bool = False,
    ):
        super().__init__()
        self.vision_projections = nn.ModuleList(nn.Linear(vision_width, projection_dim) for _ in range(num_levels))
        self.text_projections = nn.ModuleList(nn.Linear(text_width, projection_dim) for _ in range(num_levels))
        self.level_weights = list(level_weights) if level_weights is not None else [1.0] * num_levels
        self.local_diagonal = local_diagonal

    def on_pairs(self, step: PairStep) -> HierarchicalContrastiveOutput:
        """The contrasts of an encoded batch whose layers were recorded. Of a batch in parts, each part has its own."""
        levels = slice(-(len(self.vision_projections) + 1), -1)
        norm = step.model.vision_model.layernorm
        image_levels = [norm(states[:, 0]) for states in step.image_output.hidden_states[levels]]
        text_levels = [states[:, 0] for states in step.text_output.hidden_states[levels]]
        return self(image_levels, text_levels, step.temperature, step.pairs.image_ids)

    def forward(
        self,
        image_levels: Sequence[torch.Tensor],
        text_levels: Sequence[torch.Tensor],
        temperature: torch.Tensor,
        image_ids: torch.Tensor | None = None,
    ) -> HierarchicalContrastiveOutput:
        """
        Args:
            image_levels: per level the image's [CLS] [B, d_v], after the encoder's final norm, lowest level first.
            text_levels: per level the text's first token [B, d_t].
            temperature: shared with the top level.
            image_ids: [B]; other samples of the same image leave the denominator.
        """
        image_embeds = _embed(self.vision_projections, image_levels)
        text_embeds = _embed(self.text_projections, text_levels)
        batch_size, device = image_embeds[0].shape[0], image_embeds[0].device
        start = 0 if self.local_diagonal else rank() * batch_size
        columns = world_size() * batch_size
        own_pair = torch.arange(batch_size, device=device) + start
        targets = nn.functional.one_hot(own_pair, columns).to(image_embeds[0].dtype)
        excluded = None
        if image_ids is not None:
            excluded = (image_ids[:, None] == gather(image_ids)[None, :]) & (targets == 0)
        collect = gather if self.local_diagonal else gather_with_gradient
        losses, all_i2t, all_t2i = [], [], []
        for images, texts in zip(image_embeds, text_embeds, strict=True):
            sim_i2t = images @ collect(texts).T / temperature
            sim_t2i = texts @ collect(images).T / temperature
            if excluded is not None:
                floor = torch.finfo(sim_i2t.dtype).min
                sim_i2t, sim_t2i = sim_i2t.masked_fill(excluded, floor), sim_t2i.masked_fill(excluded, floor)
            losses.append((soft_cross_entropy(sim_i2t, targets) + soft_cross_entropy(sim_t2i, targets)) / 2)
            all_i2t.append(sim_i2t)
            all_t2i.append(sim_t2i)
        return HierarchicalContrastiveOutput(
            loss=sum(weight * loss for weight, loss in zip(self.level_weights, losses, strict=True)),
            level_losses=tuple(losses),
            sim_i2t=tuple(all_i2t),
            sim_t2i=tuple(all_t2i),
            targets=tuple([targets] * len(losses)),
        )


def _embed(projections: nn.ModuleList, levels: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """States [B, d] per level -> L2-normalised embeddings [B, E] per level."""
    return [
        nn.functional.normalize(projection(states), dim=-1)
        for projection, states in zip(projections, levels, strict=True)
    ]
