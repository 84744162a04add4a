"""One call for pictures, texts and visual concepts: the arguments of every ViCHA model."""

from collections.abc import Sequence

from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

from .image_heatmap import overlay_heatmap


_UNPADDED = (False, "do_not_pad")


class ViChaProcessor(ProcessorMixin):
    """
    Joins an image processor and a BERT-like tokenizer.

    Args:
        image_processor: a `ViChaImageProcessor` (or another image processor that returns `pixel_values`).
        tokenizer: a BERT-like fast tokenizer; it must have a padding token.
        max_text_length: tokens kept of a text, special tokens included (paper: 25 in pretraining).
        max_concept_length: tokens kept of the joined concepts of a picture (paper: 55).
        concept_separator: what stands between two concepts: " " as in the released configurations, or " [SEP] ".
        final_sep: whether a text ends with [SEP]. The published models were trained without it (quirk `no_final_sep`), so
            the processor of a converted checkpoint leaves it out.

    Raises:
        ValueError, TypeError: an argument that cannot be used; the message names it.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        max_text_length: int = 25,
        max_concept_length: int = 55,
        concept_separator: str = " ",
        final_sep: bool = True,
        **kwargs,
    ):
        for name, value in (("max_text_length", max_text_length), ("max_concept_length", max_concept_length)):
            _check_length(name, value)
        if not isinstance(concept_separator, str) or not concept_separator:
            raise TypeError(
                f"ViChaProcessor: concept_separator={concept_separator!r} must be a non-empty str, such as ' ' or ' [SEP] '"
            )
        super().__init__(image_processor, tokenizer, **kwargs)
        if self.tokenizer.pad_token_id is None:
            raise ValueError("ViChaProcessor: the tokenizer has no padding token; set tokenizer.pad_token")
        self.max_text_length = max_text_length
        self.max_concept_length = max_concept_length
        self.concept_separator = concept_separator
        self.final_sep = final_sep

    def __call__(
        self,
        images=None,
        text: str | Sequence[str] | None = None,
        concepts: Sequence[Sequence[str] | None] | Sequence[str] | None = None,
        *,
        padding: bool | str = True,
        truncation: bool = True,
        max_text_length: int | None = None,
        max_concept_length: int | None = None,
        return_tensors: str | None = None,
        **images_kwargs,
    ) -> BatchFeature:
        """
        Args:
            images: one picture or a list of n (Pillow images, paths, arrays, tensors).
            text: one text or a list of m. n and m may differ: the bare model compares all with all.
            concepts: per picture a list of words (or None, or [] for a picture without concepts); with a single picture
                also just its list of words. Concepts may be given without pictures.
            padding: True or "longest" (longest row of the batch), "max_length", or False.
            truncation: cut at the maximum lengths; False keeps everything.
            max_text_length, max_concept_length: override the processor's for this call.
            return_tensors: "pt", "np" or None (lists).
            images_kwargs: options of the image processor for this call, such as `size` or `do_normalize`.

        Returns:
            `pixel_values` [n, 3, H, W]; `input_ids`, `attention_mask` [m, T]; `concept_input_ids`,
            `concept_attention_mask` [n, C] (masks: 1 = attend), each where its input was given. A picture without
            concepts has a concept mask of zeros only; when no picture has any, the two concept entries are left out.

        Raises:
            ValueError: nothing given, or as many lists of concepts as there are not pictures.
            TypeError: an input of a wrong type (named with its position), an unknown option.
        """
        if images is None and text is None and concepts is None:
            raise ValueError("ViChaProcessor: give at least one of images, text and concepts")
        self._check_images_kwargs(images_kwargs, images)
        text_limit = (
            self.max_text_length if max_text_length is None else _check_length("max_text_length", max_text_length)
        )
        concept_limit = (
            self.max_concept_length
            if max_concept_length is None
            else _check_length("max_concept_length", max_concept_length)
        )
        tokenize = {"padding": padding, "truncation": truncation}

        data = {}
        num_images = None
        if images is not None:
            data["pixel_values"] = self.image_processor(images, **images_kwargs)["pixel_values"]
            num_images = len(data["pixel_values"])
        if text is not None:
            encoded = self._tokenize(_as_texts(text), text_limit, **tokenize)
            data["input_ids"], data["attention_mask"] = encoded["input_ids"], encoded["attention_mask"]
        if concepts is not None:
            data.update(self._encode_concepts(_as_concept_rows(concepts, num_images), concept_limit, **tokenize))
        return BatchFeature(data, tensor_type=return_tensors)

    def overlay_heatmap(self, picture, heatmap, opacity: float = 0.6):
        """
        A picture with one of [`ViChaForGrounding`]'s heat maps [h, w] over it, see
        [`~image_heatmap.overlay_heatmap`]: the map is brought to the picture as it was given, before any resizing.
        """
        return overlay_heatmap(picture, heatmap, opacity)

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", "input_ids", "attention_mask", "concept_input_ids", "concept_attention_mask"]

    def _check_images_kwargs(self, images_kwargs: dict, images) -> None:
        known = set(getattr(self.image_processor.valid_kwargs, "__annotations__", {}))
        for name in images_kwargs:
            if name == "max_length":
                raise TypeError(
                    "ViChaProcessor: `max_length` is ambiguous here; use max_text_length or max_concept_length"
                )
            if name not in known:
                raise TypeError(f"ViChaProcessor: unknown option {name!r}")
        if images_kwargs and images is None:
            raise TypeError(f"ViChaProcessor: {sorted(images_kwargs)} need images, but none were given")

    def _tokenize(self, texts: list[str], max_length: int, padding: bool | str, truncation: bool) -> dict:
        if self.final_sep:
            return self.tokenizer(
                texts,
                padding=padding,
                # [CLS] must stay the first token: the models read it there.
                padding_side="right",
                truncation=truncation,
                max_length=max_length if truncation or padding == "max_length" else None,
                return_token_type_ids=False,
                return_attention_mask=True,
            )
        words = self.tokenizer(
            texts,
            add_special_tokens=False,
            truncation=truncation,
            max_length=max_length - 1 if truncation else None,
            return_token_type_ids=False,
            return_attention_mask=False,
        )
        rows = [[self.tokenizer.cls_token_id, *row] for row in words["input_ids"]]
        width = max_length if padding == "max_length" else max(map(len, rows)) if padding not in _UNPADDED else 0
        missing = [max(width - len(row), 0) for row in rows]
        return {
            "input_ids": [
                row + [self.tokenizer.pad_token_id] * count for row, count in zip(rows, missing, strict=True)
            ],
            "attention_mask": [[1] * len(row) + [0] * count for row, count in zip(rows, missing, strict=True)],
        }

    def _encode_concepts(self, rows: list[list[str]], max_length: int, padding: bool | str, truncation: bool) -> dict:
        filled = [index for index, row in enumerate(rows) if row]
        if not filled:
            return {}
        joined = [self.concept_separator.join(rows[index]) for index in filled]
        encoded = self._tokenize(joined, max_length, padding, truncation)
        # An empty text would become a lone [CLS] [SEP], which is something to attend to; no concepts must be nothing.
        width = len(encoded["input_ids"][0]) if padding not in _UNPADDED else 0
        input_ids = [[self.tokenizer.pad_token_id] * width for _ in rows]
        attention_mask = [[0] * width for _ in rows]
        for position, index in enumerate(filled):
            input_ids[index] = encoded["input_ids"][position]
            attention_mask[index] = encoded["attention_mask"][position]
        return {"concept_input_ids": input_ids, "concept_attention_mask": attention_mask}


def _check_length(name: str, value: int) -> int:
    # Two tokens are taken by [CLS] and [SEP].
    if isinstance(value, bool) or not isinstance(value, int) or value < 3:
        raise ValueError(f"ViChaProcessor: {name}={value!r} must be an int of at least 3 ([CLS], one token, [SEP])")
    return value


def _is_list(value) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _as_texts(text) -> list[str]:
    if isinstance(text, str):
        return [text]
    if not _is_list(text):
        raise TypeError(f"ViChaProcessor: text must be a str or a list of str, got {type(text).__name__}")
    if not text:
        raise ValueError("ViChaProcessor: the list of texts is empty")
    for index, entry in enumerate(text):
        if not isinstance(entry, str):
            raise TypeError(f"ViChaProcessor: text {index} must be a str, got {type(entry).__name__}: {entry!r}")
    return list(text)


def _as_concept_rows(concepts, num_images: int | None) -> list[list[str]]:
    if not _is_list(concepts):
        raise TypeError(
            "ViChaProcessor: concepts must be a list with one list of words per picture, "
            f"got {type(concepts).__name__}: {concepts!r}"
        )
    if num_images == 1 and (not concepts or any(isinstance(entry, str) for entry in concepts)):
        concepts = [concepts]
    if num_images is not None and len(concepts) != num_images:
        raise ValueError(
            f"ViChaProcessor: {num_images} pictures but {len(concepts)} lists of concepts; give one list of words (or None) "
            "per picture"
        )
    rows = []
    for picture, row in enumerate(concepts):
        if row is None:
            row = []
        if not _is_list(row):
            raise TypeError(
                f"ViChaProcessor: the concepts of picture {picture} must be a list of words or None, "
                f"got {type(row).__name__}: {row!r}"
            )
        for word in row:
            if not isinstance(word, str) or not word.strip():
                raise TypeError(
                    f"ViChaProcessor: a concept of picture {picture} must be a non-blank str, got {word!r}"
                )
        rows.append(list(row))
    return rows


ViChaProcessor.register_for_auto_class("AutoProcessor")

__all__ = ["ViChaProcessor"]
