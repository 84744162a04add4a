"""Arguments of pretraining, and the model and processor that they describe."""

import logging
from dataclasses import dataclass, field
from typing import Any, Literal

from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from ..arguments import require
from ..data.reading_arguments import ReadingArguments
from ..families import HEADS, PROCESSORS, find_model_folder, head_class, read_config, require_there
from ..models.configuration_vision_text import require_known_fields
from ..models.modeling_vision_text import VisionTextPreTrainedModel
from ..models.objective_image_token_reconstruction import require_fitting_tokenizer
from ..models.pretrained_encoders import ENCODERS, copy_matching_weights
from ..models.processing_vision_text import VisionTextProcessor
from ..text_tokenizers import require_fitting_length, require_fitting_vocabulary, special_tokens
from ..visual_tokens.loading import load_visual_tokenizer
from ..visual_tokens.storage import VisualTokenStore
from ..visual_tokens.tokenizer import VisualTokenizer
from ..weight_files import require_weights_of_folder
from .adapters import TrainedPartsArguments, choose_trained_parts
from .argument_checks import check_model_fields, check_training_data
from .arguments import TrainingArguments


DEFAULT_FAMILY = "vicha"

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class ModelArguments(TrainedPartsArguments):
    """Options of the model to train. It starts from a folder of this library, from two separate encoders, or from
    random weights; a new model can take what fits from a folder of this library.

    Args:
        family: "vicha" (ALBEF too) or "simla"; null takes ViCHA, or the family of model.from_pretrained.
        from_pretrained: Folder or Hub id of a pretrained model to continue from.
        weights_from: Folder or Hub id of a pretrained model of the family that a new model takes its weights from, wherever names and shapes are the same. A concept encoder that is not there takes those of the text encoder, as the paper's takes BERT's. The rest starts from random weights.
        vision: Folder or Hub id of a ViT or DeiT to start the vision encoder from (paper: DeiT-B); null starts it from random weights.
        text: Folder or Hub id of a BERT to start the text and concept encoders from (paper: bert-base-uncased); null starts them from random weights.
        image_size: Side of the images in pixels, to continue from a folder at another size; the positions are interpolated to it. Null keeps the folder's.
        config: Fields of the family's configuration; with `from_pretrained` they override the folder's.
        vision_config: Fields of the family's vision configuration.
        text_config: Fields of the family's text configuration; vocabulary size (of a new encoder) and special tokens are copied from the tokenizer.
        freeze: Parts of the model whose weights stay as they are: vision_model, text_model, concept_model, or parts of these with dots (text_model.embeddings).
        lora: Train low-rank adapters in the encoders instead of their weights (peft); e.g. `--model.lora.r 16`. Encoders that are frozen get none. Saved models have the adapters merged into the weights.
    """

    family: str | None = None
    from_pretrained: str | None = None
    weights_from: str | None = None
    vision: str | None = None
    text: str | None = None
    image_size: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    vision_config: dict[str, Any] = field(default_factory=dict)
    text_config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        families = sorted(HEADS)
        require(
            self.family is None or self.family in families, "model.family", self.family, f"choose one of {families}."
        )
        check_model_fields(
            self, "it changes the size of model.from_pretrained; of a new model set model.vision_config.image_size."
        )
        if self.weights_from is not None:
            for name in ("vision", "text"):
                value = getattr(self, name)
                remedy = f"model.weights_from={self.weights_from!r} has both encoders."
                require(value is None, f"model.{name}", value, remedy)
        if self.from_pretrained is not None:
            for name in ("family", "weights_from", "vision", "text", "vision_config", "text_config"):
                value = getattr(self, name)
                remedy = f"model.from_pretrained={self.from_pretrained!r} decides it."
                if name.endswith("_config"):
                    remedy += f" --model.{name} {{}} leaves out a recipe's."
                if name == "vision_config" and "image_size" in (value or {}):
                    remedy += " Give another size of the images as model.image_size."
                require(not value, f"model.{name}", value, remedy)


