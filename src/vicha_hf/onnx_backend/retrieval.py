"""Retrieval by ONNX files: embeddings, scores of pairs, and re-ranking as the torch models have them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..models.encodings import ImageEncoding, TextEncoding
from ..models.inputs import mask_with_a_token
from ..models.modeling_outputs import VisionTextOutput
from ..models.retrieval_scoring import UNSCORED, RetrievalScoring
from .sessions import OnnxModel, concept_inputs


# Pairs that the matching head scores at once; each has its own copy of the image's tokens.
PAIRS_PER_BATCH = 32


class OnnxRetrieval(OnnxModel, RetrievalScoring):
    """
    The image encoder, the text encoder and, where it was exported, the pair scorer.

    ```python
    >>> model = load_finetuned("retrieval", "outputs/onnx", backend="onnx")
    >>> model.get_image_features(pixel_values).pooler_output  # [N, E]
    ```

    Args:
        folder, config, num_threads: see [`OnnxModel`].
    """

    def __init__(self, folder: Path, config: PreTrainedConfig, num_threads: int | None = None):
        super().__init__(folder, config, num_threads)
        self.itm_head = self.parts.get("pair_scorer")
        self.temperature = torch.tensor([self.manifest.temperature])

    @property
    def base_model(self) -> "OnnxRetrieval":
        """The model itself, which has the temperature."""
        return self

    def encode_images(
        self,
        pixel_values: Tensor,
        concept_input_ids: Tensor | None = None,
        concept_attention_mask: Tensor | None = None,
    ) -> ImageEncoding:
        """`pixel_values` [N, 3, H, W], concepts [N, C] with mask 1 = attend -> [`ImageEncoding`]."""
        part = self.parts["image_encoder"]
        concepts = concept_inputs(part, len(pixel_values), concept_input_ids, concept_attention_mask)
        found = part(pixel_values=pixel_values.float(), **concepts)
        states, mask = found["image_hidden_states"], found["image_attention_mask"]
        if concepts and concept_input_ids is None:
            # The token that stood for no concepts, behind the patches.
            states, mask = states[:, :-1], mask[:, :-1]
        return ImageEncoding(embeds=found["image_embeds"], hidden_states=states, attention_mask=mask)

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> TextEncoding:
        """`input_ids` and `attention_mask` (1 = attend) [N, T] -> [`TextEncoding`]."""
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        found = self.parts["text_encoder"](input_ids=input_ids, attention_mask=attention_mask)
        reads_ids = self.itm_head is not None and "input_ids" in self.itm_head.inputs
        return TextEncoding(
            embeds=found["text_embeds"],
            hidden_states=found["text_hidden_states"],
            attention_mask=mask_with_a_token(attention_mask.cpu()),
            input_ids=input_ids.cpu() if reads_ids else None,
        )

    def get_image_features(
        self, pixel_values: Tensor, *concepts: Tensor, **named: Tensor
    ) -> BaseModelOutputWithPooling:
        """`pooler_output` [N, E], L2-normalised, and `last_hidden_state`; arguments of `encode_images`."""
        images = self.encode_images(pixel_values, *concepts, **named)
        return BaseModelOutputWithPooling(last_hidden_state=images.hidden_states, pooler_output=images.embeds)

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> BaseModelOutputWithPooling:
        """`pooler_output` [N, E], L2-normalised, and `last_hidden_state`; arguments of `encode_texts`."""
        texts = self.encode_texts(input_ids, attention_mask)
        return BaseModelOutputWithPooling(last_hidden_state=texts.hidden_states, pooler_output=texts.embeds)

    def __call__(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        concept_input_ids: Tensor | None = None,
        concept_attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> VisionTextOutput | BaseModelOutputWithPooling:
        """
        Compares n images with m texts: `logits_per_image` [n, m], `logits_per_text` and the embeddings. Images alone, or
        texts alone, give their features. `token_type_ids`, which tokenizers make, are 0 in an export.
        """
        if pixel_values is None and input_ids is None:
            raise ValueError(f"{type(self).__name__} needs `pixel_values`, `input_ids`, or both.")
        if input_ids is None:
            return self.get_image_features(pixel_values, concept_input_ids, concept_attention_mask)
        if pixel_values is None:
            return self.get_text_features(input_ids, attention_mask)
        images = self.encode_images(pixel_values, concept_input_ids, concept_attention_mask)
        texts = self.encode_texts(input_ids, attention_mask)
        logits = images.embeds @ texts.embeds.T / self.temperature
        return VisionTextOutput(
            logits_per_image=logits,
            logits_per_text=logits.T,
            image_embeds=images.embeds,
            text_embeds=texts.embeds,
        )

    def score_pairs(
        self,
        images: ImageEncoding,
        texts: TextEncoding,
        image_index: Tensor | None = None,
        text_index: Tensor | None = None,
    ) -> Tensor:
        """The match logit [n] of n pairs; arguments as in [`RetrievalScoring.score_pairs`]."""
        self._check_matching_head()
        number = len(images.hidden_states) if image_index is None else len(image_index)
        image_index = torch.arange(number) if image_index is None else image_index
        text_index = torch.arange(number) if text_index is None else text_index
        scores = []
        for of_images, of_texts in zip(
            image_index.split(PAIRS_PER_BATCH), text_index.split(PAIRS_PER_BATCH), strict=True
        ):
            chosen = texts.trimmed(of_texts)
            found = self.itm_head(
                image_hidden_states=images.hidden_states[of_images],
                image_attention_mask=images.attention_mask[of_images],
                text_hidden_states=chosen.hidden_states,
                attention_mask=chosen.attention_mask,
                input_ids=chosen.input_ids,
            )
            scores.append(found["match_logits"])
        return torch.cat(scores) if scores else torch.zeros(0)

    def pack_texts(self, texts: TextEncoding | Sequence[TextEncoding]) -> TextEncoding:
        """All texts of a corpus as one, ready for `score_candidates`."""
        self._check_matching_head()
        return texts if isinstance(texts, TextEncoding) else TextEncoding.concatenate(texts)

    def score_candidates(
        self, images: ImageEncoding, texts: TextEncoding, wanted: Tensor, progress: Callable = iter
    ) -> Tensor:
        """The match logits [n, N_t]; arguments as in [`RetrievalScoring.score_candidates`]."""
        scores = torch.full(wanted.shape, UNSCORED)
        for row in progress(range(len(scores))):
            index = wanted[row].nonzero()[:, 0]
            # By length, so that little is padded.
            index = index[texts.attention_mask[index].sum(dim=1).argsort()]
            scores[row, index] = self.score_pairs(images, texts, torch.full_like(index, row), index)
        return scores
