"""One call for images and texts: the arguments of every SIMLA model; and keywords as words."""

from collections.abc import Sequence

from transformers.image_processing_utils import BatchFeature

from .modeling_outputs import KeywordPredictionOutput
from .processing_vision_text import VisionTextProcessor


class SimlaProcessor(VisionTextProcessor):
    """
    Joins an image processor and a BERT-like tokenizer.

    Args:
        image_processor: a `SimlaImageProcessor` (or another image processor that returns `pixel_values`).
        tokenizer: a BERT-like fast tokenizer; it must have a padding token.
        max_text_length: tokens kept of a text, special tokens included.
        final_sep: whether a text ends with [SEP]. The published models were trained without it (quirk `no_final_sep`), so
            the processor of a converted checkpoint leaves it out.

    Raises:
        ValueError, TypeError: an argument that cannot be used; the message names it.
    """

    def __init__(
        self, image_processor=None, tokenizer=None, max_text_length: int = 25, final_sep: bool = True, **kwargs
    ):
        super().__init__(image_processor, tokenizer, max_text_length, final_sep, **kwargs)

    def __call__(
        self,
        images=None,
        text: str | Sequence[str] | None = None,
        *,
        padding: bool | str = True,
        truncation: bool = True,
        max_text_length: int | None = None,
        return_tensors: str | None = None,
        **images_kwargs,
    ) -> BatchFeature:
        """
        Args:
            images: one image or a list of n (Pillow images, paths, arrays, tensors).
            text: one text or a list of m. n and m may differ: the bare model compares all with all.
            padding: True or "longest" (longest row of the batch), "max_length", or False.
            truncation: cut at the maximum length; False keeps everything.
            max_text_length: overrides the processor's for this call.
            return_tensors: "pt", "np" or None (lists).
            images_kwargs: options of the image processor for this call, such as `size` or `do_normalize`.

        Returns:
            `pixel_values` [n, 3, H, W]; `input_ids`, `attention_mask` [m, T] (1 = attend), each where its input was given.

        Raises:
            ValueError: nothing given.
            TypeError: an input of a wrong type (named with its position), an unknown option.
        """
        if images is None and text is None:
            raise ValueError("SimlaProcessor: give images, text, or both")
        data = self._encode(images, text, max_text_length, images_kwargs, padding=padding, truncation=truncation)
        return BatchFeature(data, tensor_type=return_tensors)

    def decode_keywords(self, keywords: KeywordPredictionOutput) -> list[list[tuple[str, float]]]:
        """
        Decodes what [`~SimlaForPreTraining.predict_keywords`] found, for each image: words and their probabilities,
        best first.
        """
        rows = zip(keywords.token_ids.tolist(), keywords.probabilities.tolist(), strict=True)
        return [list(zip(self.tokenizer.convert_ids_to_tokens(ids), values, strict=True)) for ids, values in rows]


SimlaProcessor.register_for_auto_class("AutoProcessor")

__all__ = ["SimlaProcessor"]
