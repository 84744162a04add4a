"""Two-stage retrieval (ALBEF section 6.1): similarity finds candidates, the matching head scores them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from .encodings import ImageEncoding, TextEncoding
from .modeling_outputs import RerankOutput
from .objective_itm import MATCH
from .packed_texts import PackedTexts


UNSCORED = -100.0

# Texts whose candidates are picked at once: bounds what picking needs beside the similarities.
TEXTS_PER_BLOCK = 1024


@dataclass
class Candidates:
    """
    The pairs that the second stage scores: `of_images` [N_i, N_t] marks every image's k texts, `of_texts` [N_i, N_t]
    every text's k images.
    """

    of_images: torch.Tensor
    of_texts: torch.Tensor

    @classmethod
    def pick(cls, similarity: torch.Tensor, k: int) -> "Candidates":
        """
        The `k` most similar, for both directions.

        Args:
            similarity: [N_i, N_t].
            k: candidates per query; above the size of the corpus all are picked.
        """
        if k < 1:
            raise ValueError(f"`k={k}`: re-ranking needs at least one candidate per query.")
        num_images, num_texts = similarity.shape
        of_images = torch.zeros_like(similarity, dtype=torch.bool)
        of_images.scatter_(1, similarity.topk(min(k, num_texts), dim=1).indices, True)
        of_texts = torch.zeros_like(of_images)
        for start in range(0, num_texts, TEXTS_PER_BLOCK):
            block = similarity[:, start : start + TEXTS_PER_BLOCK]
            best = block.topk(min(k, num_images), dim=0).indices
            of_texts[:, start : start + TEXTS_PER_BLOCK].scatter_(0, best, True)
        return cls(of_images, of_texts)

    def separate(
        self, scores: torch.Tensor, similarity: torch.Tensor | None = None, factor: float = 0.0
    ) -> RerankOutput:
        """
        The scores of the candidates by direction, -100 elsewhere.

        Args:
            scores: [N_i, N_t], match logits of the candidates of either direction; used up.
            similarity: [N_i, N_t], added to the logits, times `factor`.
            factor: 0 leaves the logits alone.
        """
        if factor:
            scores.add_(similarity, alpha=factor)
        scores_t2i = scores.masked_fill(self.of_texts.logical_not(), UNSCORED).T
        return RerankOutput(
            scores_i2t=scores.masked_fill_(self.of_images.logical_not(), UNSCORED), scores_t2i=scores_t2i
        )


class RetrievalScoring:
    """
    Encoding and scoring shared by every head with a matching head `itm_head` over its base model.
    """

    def encode_images(
        self,
        pixel_values: torch.Tensor,
        concept_input_ids: torch.Tensor | None = None,
        concept_attention_mask: torch.Tensor | None = None,
    ) -> ImageEncoding:
        """`pixel_values` [N, 3, H, W], concepts [N, C] with mask 1 = attend -> [`ImageEncoding`]."""
        return self.base_model.encode_images(pixel_values, concept_input_ids, concept_attention_mask)

    def encode_texts(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> TextEncoding:
        """`input_ids` and `attention_mask` (1 = attend) [N, T] -> [`TextEncoding`]."""
        return self.base_model.encode_texts(input_ids, attention_mask)

    def score_pairs(
        self,
        images: ImageEncoding,
        texts: TextEncoding,
        image_index: torch.Tensor | None = None,
        text_index: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        The match logit [n] of n pairs: image `image_index[i]` with text `text_index[i]` (each [n]; by default
        image i with text i). Differentiable; an image's keys and values are computed once, however many texts it
        meets.
        """
        self._check_matching_head()
        fused = self.base_model.fuse(
            images,
            texts.trimmed(text_index),
            image_index=image_index,
            output_index=torch.zeros(1, 1, dtype=torch.long, device=images.hidden_states.device),
        ).last_hidden_state
        return self.itm_head(fused[:, 0])[:, MATCH]

    def pack_texts(self, texts: TextEncoding | Sequence[TextEncoding]) -> PackedTexts:
        """All texts of a corpus, encoded as one or in batches, ready for `score_candidates`."""
        self._check_matching_head()
        return PackedTexts(self.base_model.text_model, texts)

    @torch.no_grad()
    def score_candidates(
        self, images: ImageEncoding, texts: PackedTexts, wanted: torch.Tensor, progress: Callable = iter
    ) -> torch.Tensor:
        """
        The match logits [n, N_t] of n images with the texts that `wanted` [n, N_t] marks, -100 elsewhere. One image
        is fused at a time: memory does not grow with the number of pairs. `progress` wraps the range of images.
        """
        scores = torch.full(wanted.shape, UNSCORED, dtype=torch.float32, device=wanted.device)
        for row in progress(range(len(scores))):
            states = images.hidden_states[row]
            if images.attention_mask is not None:
                states = states[images.attention_mask[row].bool()]
            index = wanted[row].nonzero()[:, 0]
            scores[row, index] = self.itm_head(texts.fuse(states, index))[:, MATCH].float()
        return scores

    def similarity_factor(self, similarity_weight: float | None = None) -> float:
        """
        Factor of the cosine similarity before it joins the match logit: weight / temperature.

        Args:
            similarity_weight: 0 ranks by the match logit alone; the configuration's `rerank_similarity_weight` by default.

        Raises:
            ValueError: a weight that is negative or not finite.
        """
        weight = self.config.rerank_similarity_weight if similarity_weight is None else similarity_weight
        if not 0 <= weight < math.inf:
            raise ValueError(f"`similarity_weight={weight}` must be 0 or more.")
        return weight / self.base_model.temperature.item() if weight else 0.0

    @torch.no_grad()
    def rerank(
        self,
        images: ImageEncoding,
        texts: TextEncoding,
        k: int,
        similarity_weight: float | None = None,
        progress: Callable = iter,
    ) -> RerankOutput:
        """
        Scores the `k` best candidates by cosine similarity of every image and of every text: the matching head's logit,
        plus weight x similarity / temperature. A pair that both directions want is scored once; `k` above the size of
        the corpus scores every pair.

        Args:
            images, texts: encodings of N_i images and N_t texts.
            k: candidates per query.
            similarity_weight: 0 gives the published score, the match logit alone (ALBEF section 6.1); by default the
                configuration's `rerank_similarity_weight`.
            progress: wraps the range of images, e.g. `tqdm.tqdm`.

        Raises:
            TypeError: `images` or `texts` are no encodings.
            ValueError: `k` below 1, a negative weight.
        """
        for name, given, kind in (("images", images, ImageEncoding), ("texts", texts, TextEncoding)):
            if not isinstance(given, kind):
                raise TypeError(
                    f"`{name}` is a {type(given).__name__}; give the {kind.__name__} of `encode_{name}`, which comes first."
                )
        factor = self.similarity_factor(similarity_weight)
        similarity = images.embeds @ texts.embeds.T
        candidates = Candidates.pick(similarity, k)
        wanted = candidates.of_images | candidates.of_texts
        scores = self.score_candidates(images, self.pack_texts(texts), wanted, progress)
        return candidates.separate(scores, similarity.float(), factor)

    def _check_matching_head(self) -> None:
        if self.itm_head is None:
            raise ValueError("This model has no matching head (`itm_weight=0`): pairs cannot be scored.")
