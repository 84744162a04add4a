"""Configuration of ViCHA (arXiv 2208.13628) and, with concepts, hierarchy and image modelling off, ALBEF (arXiv 2107.07651)."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig


# Departures of the published code from its papers' maths. A model has none of them unless its configuration says so;
# conversion fills in the list of the checkpoint's family, so that published numbers are reproduced exactly.
ALBEF_REFERENCE_QUIRKS = (
    "itc_local_columns",
    "vqa_first_token_twice",
    "gradcam_all_positions",
    "decay_embeddings",
    "temperature_unclamped",
    "no_final_sep",
)
VICHA_REFERENCE_QUIRKS = (
    *ALBEF_REFERENCE_QUIRKS,
    "unmasked_concepts",
    "hitc_local_diagonal",
    "vqa_alpha_unused",
    "nlvr_online_teacher",
    "mim_cls_without_position",
)

MIM_MODES = ("unimodal", "crossmodal", "both")
ENCODER_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def _require(condition: bool, field: str, value: object, remedy: str) -> None:
    if not condition:
        raise ValueError(f"`{field}={value!r}` is not possible: {remedy}")


def _require_positive(config: PreTrainedConfig, fields: tuple[str, ...], prefix: str = "") -> None:
    for field in fields:
        value = getattr(config, field)
        _require(value >= 1, prefix + field, value, "it counts something: choose 1 or more.")


@strict
class ViChaVisionConfig(PreTrainedConfig):
    r"""
    The vision transformer (ViT-B/16 by default; ViCHA section 4.1).

    Args:
        image_size (`int`, defaults to 256): side of the square input, pixels. Pixels beyond the last whole patch are unused.
        patch_size (`int`, defaults to 16): side of a patch, pixels.
        layer_norm_eps (`float`, defaults to 1e-6): of the blocks and of the final norm.
    """

    model_type = "vicha_vision_model"
    base_config_key = "vision_config"

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 256
    patch_size: int = 16
    hidden_act: str = "gelu"
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-6
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    initializer_range: float = 0.02

    @property
    def grid_size(self) -> int:
        """Patches along one side of the picture."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        return self.grid_size**2

    def validate_architecture(self):
        """Part of `@strict`-powered validation."""
        _require_positive(self, (*ENCODER_SIZES, "num_channels", "patch_size"), "vision_config.")
        _require(
            self.hidden_size % self.num_attention_heads == 0,
            "vision_config.num_attention_heads",
            self.num_attention_heads,
            f"it must divide vision_config.hidden_size={self.hidden_size}.",
        )
        _require(
            self.image_size >= self.patch_size,
            "vision_config.image_size",
            self.image_size,
            f"it must hold at least one patch of vision_config.patch_size={self.patch_size} pixels.",
        )


@strict
class ViChaTextConfig(PreTrainedConfig):
    r"""
    The text encoder (BERT-base layout) whose last layers fuse text with image tokens by cross-attention.

    Args:
        fusion_layer (`int`, defaults to 6): the first layer with cross-attention; layers before it are text only.
        encoder_hidden_size (`int`, *optional*): width of the tokens that cross-attention reads; defaults to the
            vision encoder's width.
        mask_token_id (`int`, defaults to 103): id that replaces predicted tokens in masked language modelling.
    """

    model_type = "vicha_text_model"
    base_config_key = "text_config"

    vocab_size: int = 30522
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    fusion_layer: int = 6
    encoder_hidden_size: int | None = None
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    cls_token_id: int = 101
    sep_token_id: int | None = 102
    mask_token_id: int = 103

    @property
    def num_text_layers(self) -> int:
        """Layers that *text* mode runs."""
        return self.fusion_layer

    @property
    def first_cross_attention_layer(self) -> int:
        return self.fusion_layer

    def validate_architecture(self):
        """Part of `@strict`-powered validation."""
        _require_positive(self, (*ENCODER_SIZES, "vocab_size", "max_position_embeddings"), "text_config.")
        _require(
            self.hidden_size % self.num_attention_heads == 0,
            "text_config.num_attention_heads",
            self.num_attention_heads,
            f"it must divide text_config.hidden_size={self.hidden_size}.",
        )
        _require(
            0 < self.fusion_layer < self.num_hidden_layers,
            "text_config.fusion_layer",
            self.fusion_layer,
            "text and fusion each need a layer: choose it between 1 and "
            f"text_config.num_hidden_layers - 1 = {self.num_hidden_layers - 1}.",
        )
        for field in ("pad_token_id", "cls_token_id", "sep_token_id", "mask_token_id"):
            value = getattr(self, field)
            _require(
                value is None or 0 <= value < self.vocab_size,
                f"text_config.{field}",
                value,
                f"token ids lie below text_config.vocab_size={self.vocab_size}; copy them from the tokenizer.",
            )


