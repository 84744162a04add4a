"""
Patch dropout: training sees a random share of each picture's patches.

Reference:
    [1] Li et al., FLIP, arXiv 2212.00794, section 3 (random masking of patches in contrastive learning).
"""

import torch


def num_kept_patches(num_patches: int, dropout: float) -> int:
    """How many of `num_patches` stay where the share `dropout` goes: (1 - dropout) * num_patches, rounded."""
    return round((1 - dropout) * num_patches)


def draw_kept_patches(num_pictures: int, num_patches: int, dropout: float, device: torch.device) -> torch.Tensor:
    """
    The patches that each picture keeps, every choice of them equally likely, in reading order: indices [B, K],
    K = [`num_kept_patches`]. From torch's generator of the device.
    """
    order = torch.rand(num_pictures, num_patches, device=device).argsort(dim=1)
    return order[:, : num_kept_patches(num_patches, dropout)].sort(dim=1).values
