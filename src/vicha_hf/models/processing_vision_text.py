"""One call for images and texts: what the processors of every family share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from transformers import BatchFeature, TokenizersBackend
from transformers.processing_utils import ProcessorMixin, TextKwargs

from .image_heatmap import draw_word_heatmaps, merge_word_pieces, overlay_heatmap
from .text_cleaning import MAX_WORDS, TextCleaning, reading_tokenizer


UNPADDED = (False, "do_not_pad")
UNTRUNCATED = (False, "do_not_truncate")
_UNLIMITED = int(1e30)
# What the saved tokenizer does to texts follows these attributes.
_READING = ("text_cleaning", "max_words", "final_sep", "max_text_length")


class VisionTextProcessor(ProcessorMixin):
    """
    Joins an image processor and a BERT-like tokenizer.

    The processor's tokenizer is a copy that reads texts as the model was trained on them; see
    [`~text_cleaning.reading_tokenizer`]. Concepts and answers are not cleaned.

    Args:
        image_processor: an image processor that returns `pixel_values`.
        tokenizer: a BERT-like fast tokenizer; it must have a padding token.
        max_text_length: tokens kept of a text, special tokens included.
        final_sep: whether a text ends with [SEP]. The published models were trained without it (quirk `no_final_sep`), so
            the processor of a converted checkpoint leaves it out.
        text_cleaning: how texts are cleaned, as the published systems do: "caption", "question", or None for not at all;
            see [`~text_cleaning.cleaning_steps`].
        max_words: words kept of a text by the cleaning; None keeps all.

    Raises:
        ValueError, TypeError: an argument that cannot be used; the message names it.
    """

    # Options that every call may override.
    length_options: tuple[str, ...] = ("max_text_length",)

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        max_text_length: int = 25,
        final_sep: bool = True,
        text_cleaning: TextCleaning | None = "caption",
        max_words: int | None = MAX_WORDS,
        **kwargs,
    ):
        check_length(type(self).__name__, "max_text_length", max_text_length)
        super().__init__(image_processor, tokenizer, **kwargs)
        if self.tokenizer.pad_token_id is None:
            raise ValueError(f"{type(self).__name__}: the tokenizer has no padding token; set tokenizer.pad_token")
        self.max_text_length = max_text_length
        self.final_sep = final_sep
        self.max_words = max_words
        self.text_cleaning = text_cleaning

    @classmethod
    def get_processor_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict, dict]:
        """
        Reads a folder's file as [`~transformers.ProcessorMixin.get_processor_dict`] does.

        Raises:
            ValueError: the processor of another family, whose options would be dropped without a word.
        """
        content, options = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        families = {family.__name__ for family in VisionTextProcessor.__subclasses__()}
        saved = content.get("processor_class")
        if saved in families - {own.__name__ for own in cls.__mro__}:
            raise ValueError(
                f"{pretrained_model_name_or_path} holds a {saved}, not a {cls.__name__}: load it with AutoProcessor, or "
                f"with {saved}."
            )
        return content, options

    def __setattr__(self, name: str, value) -> None:
        super().__setattr__(name, value)
        if name in (*_READING, "tokenizer") and all(option in self.__dict__ for option in _READING):
            self.__dict__["tokenizer"] = reading_tokenizer(
                self.tokenizer,
                text_cleaning=self.text_cleaning,
                max_words=self.max_words,
                final_sep=self.final_sep,
                max_length=self.max_text_length,
            )
            self.__dict__["_variants"] = {}

    def tokenize_answers(self, answers: Sequence[str]) -> BatchFeature:
        """
        Answers as `rank_answers` and the training of visual question answering take them: `input_ids` and
        `attention_mask` [n, A], each [CLS] answer [SEP], whatever the processor does with texts. [SEP] tells that the
        answer ends; nothing is cleaned or cut.

        Raises:
            ValueError: no answers.
        """
        if not answers:
            raise ValueError("there are no answers: give at least one, and questions with answers to train on")
        encoded = self._variant(text_cleaning=None, final_sep=True)(
            list(answers), padding="longest", return_token_type_ids=False, return_tensors="pt"
        )
        return BatchFeature({name: encoded[name] for name in ("input_ids", "attention_mask")})

    def _encode(self, images, text: str | Sequence[str] | None, options: "_CallOptions") -> dict:
        """`pixel_values`, `input_ids` and `attention_mask`, each where its input was given."""
        data = {}
        if images is not None:
            data["pixel_values"] = self.image_processor(images, **options.images)["pixel_values"]
        if text is not None:
            texts = _as_texts(type(self).__name__, text)
            uncut = {"max_words": None} if options.text["truncation"] in UNTRUNCATED else {}
            data |= self._tokenize(self._variant(**uncut), texts, options.text)
        return data

    def _tokenize(self, tokenizer: TokenizersBackend, texts: list[str], options: Mapping) -> dict:
        limited = options["truncation"] not in UNTRUNCATED or options["padding"] == "max_length"
        return dict(tokenizer(texts, **options | {"max_length": options["max_length"] if limited else None}))

    def _variant(self, **options) -> TokenizersBackend:
        """A tokenizer that reads in another way than the processor's own, made once."""
        own = {"text_cleaning": self.text_cleaning, "max_words": self.max_words, "final_sep": self.final_sep}
        if own | options == own:
            return self.tokenizer
        key = tuple(sorted(options.items()))
        if key not in self._variants:
            self._variants[key] = reading_tokenizer(self.tokenizer, **own | options, max_length=_UNLIMITED)
        return self._variants[key]

    def overlay_heatmap(self, image, heatmap, opacity: float = 0.6):
        """
        An image with a grounding head's heat map [h, w] over it, see [`~image_heatmap.overlay_heatmap`]: the map is
        brought to the image as it was given, before any resizing.
        """
        return overlay_heatmap(image, heatmap, opacity)

    def decode_word_heatmaps(self, input_ids, word_heatmaps) -> tuple[list[str], np.ndarray]:
        """
        The words of a caption and their heat maps [W, h, w]; padding and special tokens are left out, word pieces joined.

        Args:
            input_ids: [T], the caption's tokens.
            word_heatmaps: [T, h, w], the image's row of a grounding head's `word_heatmaps`.
        """
        ids = [int(value) for value in input_ids]
        kept = [position for position, value in enumerate(ids) if value not in self.tokenizer.all_special_ids]
        tokens = self.tokenizer.convert_ids_to_tokens([ids[position] for position in kept])
        return merge_word_pieces(tokens, word_heatmaps[kept])

    def draw_word_heatmaps(self, image, input_ids, word_heatmaps, opacity: float = 0.7):
        """
        Draws where each word of a caption looks: a strip of the image, once for each word with the word's heat map
            over it.

        Args:
            image: a Pillow image, as it was given.
            input_ids: [T], the caption's tokens; padding and special tokens are left out, word pieces joined.
            word_heatmaps: [T, h, w], the image's row of a grounding head's `word_heatmaps`.
            opacity: of the hottest place.
        """
        return draw_word_heatmaps(image, *self.decode_word_heatmaps(input_ids, word_heatmaps), opacity)

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", "input_ids", "attention_mask"]

    def _sort_options(
        self, images, flat: Mapping, text_kwargs: Mapping | None, images_kwargs: Mapping | None
    ) -> "_CallOptions":
        """
        The options of one call: those given by name, sorted into the tokenizer's and the image processor's, and those
        given as `text_kwargs` and `images_kwargs`.
        """
        owner, options = type(self).__name__, _CallOptions()
        known_of_images = set(getattr(self.image_processor.valid_kwargs, "__annotations__", {}))
        for name, value in (*(flat.get("common_kwargs") or {}).items(), *flat.items()):
            if name in _OTHER_GROUPS:
                continue
            if name in _TEXT_OPTIONS:
                if value is not None:
                    options.text[name] = value
            elif name in known_of_images:
                options.images[name] = value
            else:
                raise TypeError(f"{owner}: unknown option {name!r}")
        if options.images and images is None:
            raise TypeError(f"{owner}: {sorted(options.images)} need images, but none were given")
        for argument, given, group, known in (
            ("text_kwargs", text_kwargs, options.text, _TEXT_OPTIONS),
            ("images_kwargs", images_kwargs, options.images, known_of_images),
        ):
            for name, value in (given or {}).items():
                if name not in known:
                    raise TypeError(f"{owner}: {argument} has no option {name!r}")
                if name in group:
                    raise TypeError(f"{owner}: {name!r} is given twice, by name and in {argument}")
                group[name] = value
        options.return_tensors = options.images.pop("return_tensors", None)
        options.return_tensors = options.text.pop("return_tensors", options.return_tensors)
        self._complete(options.text)
        return options

    def _complete(self, text: dict) -> None:
        owner = type(self).__name__
        lengths = [name for name in ("max_text_length", "max_length") if text.get(name) is not None]
        if len(lengths) == 2:
            raise TypeError(f"{owner}: max_length and max_text_length are one option; give one of them")
        limit = check_length(owner, lengths[0], text[lengths[0]]) if lengths else self.tokenizer.model_max_length
        text.pop("max_text_length", None)
        if text.get("padding_side", "right") != "right":
            raise ValueError(
                f"{owner}: padding_side={text['padding_side']!r}: the models read [CLS] first; pad on the right"
            )
        text |= {**_TEXT_DEFAULTS, **text, "max_length": limit}