@strict
class ViChaConfig(PreTrainedConfig):
    r"""
    A ViCHA model and its training objectives. An objective whose weight is 0 is off and has no parameters.
    ALBEF is `ViChaConfig(use_concepts=False, hierarchical_itc_weight=0, mim_weight=0)`.

    Args:
        vision_config (`ViChaVisionConfig` or `dict`, *optional*): the vision encoder.
        text_config (`ViChaTextConfig` or `dict`, *optional*): the text and fusion encoder.
        projection_dim (`int`, defaults to 256): width of the joint embedding space.
        temperature_init (`float`, defaults to 0.07): initial softmax temperature, learned, kept in [0.001, 0.5].
        use_concepts (`bool`, defaults to `True`): whether visual concepts join the patches (ViCHA section 3.2).
        num_concept_layers (`int`, defaults to 2): transformer layers of the concept encoder; 0 = embeddings only.
        itc_weight, itm_weight, mlm_weight (`float`, default 1): image-text contrast, matching, masked language modelling.
        hierarchical_itc_weight (`float`, defaults to 0.1): contrast between intermediate levels (ViCHA section 3.1).
        hierarchical_itc_levels (`int`, defaults to 5): how many levels below the top are aligned.
        hierarchical_itc_level_weights (`list[float]`, *optional*): one weight per level, lowest first; all 1 by default.
        mim_weight (`float`, defaults to 1): masked image modelling (ViCHA section 3.3).
        mim_mode (`str`, defaults to `"unimodal"`): `"unimodal"` reconstructs from the kept patches through a small
            decoder, `"crossmodal"` through the fusion layers with the text as keys, `"both"` averages the two.
        mim_mask_ratio (`float`, defaults to 0.75): share of the patches that is removed.
        mim_decoder_hidden_size, mim_decoder_layers, mim_decoder_heads: the reconstruction decoder (768, 2, 16).
        mlm_probability (`float`, defaults to 0.15): share of the tokens that is predicted.
        queue_size (`int`, defaults to 65536): teacher features of past samples that serve as negatives.
        queue_warmup_batches (`int`, defaults to 0): batches before they do. The paper starts from pretrained encoders
            and needs none; from random weights the queue hinders the first steps.
        momentum (`float`, defaults to 0.995): of the teacher's moving average.
        distillation_alpha (`float`, defaults to 0.4): share of the teacher's soft targets in ITC and MLM.
        reference_quirks (`list[str]`, defaults to none): departures of the published code to reproduce, by name.
    """

    model_type = "vicha"
    sub_configs_defaults: ClassVar[dict] = {"vision_config": ViChaVisionConfig, "text_config": ViChaTextConfig}

    vision_config: dict | ViChaVisionConfig | None = None
    text_config: dict | ViChaTextConfig | None = None
    projection_dim: int = 256
    temperature_init: float = 0.07
    use_concepts: bool = True
    num_concept_layers: int = 2
    itc_weight: float | int = 1.0
    itm_weight: float | int = 1.0
    mlm_weight: float | int = 1.0
    hierarchical_itc_weight: float | int = 0.1
    hierarchical_itc_levels: int = 5
    hierarchical_itc_level_weights: list[float | int] | tuple[float | int, ...] | None = None
    mim_weight: float | int = 1.0
    mim_mode: str = "unimodal"
    mim_mask_ratio: float = 0.75
    mim_decoder_hidden_size: int = 768
    mim_decoder_layers: int = 2
    mim_decoder_heads: int = 16
    mlm_probability: float = 0.15
    queue_size: int = 65536
    queue_warmup_batches: int = 0
    momentum: float = 0.995
    distillation_alpha: float | int = 0.4
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    reference_quirks: list[str] | tuple[str, ...] = ()

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.text_config.encoder_hidden_size is None:
            self.text_config.encoder_hidden_size = self.vision_config.hidden_size

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As [`~transformers.PreTrainedConfig.from_dict`]; fields that `kwargs` override are validated too."""
        made = super().from_dict(config_dict, **kwargs)
        (made[0] if isinstance(made, tuple) else made).validate()
        return made

    def validate_architecture(self):
        """Part of `@strict`-powered validation. An impossible combination names the field, its value and the remedy."""
        vision, text = self.vision_config, self.text_config
        _require_positive(self, ("projection_dim",))
        for field in ("itc_weight", "itm_weight", "mlm_weight", "hierarchical_itc_weight", "mim_weight"):
            _require(
                getattr(self, field) >= 0, field, getattr(self, field), "weights are positive; 0 switches it off."
            )
        for field in ("mim_mask_ratio", "mlm_probability"):
            value = getattr(self, field)
            _require(0 < value < 1, field, value, "it is a share, strictly between 0 and 1.")
        for field in ("momentum", "distillation_alpha"):
            value = getattr(self, field)
            _require(0 <= value <= 1, field, value, "it lies between 0 and 1.")
        _require(self.temperature_init > 0, "temperature_init", self.temperature_init, "a temperature is positive.")
        _require(self.queue_size >= 0, "queue_size", self.queue_size, "use 0 for no queue.")
        _require(self.queue_warmup_batches >= 0, "queue_warmup_batches", self.queue_warmup_batches, "use 0 for none.")
        _require(
            text.encoder_hidden_size == vision.hidden_size,
            "text_config.encoder_hidden_size",
            text.encoder_hidden_size,
            f"cross-attention reads image tokens of vision_config.hidden_size={vision.hidden_size}; leave it unset.",
        )
        _require(
            0 <= self.num_concept_layers <= text.num_text_layers,
            "num_concept_layers",
            self.num_concept_layers,
            f"the concept encoder starts from the text layers, of which there are {text.num_text_layers}; "
            "0 uses the embeddings only.",
        )
        if self.hierarchical_itc_weight > 0:
            self._validate_hierarchy()
        if self.mim_weight > 0:
            self._validate_mim()
        unknown = sorted(set(self.reference_quirks) - set(VICHA_REFERENCE_QUIRKS))
        _require(not unknown, "reference_quirks", unknown, f"known names are {sorted(VICHA_REFERENCE_QUIRKS)}.")

    def _validate_hierarchy(self):
        levels, vision, text = self.hierarchical_itc_levels, self.vision_config, self.text_config
        deepest = min(text.num_text_layers, vision.num_hidden_layers - 1)
        _require(
            1 <= levels <= deepest,
            "hierarchical_itc_levels",
            levels,
            f"with {text.num_text_layers} text layers and {vision.num_hidden_layers} vision layers choose 1 to {deepest}, "
            "or set hierarchical_itc_weight=0.",
        )
        weights = self.hierarchical_itc_level_weights
        _require(
            weights is None or len(weights) == levels,
            "hierarchical_itc_level_weights",
            weights,
            f"give one weight for each of the hierarchical_itc_levels={levels} levels.",
        )

    def _validate_mim(self):
        vision, text, width = self.vision_config, self.text_config, self.mim_decoder_hidden_size
        _require(self.mim_mode in MIM_MODES, "mim_mode", self.mim_mode, f"choose one of {MIM_MODES}.")
        kept = int(vision.num_patches * (1 - self.mim_mask_ratio))
        _require(
            1 <= kept < vision.num_patches,
            "mim_mask_ratio",
            self.mim_mask_ratio,
            f"of the {vision.num_patches} patches at least one must stay and one must go ({kept} would stay).",
        )
        if self.mim_mode != "unimodal":
            _require(
                vision.hidden_size == text.hidden_size,
                "mim_mode",
                self.mim_mode,
                "image tokens run through the fusion layers, so vision_config.hidden_size "
                f"({vision.hidden_size}) and text_config.hidden_size ({text.hidden_size}) must be equal; "
                'use mim_mode="unimodal" otherwise.',
            )
        if self.mim_mode == "both":
            _require(
                width == vision.hidden_size,
                "mim_decoder_hidden_size",
                width,
                'mim_mode="both" shares one mask token between the branches, so it must equal '
                f"vision_config.hidden_size={vision.hidden_size}.",
            )
        if self.mim_mode != "crossmodal":
            _require_positive(self, ("mim_decoder_hidden_size", "mim_decoder_layers", "mim_decoder_heads"))
            _require(
                width % self.mim_decoder_heads == 0 and width % 4 == 0,
                "mim_decoder_hidden_size",
                width,
                f"it must be a multiple of mim_decoder_heads={self.mim_decoder_heads} and of 4 (2-D sin-cos positions).",
            )


__all__ = [
    "ALBEF_REFERENCE_QUIRKS",
    "VICHA_REFERENCE_QUIRKS",
    "ViChaConfig",
    "ViChaTextConfig",
    "ViChaVisionConfig",
]
