"""
The convolutional stem: patch embeddings by a few small convolutions instead of one linear map.

Reference:
    [1] Xiao et al., Early Convolutions Help Transformers See Better, arXiv 2106.14881, section 4.
"""

import torch
from torch import nn


class ConvolutionalStem(nn.Sequential):
    """
    Convolutions of 3 x 3 with stride 2 halve a patch until it is a point, each with twice the channels of the one before.
    One of 1 x 1 follows. A patch's embedding also sees some pixels of its neighbours.

    Each convolution is followed by a layer norm over the channels and GELU; [1] has batch norm and ReLU. With layer norm an
    embedding depends on its own image alone, not on the rest of a batch or on other processes.

    Args:
        num_channels: of the image.
        hidden_size: width of the embeddings, d_v.
        patch_size: pixels, a power of two of 2 or more.
        eps: of the layer norms.
    """

    def __init__(self, num_channels: int, hidden_size: int, patch_size: int, eps: float):
        halvings = patch_size.bit_length() - 1
        widths = [hidden_size // 2**step for step in reversed(range(halvings))]
        layers: list[nn.Module] = []
        for before, width in zip([num_channels, *widths], widths, strict=False):
            layers += [
                nn.Conv2d(before, width, kernel_size=3, stride=2, padding=1, bias=False),
                ChannelNorm(width, eps=eps),
                nn.GELU(),
            ]
        super().__init__(*layers, nn.Conv2d(hidden_size, hidden_size, kernel_size=1))
        self.patch_size = patch_size

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> [B, d_v, H // patch, W // patch]; pixels beyond the last whole patch are unused."""
        height, width = (side - side % self.patch_size for side in pixel_values.shape[-2:])
        return super().forward(pixel_values[..., :height, :width])


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of [B, C, H, W], at each place by itself."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