@dataclass
class _CallOptions:
    """Options of one call: the tokenizer's, the image processor's, and the kind of tensors."""

    text: dict = field(default_factory=dict)
    images: dict = field(default_factory=dict)
    return_tensors: str | None = None

    @property
    def padding_of_concepts(self) -> dict:
        """The options of texts that concepts share."""
        return {name: value for name, value in self.text.items() if name in _TEXT_DEFAULTS}


# What a call may tell the tokenizer: all that keeps one row per text.
_TEXT_OPTIONS = {"max_text_length", *TextKwargs.__annotations__} - {
    "text_pair",
    "text_target",
    "text_pair_target",
    "is_split_into_words",
    "stride",
    "return_overflowing_tokens",
    "return_mm_token_type_ids",
    "return_text_replacement_offsets",
    "sanitize_control_tokens",
}
# Groups that a call of any processor may hold: common options are sorted, those of other modalities have no use here.
_OTHER_GROUPS = ("common_kwargs", "audio_kwargs", "videos_kwargs")
_TEXT_DEFAULTS = {
    "padding": True,
    "truncation": True,
    "return_token_type_ids": False,
    "return_attention_mask": True,
}


def check_length(owner: str, name: str, value: int) -> int:
    """A number of tokens that a row can be cut to; `owner` is the class that an error names."""
    # Two tokens are taken by [CLS] and [SEP].
    if isinstance(value, bool) or not isinstance(value, int) or value < 3:
        raise ValueError(f"{owner}: {name}={value!r} must be an int of at least 3 ([CLS], one token, [SEP])")
    return value


def is_list(value) -> bool:
    """A sequence that is not a text."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _as_texts(owner: str, text) -> list[str]:
    if isinstance(text, str):
        text = [text]
    if not is_list(text):
        raise TypeError(f"{owner}: text must be a str or a list of str, got {type(text).__name__}")
    if not text:
        raise ValueError(f"{owner}: the list of texts is empty")
    for index, entry in enumerate(text):
        if not isinstance(entry, str):
            raise TypeError(f"{owner}: text {index} must be a str, got {type(entry).__name__}: {entry!r}")
        if not entry.isascii() and entry != entry.encode(errors="ignore").decode():
            raise ValueError(f"{owner}: text {index} holds half a character (a lone surrogate): {entry[:40]!r}")
    return list(text)


__all__ = ["VisionTextProcessor"]