@dataclass(kw_only=True)
class DataArguments(ReadingArguments):
    """Options of the data to train on. Annotations are JSON lists, JSONL files or datasets, written {path:
    organisation/name, split: train}.

    Args:
        train: One source of image-text records, or a list of sources.
        validation: Source of the images and captions of the retrieval evaluation; null evaluates nothing.
        image_root: Folder that relative image paths start from, or a list of one for each source; null takes each annotation file's own folder. A source written as {path: ..., image_root: ...} has its own.
        on_bad_record: "raise" refuses annotations with bad records, "skip" leaves such records out and counts them; an image that turns out broken in training is replaced by another draw.
        allow_outside_root: Whether absolute image paths may lead out of the image root.
        shuffle_buffer: Records of a stream that are shuffled together, per loading process.
        tokenizer: Folder or Hub id of a BERT-like tokenizer; null takes the one of model.from_pretrained or model.text, or makes one from the training texts.
        visual_tokenizer: Folder or Hub id of the visual tokenizer that makes SIMLA's targets, from the very crop that the model sees (paper: DALL-E's, facebook/flava-image-codebook).
        stored_visual_tokens: File of visual tokens made beforehand with `vicha-hf visual-tokens`, for images that are not cropped or augmented.
        max_text_length: Caption tokens kept (paper: 25).
        max_concept_length: Concept tokens kept (paper: 55).
        concept_fraction: Share of an image's concepts that one step sees (paper: 0.3).
        concept_dropout: Share of the samples that come without concepts, so that the model learns to do without as well (paper: 0).
        concept_index: Folder of the index that found the concepts (`vicha-hf concepts build` writes one); the model's folder carries it, for `concepts="auto"`.
        captions: "one" draws one of a record's captions at each visit; "all" makes a sample of each.
        crop_scale: Smallest and largest share of the image that a random crop keeps; null resizes the whole image.
        hflip: Mirror half of the images; turn it off where captions say left and right.
        randaugment: Augment the images as ALBEF does.
        rerank_k: Candidates that the evaluation re-ranks with the matching head.
        evaluation_batch_size: Images or captions encoded at a time in the evaluation.
    """

    train: str | dict[str, Any] | list[str | dict[str, Any]]
    validation: str | dict[str, Any] | None = None
    shuffle_buffer: int = 1000
    tokenizer: str | None = None
    visual_tokenizer: str | None = None
    stored_visual_tokens: str | None = None
    max_text_length: int = 25
    max_concept_length: int = 55
    concept_fraction: float = 0.3
    concept_dropout: float = 0.0
    concept_index: str | None = None
    captions: Literal["one", "all"] = "one"
    crop_scale: tuple[float, float] | None = (0.2, 1.0)
    hflip: bool = True
    randaugment: bool = True
    rerank_k: int = 128
    evaluation_batch_size: int = 64

    def __post_init__(self):
        check_training_data(self)
        require(
            self.visual_tokenizer is None or self.stored_visual_tokens is None,
            "data.stored_visual_tokens",
            self.stored_visual_tokens,
            f"data.visual_tokenizer={self.visual_tokenizer!r} makes the tokens already; give one of the two.",
        )
        require(
            0 <= self.concept_dropout < 1, "data.concept_dropout", self.concept_dropout, "choose it within [0, 1)."
        )
        require(self.rerank_k >= 1, "data.rerank_k", self.rerank_k, "it must be at least 1.")


@dataclass(kw_only=True)
class PretrainingArguments(TrainingArguments):
    """Everything that `examples/pretrain.py` can be told.

    Args:
        model: What to train.
        data: What to train on.
    """

    model: ModelArguments
    data: DataArguments

    @property
    def tokenizer_source(self) -> str | None:
        """Source of the tokenizer."""
        return self.data.tokenizer or self.model.from_pretrained or self.model.text

    @property
    def tokenizer_option(self) -> str:
        """The option that gives it."""
        if self.data.tokenizer:
            return "data.tokenizer"
        return "model.from_pretrained" if self.model.from_pretrained else "model.text"


def build_pretraining_model(
    arguments: ModelArguments,
    tokenizer: PreTrainedTokenizerBase,
    visual_tokens: VisualTokenizer | VisualTokenStore | None = None,
) -> VisionTextPreTrainedModel:
    """The model that `arguments` describe, with teacher and queue, on the CPU.

    Args:
        arguments: what to train.
        tokenizer: new text encoders take their vocabulary size and special tokens from it, pretrained ones must agree.
        visual_tokens: from [`load_visual_tokens`]; a new SIMLA model takes its visual vocabulary's size from them.

    Raises:
        ValueError: an impossible configuration, a tokenizer that does not fit the model, or parts that it does not have.
    """
    if arguments.from_pretrained is not None:
        arguments.from_pretrained = find_model_folder(arguments.from_pretrained)
        config = read_config(arguments.from_pretrained)
        family = config.model_type
        require_known_fields(type(config), arguments.config, "model.config.")
        require_weights_of_folder(arguments.from_pretrained)
        model = head_class(family, "pretraining").from_pretrained(arguments.from_pretrained, **arguments.config)
        if arguments.image_size not in (None, model.config.vision_config.image_size):
            model.resize_image_size(arguments.image_size)
    else:
        head = head_class(arguments.family or DEFAULT_FAMILY, "pretraining")
        fields = dict(arguments.config)
        if visual_tokens is not None and hasattr(head.config_class, "visual_vocab_size"):
            fields = {"visual_vocab_size": visual_tokens.vocab_size} | fields
        text_config = special_tokens(tokenizer, head.config_class.sub_configs["text_config"])
        if arguments.text is None:
            text_config["vocab_size"] = len(tokenizer)
        text_config |= arguments.text_config
        if arguments.vision is not None or arguments.text is not None:
            for source in filter(None, (arguments.vision, arguments.text)):
                require_there(source)
            model = head.from_vision_text_pretrained(
                arguments.vision,
                arguments.text,
                **fields,
                vision_config=arguments.vision_config,
                text_config=text_config,
            )
        else:
            model = head(head.config_class(vision_config=arguments.vision_config, text_config=text_config, **fields))
    require_fitting_vocabulary(model.config, tokenizer)
    if arguments.weights_from is not None:
        take_weights(model, arguments.weights_from)
    choose_trained_parts(model, arguments)
    model.add_training_state()
    return model


