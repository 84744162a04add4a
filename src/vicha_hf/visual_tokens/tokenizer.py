"""
Visual tokenizers: images to a grid of discrete codes, one per patch, which masked image modelling predicts.

References:
    [1] Khan et al., SIMLA, arXiv 2203.14395, section 3.3 (the codes of the DALL-E dVAE as targets).
    [2] Bao et al., BEiT, arXiv 2106.08254, section 2.1 (visual tokens on the same grid as the patches).
"""

import torch
from transformers import PreTrainedModel
from transformers import initialization as init

from .configuration import VisualTokenizerConfig


class VisualTokenizer(PreTrainedModel):
    """
    Base of every visual tokenizer. A subclass defines `tokenize` and has a configuration with `vocab_size`.

    A tokenizer reads the very pixel values that the model's vision encoder reads. Token and patch then show the same
    piece of the image, whatever crop and augmentation were drawn. (The published code tokenizes another random crop.)
    It is frozen: nothing in it has a gradient or behaves differently in training.
    """

    config: VisualTokenizerConfig
    config_class = VisualTokenizerConfig
    base_model_prefix = "visual_tokenizer"
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def __init__(self, config: VisualTokenizerConfig):
        super().__init__(config)
        # In no state dict: the configuration has them.
        for name in ("image_mean", "image_std"):
            self.register_buffer(name, self._channel_values(name), persistent=False)

    def _channel_values(self, name: str) -> torch.Tensor:
        return torch.tensor(getattr(self.config, name), dtype=torch.float32).reshape(1, 3, 1, 1)

    @property
    def vocab_size(self) -> int:
        """Number of codes; ids run from 0 to vocab_size - 1."""
        return self.config.vocab_size

    @property
    def patch_size(self) -> int:
        """Pixels of the model's input along a token's side."""
        return self.config.patch_size

    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens of an image of height x width pixels; what is left of a patch is unused, as in the
        vision encoder."""
        return height // self.patch_size, width // self.patch_size

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        Args:
            pixel_values: [B, 3, H, W], normalised with `config.image_mean` and `config.image_std`.

        Returns:
            Code ids, int64 [B, P]; row-major, as the vision encoder's patches.

        Raises:
            ValueError: pixel values of another shape, or of an image smaller than a patch.
        """
        if pixel_values.ndim != 4 or pixel_values.shape[1] != 3:
            raise ValueError(
                f"`pixel_values` has shape {tuple(pixel_values.shape)}; a visual tokenizer takes images [B, 3, H, W]"
            )
        rows, columns = self.grid_size(*pixel_values.shape[2:])
        if min(rows, columns) < 1:
            raise ValueError(
                f"an image of {pixel_values.shape[2]} x {pixel_values.shape[3]} pixels is smaller than one token of "
                f"patch_size={self.patch_size}"
            )
        whole = pixel_values[:, :, : rows * self.patch_size, : columns * self.patch_size]
        with torch.no_grad():
            return self.tokenize(whole).flatten(1)

    def tokenize(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[B, 3, rows * patch_size, columns * patch_size] -> ids [B, rows, columns]; called by `forward` without
        gradients."""
        raise NotImplementedError(f"{type(self).__name__} must define `tokenize`")

    def colors(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Undoes the image processor's normalisation: colours in [0, 1], same shape."""
        return (pixel_values.float() * self.image_std + self.image_mean).clamp(0, 1)

    def train(self, mode: bool = True):
        """Stays in evaluation mode, also inside a module that is trained."""
        return super().train(False)

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, VisualTokenizer):
            # Buffers that no checkpoint holds come back from loading as uninitialised memory.
            for name in ("image_mean", "image_std"):
                init.copy_(getattr(module, name), module._channel_values(name))


__all__ = ["VisualTokenizer"]
