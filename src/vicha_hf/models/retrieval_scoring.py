"""Two-stage retrieval (ALBEF section 6.1): similarity finds candidates, the matching head scores them."""

import torch

from .modeling_outputs import ImageEncoding, RerankOutput, TextEncoding
from .objective_itm import MATCH


UNSCORED = -100.0

# Pictures whose keys and values are held at once, and pairs per fused batch: together they bound the memory of
# re-ranking whatever the size of the corpus.
PICTURES_PER_BLOCK = 16
PAIRS_PER_BATCH = 256


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
        The match logit [n] of n pairs: picture `image_index[i]` with text `text_index[i]` (each [n]; by default
        picture i with text i). A picture's keys and values are computed once, however many texts it meets.
        """
        key_values = self.base_model.text_model.project_keys_values(images.hidden_states)
        return self._score(images, key_values, texts, image_index, text_index)

    def _score(self, images, key_values, texts, image_index, text_index):
        if self.itm_head is None:
            raise ValueError("This model has no matching head (`itm_weight=0`): pairs cannot be scored.")
        fused = self.base_model.text_model(
            **texts.for_fusion(text_index, trim=True),
            encoder_key_values=key_values,
            encoder_attention_mask=images.attention_mask,
            encoder_index=image_index,
        ).last_hidden_state
        return self.itm_head(fused[:, 0])[:, MATCH]

    @torch.no_grad()
    def rerank(self, images: ImageEncoding, texts: TextEncoding, k: int, progress=iter) -> RerankOutput:
        """
        Scores the `k` best candidates by cosine similarity of every picture and of every text with the matching head.
        A pair that both directions want is scored once; `k` above the size of the corpus scores every pair.

        Args:
            images, texts: encodings of N_i pictures and N_t texts.
            k: candidates per query.
            progress: wraps the list of picture blocks, e.g. `tqdm.tqdm`.
        """
        if k < 1:
            raise ValueError(f"`k={k}`: re-ranking needs at least one candidate per query.")
        similarity = images.embeds @ texts.embeds.T
        num_images, num_texts = similarity.shape
        device = similarity.device
        wanted_i2t = torch.zeros(num_images, num_texts, dtype=torch.bool, device=device)
        wanted_i2t.scatter_(1, similarity.topk(min(k, num_texts), dim=1).indices, True)
        wanted_t2i = torch.zeros(num_texts, num_images, dtype=torch.bool, device=device)
        wanted_t2i.scatter_(1, similarity.T.topk(min(k, num_images), dim=1).indices, True)
        wanted = wanted_i2t | wanted_t2i.T
        scores = torch.full((num_images, num_texts), UNSCORED, dtype=torch.float32, device=device)
        lengths = (
            torch.full((num_texts,), texts.hidden_states.shape[1], device=device)
            if texts.attention_mask is None
            else texts.attention_mask.sum(dim=1)
        )
        for start in progress(range(0, num_images, PICTURES_PER_BLOCK)):
            block = slice(start, start + PICTURES_PER_BLOCK)
            block_images = ImageEncoding(
                hidden_states=images.hidden_states[block],
                attention_mask=None if images.attention_mask is None else images.attention_mask[block],
            )
            key_values = self.base_model.text_model.project_keys_values(block_images.hidden_states)
            picture, text = wanted[block].nonzero(as_tuple=True)
            by_length = lengths[text].argsort(stable=True)
            for chunk in by_length.split(PAIRS_PER_BATCH):
                scored = self._score(block_images, key_values, texts, picture[chunk], text[chunk])
                scores[start + picture[chunk], text[chunk]] = scored.float()
        return RerankOutput(
            scores_i2t=scores.masked_fill(~wanted_i2t, UNSCORED),
            scores_t2i=scores.T.masked_fill(~wanted_t2i, UNSCORED),
        )