def take_weights(model: VisionTextPreTrainedModel, source: str) -> None:
    """
    Gives a new model the weights of a pretrained one, wherever names and shapes are the same; the others stay.

    Args:
        model: a pretraining head, without training state.
        source: folder or Hub id of a model of the family.

    Raises:
        ValueError: a model of another family, or whose encoders do not fit.
    """
    folder = find_model_folder(source)
    family = read_config(folder).model_type
    require(
        family == model.config.model_type,
        "model.weights_from",
        source,
        f"it is of the family {family!r}, and the new model of {model.config.model_type!r}.",
    )
    require_weights_of_folder(folder)
    given = head_class(family, "pretraining").from_pretrained(folder)
    old, new = given.base_model, model.base_model
    left = copy_matching_weights(given, model)
    for part in ENCODERS:
        unfit = [name for name in left if f".{part}." in f".{name}"]
        require(
            not unfit, "model.weights_from", source, f"{unfit[:1]} of the {part} has another shape or is not there."
        )
    if getattr(new, "concept_model", None) is not None and getattr(old, "concept_model", None) is None:
        own = copy_matching_weights(old.text_model, new.concept_model)
        prefix = f"{model.base_model_prefix}.concept_model."
        left = [name for name in left if not name.startswith(prefix) or name.removeprefix(prefix) in own]
    if PartialState().is_main_process:
        logger.info(
            "%s gives all weights but %s.", source, ", ".join(sorted({_part(name) for name in left})) or "none"
        )


def _part(name: str) -> str:
    """`vicha.concept_projection.weight` -> `vicha.concept_projection`"""
    return ".".join(name.split(".")[:2])


def require_streamable(data: DataArguments) -> None:
    """Raises `ValueError` for settings that need a corpus of known length."""
    require(data.captions == "one", "data.captions", data.captions, "of a stream's records one caption is drawn.")
    require(
        data.stored_visual_tokens is None,
        "data.stored_visual_tokens",
        data.stored_visual_tokens,
        "they belong to a corpus whose images have names; use data.visual_tokenizer.",
    )


def load_visual_tokens(data: DataArguments) -> VisualTokenizer | VisualTokenStore | None:
    """Loads what gives the images their visual tokens, if the data arguments name anything."""
    if data.stored_visual_tokens is not None:
        return VisualTokenStore(data.stored_visual_tokens)
    return None if data.visual_tokenizer is None else load_visual_tokenizer(data.visual_tokenizer)


def use_visual_tokens(
    model: VisionTextPreTrainedModel,
    visual_tokens: VisualTokenizer | VisualTokenStore | None,
    processor: VisionTextProcessor,
) -> None:
    """
    Checks that a model has the visual tokens that it needs and no others; a tokenizer goes to the model, which then makes
    the tokens where it runs.

    Raises:
        ValueError: tokens that are missing, not needed, or of another grid or vocabulary than the model's.
    """
    config = model.config
    needed = config.model_type == "simla" and config.mim_weight > 0
    if visual_tokens is None or not needed:
        require(
            not needed,
            "data.visual_tokenizer",
            None,
            "SIMLA's reconstruction (mim_weight) needs visual tokens; fit a tokenizer with `vicha-hf visual-tokenizer`, "
            "use facebook/flava-image-codebook, or give data.stored_visual_tokens.",
        )
        require(
            visual_tokens is None,
            "data.visual_tokenizer",
            type(visual_tokens).__name__,
            f"this {config.model_type} model reconstructs no visual tokens; leave it and data.stored_visual_tokens out.",
        )
        return
    require_fitting_tokenizer(
        visual_tokens,
        image_size=config.vision_config.image_size,
        patch_size=config.vision_config.patch_size,
        vocab_size=config.visual_vocab_size,
        image_processor=processor.image_processor,
    )
    if isinstance(visual_tokens, VisualTokenizer):
        model.set_visual_tokenizer(visual_tokens)


def build_processor(
    model: VisionTextPreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: DataArguments
) -> VisionTextProcessor:
    """The processor that goes with a model: its image size, and the lengths of `data`."""
    side = model.config.vision_config.image_size
    image_processor_class, processor_class = PROCESSORS[model.config.model_type]
    lengths = {name: getattr(data, name) for name in processor_class.length_options}
    require_fitting_length(model.config, data.max_text_length)
    return processor_class(image_processor_class(size={"height": side, "width": side}), tokenizer, **lengths)
