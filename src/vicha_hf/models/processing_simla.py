"""One call for images and texts: the arguments of every SIMLA model; and keywords as words."""

from collections.abc import Mapping, Sequence

from transformers.image_processing_utils import BatchFeature

from .modeling_outputs import KeywordPredictionOutput
from .processing_vision_text import VisionTextProcessor
from .text_cleaning import MAX_WORDS, TextCleaning


class SimlaProcessor(VisionTextProcessor):
    """
    Joins an image processor and a BERT-like tokenizer.

    Args:
        image_processor: a `SimlaImageProcessor` (or another image processor that returns `pixel_values`).
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
        super().__init__(image_processor, tokenizer, max_text_length, final_sep, text_cleaning, max_words, **kwargs)

    def __call__(
        self,
        images=None,
        text: str | Sequence[str] | None = None,
        *,
        padding: bool | str | None = None,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        return_tensors: str | None = None,
        text_kwargs: Mapping | None = None,
        images_kwargs: Mapping | None = None,
        **options,
    ) -> BatchFeature:
        """
        Args:
            images: one image or a list of n (Pillow images, paths, arrays, tensors).
            text: one text or a list of m. n and m may differ: the bare model compares all with all.
            padding: True or "longest" (longest row of the batch), "max_length", or False. Default: True.
            truncation: cut at the maximum length; False keeps everything, also beyond `max_words`. Default: True.
            max_length: tokens kept of a text in this call, instead of `max_text_length` (also accepted by that name).
            return_tensors: "pt", "np" or None (lists).
            text_kwargs, images_kwargs: options of the tokenizer and of the image processor for this call.
            options: the same by name, such as `size`, `do_normalize` or `pad_to_multiple_of`.

        Returns:
            `pixel_values` [n, 3, H, W]; `input_ids`, `attention_mask` [m, T] (1 = attend), each where its input was given.

        Raises:
            ValueError: nothing given.
            TypeError: an input of a wrong type (named with its position), an unknown option.
        """
        if images is None and text is None:
            raise ValueError("SimlaProcessor: give images, text, or both")
        options |= {"padding": padding, "truncation": truncation, "max_length": max_length}
        sorted_options = self._sort_options(
            images, options | {"return_tensors": return_tensors}, text_kwargs, images_kwargs
        )
        return BatchFeature(self._encode(images, text, sorted_options), tensor_type=sorted_options.return_tensors)

    def decode_keywords(self, keywords: KeywordPredictionOutput) -> list[list[tuple[str, float]]]:
        """
        Decodes what [`~SimlaForPreTraining.predict_keywords`] found, for each image: words and their probabilities,
        best first.
        """
        rows = zip(keywords.token_ids.tolist(), keywords.probabilities.tolist(), strict=True)
        return [list(zip(self.tokenizer.convert_ids_to_tokens(ids), values, strict=True)) for ids, values in rows]


SimlaProcessor.register_for_auto_class("AutoProcessor")

__all__ = ["SimlaProcessor"]
