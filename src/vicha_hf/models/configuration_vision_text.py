"""Base of every family's configuration: encoder sizes, the joint space, and the objectives of the common base."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from .random_draws import num_kept_patches


# Grad-CAM of the matching head, or of the similarity.
GROUNDING_METHODS = ("itm", "itc")
TEXT_POOLINGS = ("first", "mean")
STEMS = ("patchify", "convolutional")

# What transformers writes into a configuration, or takes when it makes one, besides the fields of `PreTrainedConfig`.
TRANSFORMERS_FIELDS = frozenset(
    {
        *(field.name for field in dataclasses.fields(PreTrainedConfig)),
        *("model_type", "auto_map", "custom_pipelines", "quantization_config", "torch_dtype", "num_labels"),
        *("attn_implementation", "experts_implementation", "output_attentions", "name_or_path", "per_layer_config"),
    }
)
ENCODER_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def require(condition: bool, field: str, value: object, remedy: str) -> None:
    """Raises a `ValueError` that names a configuration's field, its value and the remedy unless `condition` holds."""
    if not condition:
        raise ValueError(f"`{field}={value!r}` is not possible: {remedy}")


def require_positive(config: PreTrainedConfig, fields: tuple[str, ...], prefix: str = "") -> None:
    """All the `fields` of `config` are 1 or more; `prefix` stands before their names in the error."""
    for field in fields:
        value = getattr(config, field)
        require(value >= 1, prefix + field, value, "it counts something: choose 1 or more.")


def known_fields(config_class: type[PreTrainedConfig]) -> set[str]:
    """Names that a configuration may be given: its own, and those that transformers reads and writes in every one."""
    return {field.name for field in dataclasses.fields(config_class)} | TRANSFORMERS_FIELDS


def require_known_fields(config_class: type[PreTrainedConfig], given: Mapping[str, object], prefix: str = "") -> None:
    """
    Raises a `ValueError` that names a field which a configuration does not have, and the nearest one that it has.

    Args:
        config_class: of the configuration.
        given: fields by name; those of its parts may stand in mappings.
        prefix: stands before the names in the error.
    """
    for name, value in given.items():
        if name in config_class.sub_configs and isinstance(value, Mapping):
            require_known_fields(config_class.sub_configs[name], value, f"{prefix}{name}.")
        # transformers keeps notes of its own under such names.
        if name.startswith("_") or name in known_fields(config_class):
            continue
        own = known_fields(config_class) - TRANSFORMERS_FIELDS
        near = get_close_matches(name, own, n=1, cutoff=0.5)
        hint = f"did you mean {prefix}{near[0]}?" if near else f"it has {', '.join(sorted(own))}."
        require(False, prefix + name, value, f"{config_class.__name__} has no such field; {hint}")


class CheckedConfig(PreTrainedConfig):
    """A configuration that refuses what it does not know, and numbers that are infinite or NaN."""

    def __post_init__(self, **kwargs):
        prefix = f"{self.base_config_key}." if self.base_config_key else ""
        require_known_fields(type(self), kwargs, prefix)
        super().__post_init__(**kwargs)

    def validate_numbers(self):
        """Part of `@strict`-powered validation."""
        prefix = f"{self.base_config_key}." if self.base_config_key else ""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            numbers = value if isinstance(value, list | tuple) else [value]
            finite = all(math.isfinite(number) for number in numbers if isinstance(number, float))
            require(finite, prefix + field.name, value, "it must be finite.")


@dataclass(frozen=True)
class ReferenceQuirks:
    """
    Departures of the published code from its papers' maths that a model reproduces; a new model has none, a converted one those of its family.

    Args:
        itc_local_columns: contrast compares with the own process's batch and the queue alone.
        hitc_local_diagonal: hierarchical contrast finds its positives on the diagonal on every process.
        unmasked_concepts: padded concept tokens are attended to.
        mim_cls_without_position: [CLS] enters masked image modelling without its position.
        mlm_softmax_over_sequence: the soft targets' log-softmax runs over positions.
        simla_teacher_online_inputs: the teacher reads the online model's image states and text embeddings.
        psl_any_position: padding and special tokens may be keywords.
        vqa_alpha_unused: question answering is not distilled.
        vqa_first_token_twice: ranking counts the first answer token twice.
        nlvr_online_teacher: the teacher of reasoning sees images through the online vision encoder.
        gradcam_all_positions: heat maps average over all text positions.
        decay_embeddings: weight decay reaches positions, [CLS], mask token and temperature.
        temperature_unclamped: retrieval leaves the temperature without bounds.
        no_final_sep: texts end without [SEP].
    """

    itc_local_columns: bool = False
    hitc_local_diagonal: bool = False
    unmasked_concepts: bool = False
    mim_cls_without_position: bool = False
    mlm_softmax_over_sequence: bool = False
    simla_teacher_online_inputs: bool = False
    psl_any_position: bool = False
    vqa_alpha_unused: bool = False
    vqa_first_token_twice: bool = False
    nlvr_online_teacher: bool = False
    gradcam_all_positions: bool = False
    decay_embeddings: bool = False
    temperature_unclamped: bool = False
    no_final_sep: bool = False

    @classmethod
    def named(cls, names: Iterable[str]) -> "ReferenceQuirks":
        """The departures with these names."""
        return cls(**dict.fromkeys(names, True))


