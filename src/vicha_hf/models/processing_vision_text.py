"""One call for images and texts: what the processors of every family share."""

from collections.abc import Sequence

import numpy as np
from transformers.processing_utils import ProcessorMixin

from .image_heatmap import draw_word_heatmaps, merge_word_pieces, overlay_heatmap


UNPADDED = (False, "do_not_pad")


class VisionTextProcessor(ProcessorMixin):
    """
    Joins an image processor and a BERT-like tokenizer.

    Args:
        image_processor: an image processor that returns `pixel_values`.
        tokenizer: a BERT-like fast tokenizer; it must have a padding token.
        max_text_length: tokens kept of a text, special tokens included.
        final_sep: whether a text ends with [SEP]. The published models were trained without it (quirk `no_final_sep`), so
            the processor of a converted checkpoint leaves it out.

    Raises:
        ValueError, TypeError: an argument that cannot be used; the message names it.
    """

    # Options that every call may override.
    length_options: tuple[str, ...] = ("max_text_length",)

    def __init__(
        self, image_processor=None, tokenizer=None, max_text_length: int = 25, final_sep: bool = True, **kwargs
    ):
        check_length(type(self).__name__, "max_text_length", max_text_length)
        super().__init__(image_processor, tokenizer, **kwargs)
        if self.tokenizer.pad_token_id is None:
            raise ValueError(f"{type(self).__name__}: the tokenizer has no padding token; set tokenizer.pad_token")
        self.max_text_length = max_text_length
        self.final_sep = final_sep

    def _encode(
        self,
        images,
        text: str | Sequence[str] | None,
        max_text_length: int | None,
        images_kwargs: dict,
        **tokenize,
    ) -> dict:
        """`pixel_values`, `input_ids` and `attention_mask`, each where its input was given."""
        self._check_images_kwargs(images_kwargs, images)
        name, data = type(self).__name__, {}
        limit = self.max_text_length
        if max_text_length is not None:
            limit = check_length(name, "max_text_length", max_text_length)
        if images is not None:
            data["pixel_values"] = self.image_processor(images, **images_kwargs)["pixel_values"]
        if text is not None:
            encoded = self._tokenize(_as_texts(name, text), limit, **tokenize)
            data["input_ids"], data["attention_mask"] = encoded["input_ids"], encoded["attention_mask"]
        return data

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

    def _check_images_kwargs(self, images_kwargs: dict, images) -> None:
        owner = type(self).__name__
        known = set(getattr(self.image_processor.valid_kwargs, "__annotations__", {}))
        for name in images_kwargs:
            if name == "max_length":
                raise TypeError(f"{owner}: `max_length` is ambiguous here; use {' or '.join(self.length_options)}")
            if name not in known:
                raise TypeError(f"{owner}: unknown option {name!r}")
        if images_kwargs and images is None:
            raise TypeError(f"{owner}: {sorted(images_kwargs)} need images, but none were given")

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
        width = max_length if padding == "max_length" else max(map(len, rows)) if padding not in UNPADDED else 0
        missing = [max(width - len(row), 0) for row in rows]
        return {
            "input_ids": [
                row + [self.tokenizer.pad_token_id] * count for row, count in zip(rows, missing, strict=True)
            ],
            "attention_mask": [[1] * len(row) + [0] * count for row, count in zip(rows, missing, strict=True)],
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
        return [text]
    if not is_list(text):
        raise TypeError(f"{owner}: text must be a str or a list of str, got {type(text).__name__}")
    if not text:
        raise ValueError(f"{owner}: the list of texts is empty")
    for index, entry in enumerate(text):
        if not isinstance(entry, str):
            raise TypeError(f"{owner}: text {index} must be a str, got {type(entry).__name__}: {entry!r}")
    return list(text)


__all__ = ["VisionTextProcessor"]
