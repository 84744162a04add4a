"""One call for images, texts and visual concepts: the arguments of every ViCHA model."""

from collections.abc import Mapping, Sequence
from typing import Literal

from transformers.image_processing_utils import BatchFeature

from .concept_selector import ConceptSelector
from .processing_vision_text import UNPADDED, VisionTextProcessor, check_length, is_list
from .text_cleaning import MAX_WORDS, TextCleaning, is_blank


AUTOMATIC_CONCEPTS = "auto"


class ViChaProcessor(VisionTextProcessor):
    """
    Joins an image processor and a BERT-like tokenizer.

    Args:
        image_processor: a `ViChaImageProcessor` (or another image processor that returns `pixel_values`).
        tokenizer: a BERT-like fast tokenizer; it must have a padding token.
        max_text_length: tokens kept of a text, special tokens included (paper: 25 in pretraining).
        max_concept_length: tokens kept of the joined concepts of an image (paper: 55).
        concept_separator: what stands between two concepts: " " as in the released configurations, or " [SEP] ".
        final_sep: whether a text ends with [SEP]. The published models were trained without it (quirk `no_final_sep`), so
            the processor of a converted checkpoint leaves it out.
        text_cleaning: how texts are cleaned, as the published systems do: "caption", "question", or None for not at all;
            see [`~text_cleaning.cleaning_steps`]. Concepts are not cleaned.
        max_words: words kept of a text by the cleaning; None keeps all.

    Raises:
        ValueError, TypeError: an argument that cannot be used; the message names it.
    """

    length_options = ("max_text_length", "max_concept_length")

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        max_text_length: int = 25,
        max_concept_length: int = 55,
        concept_separator: str = " ",
        final_sep: bool = True,
        text_cleaning: TextCleaning | None = "caption",
        max_words: int | None = MAX_WORDS,
        **kwargs,
    ):
        check_length(type(self).__name__, "max_concept_length", max_concept_length)
        if not isinstance(concept_separator, str) or not concept_separator:
            raise TypeError(
                f"ViChaProcessor: concept_separator={concept_separator!r} must be a non-empty str, such as ' ' or ' [SEP] '"
            )
        super().__init__(image_processor, tokenizer, max_text_length, final_sep, text_cleaning, max_words, **kwargs)
        self.max_concept_length = max_concept_length
        self.concept_separator = concept_separator
        self._home: tuple[str, dict] | None = None
        self._concept_selector: ConceptSelector | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """Loads as [`~transformers.ProcessorMixin.from_pretrained`] does, and remembers where `concepts="auto"` looks."""
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        options = {name: value for name, value in kwargs.items() if name != "trust_remote_code"}
        processor._home = (str(pretrained_model_name_or_path), options)
        return processor

    @property
    def concept_selector(self) -> ConceptSelector:
        """
        Finds the concepts of images for `concepts="auto"`: that of the processor's folder, loaded at first use. Another
        one can be set.

        Raises:
            FileNotFoundError: the folder has no concept index.
            ValueError: the processor came from no folder.
        """
        if self._concept_selector is None:
            if self._home is None:
                raise ValueError(
                    'ViChaProcessor: concepts="auto" needs a processor loaded from a model folder, or its '
                    "`concept_selector` set"
                )
            folder, options = self._home
            self._concept_selector = ConceptSelector.from_pretrained(folder, **options)
        return self._concept_selector

    @concept_selector.setter
    def concept_selector(self, selector: ConceptSelector) -> None:
        self._concept_selector = selector

    def __call__(
        self,
        images=None,
        text: str | Sequence[str] | None = None,
        concepts: Sequence[Sequence[str] | None] | Sequence[str] | Literal["auto"] | None = None,
        *,
        padding: bool | str | None = None,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        max_concept_length: int | None = None,
        return_tensors: str | None = None,
        text_kwargs: Mapping | None = None,
        images_kwargs: Mapping | None = None,
        **options,
    ) -> BatchFeature:
        """
        Args:
            images: one image or a list of n (Pillow images, paths, arrays, tensors).
            text: one text or a list of m. n and m may differ: the bare model compares all with all.
            concepts: per image a list of words (or None, or [] for an image without concepts); with a single image
                also just its list of words. Concepts may be given without images. "auto" finds them by the concept
                index of the model's folder.
            padding: True or "longest" (longest row of the batch), "max_length", or False. Default: True.
            truncation: cut at the maximum length; False keeps everything, also beyond `max_words`. Default: True.
            max_length: tokens kept of a text in this call, instead of `max_text_length` (also accepted by that name).
            max_concept_length: overrides the processor's for this call.
            return_tensors: "pt", "np" or None (lists).
            text_kwargs, images_kwargs: options of the tokenizer and of the image processor for this call; `concepts` may
                stand among those of images.
            options: the same by name, such as `size`, `do_normalize` or `pad_to_multiple_of`.

        Returns:
            `pixel_values` [n, 3, H, W]; `input_ids`, `attention_mask` [m, T]; `concept_input_ids`,
            `concept_attention_mask` [n, C] (masks: 1 = attend), each where its input was given. An image without
            concepts has a concept mask of zeros only; when no image has any, the two concept entries are left out.

        Raises:
            ValueError: nothing given, or as many lists of concepts as there are not images.
            TypeError: an input of a wrong type (named with its position), an unknown option.
        """
        if images is None and text is None and concepts is None:
            raise ValueError("ViChaProcessor: give at least one of images, text and concepts")
        if concepts is None and images_kwargs:
            # Libraries that know images and texts only pass options of images on.
            images_kwargs = dict(images_kwargs)
            concepts = images_kwargs.pop("concepts", None)
        if isinstance(concepts, str) and concepts == AUTOMATIC_CONCEPTS:
            if images is None:
                raise ValueError('ViChaProcessor: concepts="auto" needs images')
            concepts = self.concept_selector.words(images)
        concept_limit = self.max_concept_length
        if max_concept_length is not None:
            concept_limit = check_length(type(self).__name__, "max_concept_length", max_concept_length)
        options |= {"padding": padding, "truncation": truncation, "max_length": max_length}
        sorted_options = self._sort_options(
            images, options | {"return_tensors": return_tensors}, text_kwargs, images_kwargs
        )
        data = self._encode(images, text, sorted_options)
        if concepts is not None:
            num_images = len(data["pixel_values"]) if "pixel_values" in data else None
            shared = sorted_options.padding_of_concepts | {"max_length": concept_limit}
            data |= self._encode_concepts(_as_concept_rows(concepts, num_images), shared)
        return BatchFeature(data, tensor_type=sorted_options.return_tensors)

    @property
    def model_input_names(self) -> list[str]:
        return [*super().model_input_names, "concept_input_ids", "concept_attention_mask"]

    def _encode_concepts(self, rows: list[list[str]], options: dict) -> dict:
        filled = [index for index, row in enumerate(rows) if row]
        if not filled:
            return {}
        joined = [self.concept_separator.join(rows[index]) for index in filled]
        encoded = self._tokenize(self._variant(text_cleaning=None), joined, options)
        # An empty text would become a lone [CLS] [SEP], which is something to attend to; no concepts must be nothing.
        width = len(encoded["input_ids"][0]) if options["padding"] not in UNPADDED else 0
        input_ids = [[self.tokenizer.pad_token_id] * width for _ in rows]
        attention_mask = [[0] * width for _ in rows]
        for position, index in enumerate(filled):
            input_ids[index] = encoded["input_ids"][position]
            attention_mask[index] = encoded["attention_mask"][position]
        return {"concept_input_ids": input_ids, "concept_attention_mask": attention_mask}


def _as_concept_rows(concepts, num_images: int | None) -> list[list[str]]:
    if not is_list(concepts):
        raise TypeError(
            "ViChaProcessor: concepts must be a list with one list of words per image, "
            f"got {type(concepts).__name__}: {concepts!r}"
        )
    if num_images == 1 and (not concepts or any(isinstance(entry, str) for entry in concepts)):
        concepts = [concepts]
    if num_images is not None and len(concepts) != num_images:
        raise ValueError(
            f"ViChaProcessor: {num_images} images but {len(concepts)} lists of concepts; give one list of words (or None) "
            "per image"
        )
    rows = []
    for image, row in enumerate(concepts):
        if row is None:
            row = []
        if not is_list(row):
            raise TypeError(
                f"ViChaProcessor: the concepts of image {image} must be a list of words or None, "
                f"got {type(row).__name__}: {row!r}"
            )
        for word in row:
            if not isinstance(word, str) or is_blank(word):
                raise TypeError(f"ViChaProcessor: a concept of image {image} must be a non-blank str, got {word!r}")
        rows.append(list(row))
    return rows


ViChaProcessor.register_for_auto_class("AutoProcessor")

__all__ = ["AUTOMATIC_CONCEPTS", "ViChaProcessor"]
