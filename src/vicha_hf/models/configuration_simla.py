"""Configuration of SIMLA (arXiv 2203.14395)."""

from typing import ClassVar, Literal

from huggingface_hub.dataclasses import strict

from .configuration_vision_text import TextConfig, VisionConfig, VisionTextConfig, require, require_positive


# Departures of the published code from its paper's maths; what each one is stands in the documentation's list of quirks.
SIMLA_REFERENCE_QUIRKS = (
    "itc_local_columns",
    "mlm_softmax_over_sequence",
    "simla_teacher_online_inputs",
    "psl_any_position",
    "vqa_alpha_unused",
    "vqa_first_token_twice",
    "gradcam_all_positions",
    "decay_embeddings",
    "no_final_sep",
)


@strict
class SimlaVisionConfig(VisionConfig):
    """The vision transformer (ViT-B/16 by default); fields as in [`VisionConfig`]."""

    model_type = "simla_vision_model"


@strict
class SimlaTextConfig(TextConfig):
    r"""
    The single-stream text encoder (BERT-base layout): every layer has a cross-attention, which *text* mode skips.
    Further fields as in [`TextConfig`].

    Args:
        first_doubled_layer (`int`, *optional*): the first layer that the visual-reasoning heads double, and that the
            answer decoder starts from. Half of the layers by default (6 of 12, as published).
        type_vocab_size (`int`, defaults to 0): token types; none, but 2 in the published visual-reasoning models.
        unk_token_id (`int`, defaults to 100): id of unknown words, which are never keywords.
    """

    model_type = "simla_text_model"
    special_token_fields: ClassVar[tuple[str, ...]] = (*TextConfig.special_token_fields, "unk_token_id")

    first_doubled_layer: int | None = None
    type_vocab_size: int = 0
    unk_token_id: int | None = 100

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.first_doubled_layer is None:
            self.first_doubled_layer = self.num_hidden_layers // 2

    @property
    def num_text_layers(self) -> int:
        """Layers that *text* mode runs: all of them."""
        return self.num_hidden_layers

    @property
    def first_cross_attention_layer(self) -> int:
        return 0

    @property
    def fusion_mode(self) -> Literal["fusion", "multimodal"]:
        """A text is fused anew from its ids."""
        return "multimodal"

    @property
    def special_token_ids(self) -> tuple[int, ...]:
        """Ids that are no words."""
        values = (getattr(self, field) for field in self.special_token_fields)
        return tuple(sorted({value for value in values if value is not None}))

    def validate_architecture(self):
        """Part of `@strict`-powered validation."""
        super().validate_architecture()
        require(
            0 <= self.first_doubled_layer < self.num_hidden_layers,
            "text_config.first_doubled_layer",
            self.first_doubled_layer,
            f"choose it between 0 and text_config.num_hidden_layers - 1 = {self.num_hidden_layers - 1}.",
        )


@strict
class SimlaConfig(VisionTextConfig):
    r"""
    A SIMLA model and its training objectives; fields that are not listed here as in [`VisionTextConfig`]. An objective
    whose weight is 0 is off and has no parameters.

    Args:
        vision_config (`SimlaVisionConfig` or `dict`, *optional*): the vision encoder.
        text_config (`SimlaTextConfig` or `dict`, *optional*): the single-stream text encoder.
        mim_weight (`float`, defaults to 1): reconstruction of masked patches as visual tokens, the image half of the
            symmetric cross-modality reconstruction; `mlm_weight` is its text half.
        visual_vocab_size (`int`, defaults to 8192): visual tokens that there are (the DALL-E codebook's).
        mim_max_masked_patches (`int`, defaults to 75): patches that are masked at most, of 256 in the paper.
        mim_min_block_patches (`int`, defaults to 16): patches of the smallest masked block.
        mim_min_block_aspect (`float`, defaults to 0.3): height over width of the flattest masked block; the tallest has
            the inverse.
        psl_weight (`float`, defaults to 1): prediction of the caption's keywords from the image's feature.
        psl_num_keywords (`int`, defaults to 5): keywords of a caption.
        psl_votes_per_head (`int`, defaults to 4): tokens that each attention head nominates.
    """

    model_type = "simla"
    sub_configs_defaults: ClassVar[dict] = {"vision_config": SimlaVisionConfig, "text_config": SimlaTextConfig}
    weight_fields: ClassVar[tuple[str, ...]] = (*VisionTextConfig.weight_fields, "mim_weight", "psl_weight")
    known_quirks: ClassVar[tuple[str, ...]] = SIMLA_REFERENCE_QUIRKS
    # Data pipelines ask every configuration; SIMLA's images come without visual concepts.
    use_concepts: ClassVar[bool] = False

    vision_config: dict | SimlaVisionConfig | None = None
    text_config: dict | SimlaTextConfig | None = None
    mim_weight: float | int = 1.0
    visual_vocab_size: int = 8192
    mim_max_masked_patches: int = 75
    mim_min_block_patches: int = 16
    mim_min_block_aspect: float = 0.3
    psl_weight: float | int = 1.0
    psl_num_keywords: int = 5
    psl_votes_per_head: int = 4

    def validate_architecture(self):
        """Part of `@strict`-powered validation. An impossible combination names the field, its value and the remedy."""
        super().validate_architecture()
        if self.mim_weight > 0:
            self._validate_mim()
        if self.psl_weight > 0:
            require_positive(self, ("psl_num_keywords", "psl_votes_per_head"))

    def _validate_mim(self):
        vision, text = self.vision_config, self.text_config
        require_positive(self, ("visual_vocab_size", "mim_min_block_patches"))
        require(
            vision.hidden_size == text.hidden_size,
            "vision_config.hidden_size",
            vision.hidden_size,
            "image tokens run through the text encoder and read its embeddings, so it must equal "
            f"text_config.hidden_size={text.hidden_size}; use mim_weight=0 otherwise.",
        )
        require(
            text.max_position_embeddings >= vision.num_patches + 1,
            "text_config.max_position_embeddings",
            text.max_position_embeddings,
            f"[CLS] and {vision.num_patches} patches get text positions: choose {vision.num_patches + 1} or more, "
            "or mim_weight=0.",
        )
        require(
            self.mim_min_block_patches <= self.mim_max_masked_patches < vision.num_patches,
            "mim_max_masked_patches",
            self.mim_max_masked_patches,
            f"of the {vision.num_patches} patches at least one stays, and a block of mim_min_block_patches="
            f"{self.mim_min_block_patches} must fit (paper: 75 of 256, blocks of 16 or more); lower both for small images.",
        )
        require(
            0 < self.mim_min_block_aspect <= 1,
            "mim_min_block_aspect",
            self.mim_min_block_aspect,
            "it is the smaller side over the larger: above 0, at most 1.",
        )


__all__ = ["SIMLA_REFERENCE_QUIRKS", "SimlaConfig", "SimlaTextConfig", "SimlaVisionConfig"]
