"""Configurations of the visual tokenizers: what turns an image into discrete codes for masked image modelling."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import FlavaImageCodebookConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from ..models.configuration_vision_text import require, require_positive


@strict
class VisualTokenizerConfig(PreTrainedConfig):
    r"""
    Base configuration of every visual tokenizer.

    Args:
        patch_size (`int`, defaults to 16): pixels of the model's input along a token's side: the model's patch size.
        image_mean, image_std: means and deviations [3] that the pixel values were normalised with (CLIP's by default, as
            `ViChaImageProcessor`'s); the tokenizer undoes the normalisation where it needs plain colours.
    """

    patch_size: int = 16
    image_mean: tuple[float, ...] | list[float] = tuple(OPENAI_CLIP_MEAN)
    image_std: tuple[float, ...] | list[float] = tuple(OPENAI_CLIP_STD)

    def validate_architecture(self):
        """Part of `@strict`-powered validation."""
        require_positive(self, ("patch_size",))
        for field in ("image_mean", "image_std"):
            value = getattr(self, field)
            require(len(value) == 3, field, value, "give one number for each of red, green and blue.")
        require(min(self.image_std) > 0, "image_std", self.image_std, "deviations are positive.")


@strict
class CodebookVisualTokenizerConfig(VisualTokenizerConfig):
    r"""
    The encoder of a discrete VAE, DALL-E's by default (8192 codes), which reads an image in patches of 8 pixels.

    Args:
        codebook_config (`FlavaImageCodebookConfig` or `dict`, *optional*): of the encoder.
    """

    model_type = "vicha_codebook_visual_tokenizer"
    sub_configs: ClassVar[dict] = {"codebook_config": FlavaImageCodebookConfig}

    codebook_config: dict | FlavaImageCodebookConfig | None = None

    def __post_init__(self, **kwargs):
        if self.codebook_config is None:
            self.codebook_config = FlavaImageCodebookConfig()
        elif isinstance(self.codebook_config, dict):
            self.codebook_config = FlavaImageCodebookConfig(**self.codebook_config)
        super().__post_init__(**kwargs)

    @property
    def vocab_size(self) -> int:
        """Number of codes."""
        return self.codebook_config.vocab_size


@strict
class PatchVisualTokenizerConfig(VisualTokenizerConfig):
    r"""
    Nearest-neighbour codes of small, blurred patches.

    Args:
        vocab_size (`int`, defaults to 512): number of codes.
        code_size (`int`, defaults to 4): a patch is averaged down to code_size x code_size colours before it is compared.
        seed (`int`, defaults to 0): of the codes before they are fitted, and of the fit.
    """

    model_type = "vicha_patch_visual_tokenizer"

    vocab_size: int = 512
    code_size: int = 4
    seed: int = 0

    def validate_architecture(self):
        """Part of `@strict`-powered validation."""
        super().validate_architecture()
        require_positive(self, ("vocab_size", "code_size"))
        require(
            self.patch_size % self.code_size == 0,
            "code_size",
            self.code_size,
            f"it must divide patch_size={self.patch_size}, so that each of its colours is the mean of whole pixels.",
        )


__all__ = ["CodebookVisualTokenizerConfig", "PatchVisualTokenizerConfig", "VisualTokenizerConfig"]