def name_classes(config: PreTrainedConfig, classes: Sequence[str]) -> None:
    """Writes a head's classes into its configuration, as `id2label` and `label2id`."""
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: index for index, name in enumerate(classes)}


@strict
class VisionConfig(CheckedConfig):
    r"""
    The vision transformer (ViT-B/16 by default).

    Args:
        image_size (`int`, defaults to 256): side of the square input, pixels. Pixels beyond the last whole patch are unused.
        patch_size (`int`, defaults to 16): side of a patch, pixels.
        stem (`str`, defaults to `"patchify"`): patches are embedded by one linear map. `"convolutional"` takes a few small
            convolutions (arXiv 2106.14881), which learn far more from few images; not of the papers.
        stem_initializer_range (`float`, *optional*): standard deviation that the stem's last convolution starts with; defaults
            to `initializer_range`. Where patches' embeddings are small beside what the layers add, all patches of an image
            soon look alike.
        layer_norm_eps (`float`, defaults to 1e-6): of the blocks and of the final norm.
    """

    base_config_key = "vision_config"

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 256
    patch_size: int = 16
    stem: str = "patchify"
    stem_initializer_range: float | None = None
    hidden_act: str = "gelu"
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-6
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    initializer_range: float = 0.02

    @property
    def grid_size(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        return self.grid_size**2

    def validate_architecture(self):
        """Part of `@strict`-powered validation."""
        require_positive(self, (*ENCODER_SIZES, "num_channels", "patch_size"), "vision_config.")
        require(
            self.hidden_size % self.num_attention_heads == 0,
            "vision_config.num_attention_heads",
            self.num_attention_heads,
            f"it must divide vision_config.hidden_size={self.hidden_size}.",
        )
        require(
            self.image_size >= self.patch_size,
            "vision_config.image_size",
            self.image_size,
            f"it must hold at least one patch of vision_config.patch_size={self.patch_size} pixels.",
        )
        require(self.stem in STEMS, "vision_config.stem", self.stem, f"choose one of {STEMS}.")
        if self.stem == "convolutional":
            self._check_convolutions()
        require(
            self.stem_initializer_range is None or (self.stem == "convolutional" and self.stem_initializer_range > 0),
            "vision_config.stem_initializer_range",
            self.stem_initializer_range,
            "it is above 0 with stem='convolutional', and null with any other.",
        )

    def _check_convolutions(self) -> None:
        """Each convolution halves the patch and, but for the first, doubles the width."""
        size, width = self.patch_size, self.hidden_size
        require(
            size > 1 and size & (size - 1) == 0,
            "vision_config.patch_size",
            size,
            "a convolutional stem needs a power of two, 2 or more.",
        )
        require(
            width % (size // 2) == 0,
            "vision_config.hidden_size",
            width,
            f"a convolutional stem for patches of {size} pixels needs a multiple of {size // 2}.",
        )


@strict
class TextConfig(CheckedConfig):
    r"""
    A text encoder (BERT-base layout) with cross-attention to image tokens. A family says which of its layers read text
    alone, which have cross-attention, and which its task heads double or copy.

    Args:
        encoder_hidden_size (`int`, *optional*): width of the tokens that cross-attention reads; defaults to the
            vision encoder's width.
        type_vocab_size (`int`): token types; 0 for no token-type embeddings.
        mask_token_id (`int`, defaults to 103): id that replaces predicted tokens in masked language modelling.
    """

    base_config_key = "text_config"
    special_token_fields: ClassVar[tuple[str, ...]] = ("pad_token_id", "cls_token_id", "sep_token_id", "mask_token_id")

    vocab_size: int = 30522
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
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
        raise NotImplementedError

    @property
    def first_cross_attention_layer(self) -> int:
        """The first layer with cross-attention."""
        raise NotImplementedError

    @property
    def fusion_mode(self) -> Literal["fusion", "multimodal"]:
        """Mode of fusing a text that is encoded: from its states on (*fusion*), or from its ids (*multimodal*)."""
        raise NotImplementedError

    def validate_architecture(self):
        """Part of `@strict`-powered validation."""
        require_positive(self, (*ENCODER_SIZES, "vocab_size", "max_position_embeddings"), "text_config.")
        require(
            self.hidden_size % self.num_attention_heads == 0,
            "text_config.num_attention_heads",
            self.num_attention_heads,
            f"it must divide text_config.hidden_size={self.hidden_size}.",
        )
        for field in self.special_token_fields:
            value = getattr(self, field)
            require(
                value is None or 0 <= value < self.vocab_size,
                f"text_config.{field}",
                value,
                f"token ids lie below text_config.vocab_size={self.vocab_size}; copy them from the tokenizer.",
            )


@strict
class VisionTextConfig(CheckedConfig):
    r"""
    Two encoders, a joint space, and the objectives that every family has (ALBEF, arXiv 2107.07651, section 3). An
    objective whose weight is 0 is off and has no parameters.

    Args:
        vision_config (`VisionConfig` or `dict`, *optional*): the vision encoder.
        text_config (`TextConfig` or `dict`, *optional*): the text encoder.
        projection_dim (`int`, defaults to 256): width of the joint embedding space.
        text_pooling (`str`, defaults to `"first"`): the state of a text that is embedded in the joint space, of its first
            token (`"first"`) or the mean of all (`"mean"`). Sentence encoders are trained for the mean.
        temperature_init (`float`, defaults to 0.07): initial softmax temperature, learned, kept in [0.001, 0.5].
        itc_weight, itm_weight, mlm_weight (`float`, default 1): image-text contrast, matching, masked language modelling.
        itm_label_smoothing (`float`, defaults to 0): share of a pair's label that matching gives to both answers alike
            (Szegedy et al., arXiv 1512.00567, section 7; not of these papers). A negative may describe its image as well.
        mlm_probability (`float`, defaults to 0.15): share of the tokens that is predicted.
        patch_dropout (`float`, defaults to 0): share of each image's patches that a pretraining step leaves out, drawn anew
            each time (FLIP, arXiv 2212.00794; not of these papers). Contrast and fusion see the rest; the teacher and masked
            image modelling, which has a mask of its own, see what they always see.
        cross_process_negatives (`bool`, defaults to `False`): draw the hard negatives of matching from the batch of
            all processes. The drawn images and texts travel, with their gradient.
        queue_size (`int`, defaults to 65536): teacher features of past samples that serve as negatives.
        queue_warmup_batches (`int`, defaults to 0): batches before they do. The papers start from pretrained encoders
            and need none; from random weights the queue hinders the first steps.
        momentum (`float`, defaults to 0.995): of the teacher's moving average.
        distillation_alpha (`float`, defaults to 0.4): share of the teacher's soft targets.
        rerank_similarity_weight (`float`, defaults to 0): what similarity / temperature counts beside the match logit when
            retrieval re-ranks; 0 is the published score. Fine-tuning for retrieval chooses it on the validation data.
        grounding_method (`str`, defaults to `"itm"`): Grad-CAM that grounding uses, of the matching head (`"itm"`) or of
            the similarity (`"itc"`). Fine-tuning for grounding chooses it on the validation data.
        grounding_layer (`int`, *optional*): layer of that Grad-CAM, 0-based. By default two thirds up, the published layer 8
            of 12. Fine-tuning for grounding chooses it on the validation data.
        reference_quirks (`list[str]`, defaults to none): departures of the published code to reproduce, by name.
    """

    # What a family adds to these is checked with them.
    weight_fields: ClassVar[tuple[str, ...]] = ("itc_weight", "itm_weight", "mlm_weight")
    share_fields: ClassVar[tuple[str, ...]] = ("mlm_probability",)
    known_quirks: ClassVar[tuple[str, ...]] = ()
    # Outputs that transformers' Trainer does not gather: they are no numbers per sample, or large.
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        *("temperature", "distillation_alpha", "last_hidden_state", "question_hidden_states"),
        *("hidden_states", "attentions", "cross_attentions"),
    ]

    vision_config: dict | VisionConfig | None = None
    text_config: dict | TextConfig | None = None
    projection_dim: int = 256
    text_pooling: str = "first"
    temperature_init: float = 0.07
    itc_weight: float | int = 1.0
    itm_weight: float | int = 1.0
    mlm_weight: float | int = 1.0
    itm_label_smoothing: float | int = 0.0
    mlm_probability: float = 0.15
    patch_dropout: float | int = 0.0
    cross_process_negatives: bool = False
    queue_size: int = 65536
    queue_warmup_batches: int = 0
    momentum: float = 0.995
    distillation_alpha: float | int = 0.4
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    rerank_similarity_weight: float | int = 0.0
    grounding_method: str = "itm"
    grounding_layer: int | None = None
    reference_quirks: list[str] | tuple[str, ...] = ()

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.text_config.encoder_hidden_size is None:
            self.text_config.encoder_hidden_size = self.vision_config.hidden_size

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """
        Makes a configuration as [`~transformers.PreTrainedConfig.from_dict`] does; fields that `kwargs` override are
        validated too. A `ValueError` names a model of another family.
        """
        family = config_dict.get("model_type", cls.model_type)
        require(
            family == cls.model_type,
            "model_type",
            family,
            f"{cls.__name__} is for {cls.model_type!r}; load the folder with an Auto class, or a class of its own family.",
        )
        if not __name__.startswith("transformers_modules."):
            # The package registers the pipelines itself; transformers would ask to trust those of the folder.
            config_dict = {name: value for name, value in config_dict.items() if name != "custom_pipelines"}
        made = super().from_dict(config_dict, **kwargs)
        if not isinstance(made, tuple):
            # Other names are options of a loader, which transformers passes on to every configuration.
            own = known_fields(cls)
            misspelt = [name for name in kwargs if name not in own and get_close_matches(name, own, n=1, cutoff=0.8)]
            require_known_fields(cls, {name: kwargs[name] for name in misspelt})
        (made[0] if isinstance(made, tuple) else made).validate()
        return made

    @property
    def quirks(self) -> ReferenceQuirks:
        """`reference_quirks` as an object that answers by name."""
        return ReferenceQuirks.named(self.reference_quirks)

    def heatmap_layers(self, method: str) -> range:
        """Layers, 0-based, whose attention grounds: of the text encoder with the image (`"itm"`) or of the ViT (`"itc"`)."""
        if method == "itm":
            return range(self.text_config.first_cross_attention_layer, self.text_config.num_hidden_layers)
        return range(self.vision_config.num_hidden_layers)

    def heatmap_layer(self, method: str) -> int:
        """The layer that grounds: `grounding_layer` where it was chosen for this method, or two thirds up."""
        if self.grounding_layer is not None and method == self.grounding_method:
            return self.grounding_layer
        layers = self.heatmap_layers(method)
        return max(layers.start, layers.stop * 2 // 3)

    def validate_architecture(self):
        """Part of `@strict`-powered validation. An impossible combination names the field, its value and the remedy."""
        vision, text = self.vision_config, self.text_config
        unknown = sorted(set(self.reference_quirks) - set(self.known_quirks))
        require(not unknown, "reference_quirks", unknown, f"known names are {sorted(self.known_quirks)}.")
        require_positive(self, ("projection_dim",))
        for field in self.weight_fields:
            require(getattr(self, field) >= 0, field, getattr(self, field), "weights are positive; 0 switches it off.")
        for field in self.share_fields:
            value = getattr(self, field)
            require(0 < value < 1, field, value, "it is a share, strictly between 0 and 1.")
        smoothing = self.itm_label_smoothing
        require(0 <= smoothing < 1, "itm_label_smoothing", smoothing, "it is a share: at least 0, less than 1.")
        for field in ("momentum", "distillation_alpha"):
            value = getattr(self, field)
            require(0 <= value <= 1, field, value, "it lies between 0 and 1.")
        require(
            not (self.cross_process_negatives and self.quirks.itc_local_columns),
            "cross_process_negatives",
            True,
            "with the quirk `itc_local_columns` no similarity with other processes is known; leave one of them out.",
        )
        require(
            0 <= self.patch_dropout < 1 and num_kept_patches(vision.num_patches, self.patch_dropout) >= 1,
            "patch_dropout",
            self.patch_dropout,
            f"it is the share of the {vision.num_patches} patches that is left out, at least 0, and one patch must stay.",
        )
        require(self.temperature_init > 0, "temperature_init", self.temperature_init, "a temperature is positive.")
        require(
            self.text_pooling in TEXT_POOLINGS, "text_pooling", self.text_pooling, f"choose one of {TEXT_POOLINGS}."
        )
        weight = self.rerank_similarity_weight
        require(0 <= weight < math.inf, "rerank_similarity_weight", weight, "choose 0 or more.")
        require(
            self.grounding_method in GROUNDING_METHODS,
            "grounding_method",
            self.grounding_method,
            f"choose one of {GROUNDING_METHODS}.",
        )
        layers = self.heatmap_layers(self.grounding_method)
        require(
            self.grounding_layer is None or self.grounding_layer in layers,
            "grounding_layer",
            self.grounding_layer,
            f"with grounding_method={self.grounding_method!r} this model has layers {layers.start} to {layers.stop - 1}.",
        )
        require(self.queue_size >= 0, "queue_size", self.queue_size, "use 0 for no queue.")
        require(self.queue_warmup_batches >= 0, "queue_warmup_batches", self.queue_warmup_batches, "use 0 for none.")
        require(
            text.encoder_hidden_size == vision.hidden_size,
            "text_config.encoder_hidden_size",
            text.encoder_hidden_size,
            f"cross-attention reads image tokens of vision_config.hidden_size={vision.hidden_size}; leave it unset.",
        )
