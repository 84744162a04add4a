"""
Visual tokenizers: pictures to a grid of discrete codes, one per patch, which masked image modelling predicts.

References:
    [1] Khan et al., SIMLA, arXiv 2203.14395, section 3.3 (the codes of the DALL-E dVAE as targets).
    [2] Bao et al., BEiT, arXiv 2106.08254, section 2.1 (visual tokens on the same grid as the patches).
"""

import torch
from transformers import PreTrainedModel
from transformers import initialization as init

from .configuration_visual_tokenizer import VisualTokenizerConfig


class VisualTokenizer(PreTrainedModel):
    """
    What every visual tokenizer can do. A subclass defines `tokenize` and has a configuration with `vocab_size`.

    A tokenizer reads the very pixel values that the model's vision encoder reads, so that token and patch show the same
    piece of the picture, whatever crop and augmentation were drawn. (The published code tokenizes another random crop.)
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
        """Rows and columns of tokens of a picture of height x width pixels; what is left of a patch is unused, as in the
        vision encoder."""
        return height // self.patch_size, width // self.patch_size

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        Args:
            pixel_values: [B, 3, H, W], normalised with `config.image_mean` and `config.image_std`.

        Returns:
            Code ids, int64 [B, P]; row-major, as the vision encoder's patches.

        Raises:
            ValueError: pixel values of another shape, or of a picture smaller than a patch.
        """
        if pixel_values.ndim != 4 or pixel_values.shape[1] != 3:
            raise ValueError(
                f"`pixel_values` has shape {tuple(pixel_values.shape)}; a visual tokenizer takes pictures [B, 3, H, W]"
            )
        rows, columns = self.grid_size(*pixel_values.shape[2:])
        if min(rows, columns) < 1:
            raise ValueError(
                f"a picture of {pixel_values.shape[2]} x {pixel_values.shape[3]} pixels is smaller than one token of "
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


def require_fitting_tokenizer(
    tokenizer: VisualTokenizer,
    *,
    image_size: int | tuple[int, int],
    patch_size: int,
    vocab_size: int | None = None,
    image_processor=None,
) -> None:
    """
    Checks that a tokenizer gives one token for each patch of a model.

    Args:
        image_size: side of the model's square input in pixels, or (height, width).
        patch_size: the model's.
        vocab_size: codes that the model's head predicts; None does not look.
        image_processor: the one that normalises the pictures; None does not look.

    Raises:
        ValueError: naming what differs, with both values and the remedy.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    tokens, patches = tokenizer.grid_size(height, width), (height // patch_size, width // patch_size)
    if tokens != patches:
        raise ValueError(
            f"the visual tokenizer makes {tokens[0]} x {tokens[1]} tokens of a picture of {height} x {width} pixels "
            f"(one per {tokenizer.patch_size} pixels), but the model has {patches[0]} x {patches[1]} patches (one per "
            f"{patch_size} pixels): make a tokenizer with patch_size={patch_size}"
        )
    if vocab_size is not None and tokenizer.vocab_size != vocab_size:
        raise ValueError(
            f"the visual tokenizer has {tokenizer.vocab_size} codes, but the model predicts {vocab_size}: set the "
            f"model's number of visual tokens to {tokenizer.vocab_size}"
        )
    if image_processor is not None:
        for name in ("image_mean", "image_std"):
            expected, found = list(getattr(tokenizer.config, name)), list(getattr(image_processor, name))
            if not torch.allclose(torch.tensor(expected), torch.tensor(found), atol=1e-4):
                raise ValueError(
                    f"the visual tokenizer was made for pictures normalised with {name}={expected}, but the image "
                    f"processor uses {found}: make the tokenizer with the image processor's {name}"
                )


__all__ = ["VisualTokenizer", "require_fitting_tokenizer"]
