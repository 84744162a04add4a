"""
The codes of DALL-E's discrete VAE, as transformers ships it: what SIMLA and BEiT predict.

References:
    [1] Ramesh et al., DALL-E, arXiv 2102.12092, section 2.1 and appendix A.3 (mapping of the pixel values).
    [2] Khan et al., SIMLA, arXiv 2203.14395, section 4.1 (images of half the size, 8192 codes).
"""

import torch
from torch.nn.functional import interpolate
from transformers import FlavaImageCodebook

from .configuration import CodebookVisualTokenizerConfig
from .tokenizer import VisualTokenizer


# Three halvings inside the encoder.
PIXELS_PER_CODE = 8
# The dVAE's logit-Laplace likelihood needs colours away from 0 and 1 [1].
LOGIT_LAPLACE_MARGIN = 0.1


class CodebookVisualTokenizer(VisualTokenizer):
    """
    `FlavaImageCodebook` on the model's own input. It brings the input from `patch_size` to 8 pixels per token: 256
    pixels in patches of 16 become 128 pixels and 16 x 16 codes. It maps colours from [0, 1] to [0.1, 0.9] and takes
    the likeliest code of each place.

    Make one with [`~CodebookVisualTokenizer.from_codebook`]; a folder that `save_pretrained` wrote loads with
    `from_pretrained`. At full size it costs about as much as the vision encoder: run it on the accelerator.
    """

    config: CodebookVisualTokenizerConfig
    config_class = CodebookVisualTokenizerConfig

    def __init__(self, config: CodebookVisualTokenizerConfig):
        super().__init__(config)
        self.codebook = FlavaImageCodebook(config.codebook_config)
        self.post_init()
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_codebook(cls, codebook: str | FlavaImageCodebook, **config) -> "CodebookVisualTokenizer":
        """
        A tokenizer around a codebook's weights.

        Args:
            codebook: a `FlavaImageCodebook`, or the folder or Hub id of one ("facebook/flava-image-codebook" holds
                DALL-E's).
            config: fields of `VisualTokenizerConfig`, such as `patch_size`.
        """
        if not isinstance(codebook, FlavaImageCodebook):
            codebook = FlavaImageCodebook.from_pretrained(codebook)
        tokenizer = cls(CodebookVisualTokenizerConfig(codebook_config=codebook.config.to_dict(), **config))
        tokenizer.codebook.load_state_dict(codebook.state_dict())
        return tokenizer.to(codebook.device)

    def tokenize(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[B, 3, rows * patch_size, columns * patch_size] -> ids [B, rows, columns]."""
        colors = self.colors(pixel_values)
        size = [side // self.patch_size * PIXELS_PER_CODE for side in colors.shape[2:]]
        if list(colors.shape[2:]) != size:
            # Antialiased, as Pillow resizes; bicubic overshoots at edges.
            colors = interpolate(colors, size, mode="bicubic", antialias=True).clamp(0, 1)
        mapped = (1 - 2 * LOGIT_LAPLACE_MARGIN) * colors + LOGIT_LAPLACE_MARGIN
        return self.codebook.get_codebook_indices(mapped.to(self.codebook.dtype))


__all__ = ["CodebookVisualTokenizer"]
