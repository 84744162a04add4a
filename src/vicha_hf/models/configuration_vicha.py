"""Configuration of ViCHA (arXiv 2208.13628) and, with concepts, hierarchy and image modelling off, ALBEF (arXiv 2107.07651)."""

from typing import ClassVar, Literal

from huggingface_hub.dataclasses import strict

from .configuration_vision_text import TextConfig, VisionConfig, VisionTextConfig, require, require_positive


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


@strict
class ViChaVisionConfig(VisionConfig):
    """The vision transformer (ViT-B/16 by default; ViCHA section 4.1); fields as in [`VisionConfig`]."""

    model_type = "vicha_vision_model"


@strict
class ViChaTextConfig(TextConfig):
    r"""
    The text encoder (BERT-base layout) whose last layers fuse text with image tokens by cross-attention; further fields
    as in [`TextConfig`].

    Args:
        fusion_layer (`int`, defaults to 6): the first layer with cross-attention; layers before it are text only.
    """

    model_type = "vicha_text_model"

    fusion_layer: int = 6

    @property
    def num_text_layers(self) -> int:
        """Layers that *text* mode runs."""
        return self.fusion_layer

    @property
    def first_cross_attention_layer(self) -> int:
        return self.fusion_layer

    @property
    def fusion_mode(self) -> Literal["fusion", "multimodal"]:
        """The fusion layers go on from a text's states."""
        return "fusion"

    @property
    def first_doubled_layer(self) -> int:
        """The first layer that reasoning doubles, and the first that the answer decoder starts from."""
        return self.fusion_layer

    def validate_architecture(self):
        """Part of `@strict`-powered validation."""
        super().validate_architecture()
        require(
            0 < self.fusion_layer < self.num_hidden_layers,
            "text_config.fusion_layer",
            self.fusion_layer,
            "text and fusion each need a layer: choose it between 1 and "
            f"text_config.num_hidden_layers - 1 = {self.num_hidden_layers - 1}.",
        )


@strict
class ViChaConfig(VisionTextConfig):
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
        share_word_embeddings (`bool`, defaults to `False`): whether captions and concepts have one table of word
            embeddings. From random weights and few images, what a caption teaches about a word then helps to read concepts.
        concept_shortcut (`bool`, defaults to `False`): whether the concepts are also read as a text is, and count in the
            image's embedding in equal parts with [CLS]. What they say then counts from the first step; with few images
            the vision encoder does not learn to pass it on. Not of the paper.
        hierarchical_itc_weight (`float`, defaults to 0.1): contrast between intermediate levels (ViCHA section 3.1).
        hierarchical_itc_levels (`int`, defaults to 5): how many levels below the top are aligned. Choose fewer than text
            layers. With as many, the lowest level is the embedding of [CLS], which is the same for every text.
        hierarchical_itc_level_weights (`list[float]`, *optional*): one weight per level, lowest first; all 1 by default.
        mim_weight (`float`, defaults to 1): masked image modelling (ViCHA section 3.3).
        mim_mode (`str`, defaults to `"unimodal"`): `"unimodal"` reconstructs from the kept patches through a small
            decoder, `"crossmodal"` through the fusion layers with the text as keys, `"both"` averages the two.
        mim_mask_ratio (`float`, defaults to 0.75): share of the patches that is removed.
        mim_fraction (`float`, defaults to 1): share of a batch's images that are reconstructed, at least one; fewer save
            time (not of the paper).
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
    weight_fields: ClassVar[tuple[str, ...]] = (
        *VisionTextConfig.weight_fields,
        "hierarchical_itc_weight",
        "mim_weight",
    )
    share_fields: ClassVar[tuple[str, ...]] = ("mim_mask_ratio", *VisionTextConfig.share_fields)
    known_quirks: ClassVar[tuple[str, ...]] = VICHA_REFERENCE_QUIRKS

    vision_config: dict | ViChaVisionConfig | None = None
    text_config: dict | ViChaTextConfig | None = None
    use_concepts: bool = True
    num_concept_layers: int = 2
    share_word_embeddings: bool = False
    concept_shortcut: bool = False
    hierarchical_itc_weight: float | int = 0.1
    hierarchical_itc_levels: int = 5
    hierarchical_itc_level_weights: list[float | int] | tuple[float | int, ...] | None = None
    mim_weight: float | int = 1.0
    mim_mode: str = "unimodal"
    mim_mask_ratio: float = 0.75
    mim_fraction: float | int = 1.0
    mim_decoder_hidden_size: int = 768
    mim_decoder_layers: int = 2
    mim_decoder_heads: int = 16

    def validate_architecture(self):
        """Part of `@strict`-powered validation. An impossible combination names the field, its value and the remedy."""
        super().validate_architecture()
        text = self.text_config
        require(
            0 <= self.num_concept_layers <= text.num_text_layers,
            "num_concept_layers",
            self.num_concept_layers,
            f"the concept encoder starts from the text layers, of which there are {text.num_text_layers}; "
            "0 uses the embeddings only.",
        )
        require(
            self.use_concepts or not self.concept_shortcut,
            "concept_shortcut",
            self.concept_shortcut,
            "a model with use_concepts=False has no concepts to read.",
        )
        if self.hierarchical_itc_weight > 0:
            self._validate_hierarchy()
        if self.mim_weight > 0:
            self._validate_mim()

    def _validate_hierarchy(self):
        levels, vision, text = self.hierarchical_itc_levels, self.vision_config, self.text_config
        deepest = min(text.num_text_layers, vision.num_hidden_layers - 1)
        require(
            1 <= levels <= deepest,
            "hierarchical_itc_levels",
            levels,
            f"with {text.num_text_layers} text layers and {vision.num_hidden_layers} vision layers choose 1 to {deepest}, "
            "or set hierarchical_itc_weight=0.",
        )
        weights = self.hierarchical_itc_level_weights
        require(
            weights is None or len(weights) == levels,
            "hierarchical_itc_level_weights",
            weights,
            f"give one weight for each of the hierarchical_itc_levels={levels} levels.",
        )

    def _validate_mim(self):
        vision, text, width = self.vision_config, self.text_config, self.mim_decoder_hidden_size
        require(self.mim_mode in MIM_MODES, "mim_mode", self.mim_mode, f"choose one of {MIM_MODES}.")
        kept = int(vision.num_patches * (1 - self.mim_mask_ratio))
        require(
            1 <= kept < vision.num_patches,
            "mim_mask_ratio",
            self.mim_mask_ratio,
            f"of the {vision.num_patches} patches at least one must stay and one must go ({kept} would stay).",
        )
        require(
            0 < self.mim_fraction <= 1,
            "mim_fraction",
            self.mim_fraction,
            "choose it above 0 and at most 1, or set mim_weight=0.",
        )
        if self.mim_mode != "unimodal":
            require(
                vision.hidden_size == text.hidden_size,
                "mim_mode",
                self.mim_mode,
                "image tokens run through the fusion layers, so vision_config.hidden_size "
                f"({vision.hidden_size}) and text_config.hidden_size ({text.hidden_size}) must be equal; "
                'use mim_mode="unimodal" otherwise.',
            )
        if self.mim_mode == "both":
            require(
                width == vision.hidden_size,
                "mim_decoder_hidden_size",
                width,
                'mim_mode="both" shares one mask token between the branches, so it must equal '
                f"vision_config.hidden_size={vision.hidden_size}.",
            )
        if self.mim_mode != "crossmodal":
            require_positive(self, ("mim_decoder_hidden_size", "mim_decoder_layers", "mim_decoder_heads"))
            require(
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
