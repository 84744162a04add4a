"""Re-ranking and answer ranking as the published evaluation scripts do them: the slow, obvious way, for comparison.

Every candidate text gets its own copy of the image's (or the question's) states, padded to the longest text. Every
layer projects that copy to keys and values again. All positions pass the last layer, and all logits are formed.
"""

import torch

from vicha_hf.models.encodings import ImageEncoding, TextEncoding


UNSCORED = -100.0


@torch.no_grad()
def rerank(model, images: ImageEncoding, texts: TextEncoding, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Match logits of the `k` best of every image [N_i, N_t], then of every text [N_t, N_i]; -100 elsewhere."""
    similarity = images.embeds @ texts.embeds.T
    scores_i2t = torch.full_like(similarity, UNSCORED)
    for image, row in enumerate(similarity):
        best = row.topk(min(k, len(row))).indices
        scores_i2t[image, best] = _score(model, images, texts, torch.full_like(best, image), best)
    scores_t2i = torch.full_like(similarity.T, UNSCORED)
    for text, row in enumerate(similarity.T):
        best = row.topk(min(k, len(row))).indices
        scores_t2i[text, best] = _score(model, images, texts, best, torch.full_like(best, text))
    return scores_i2t, scores_t2i


def _score(model, images, texts, image_index, text_index) -> torch.Tensor:
    fused = model.base_model.text_model(
        inputs_embeds=texts.hidden_states[text_index],
        attention_mask=texts.attention_mask[text_index],
        encoder_hidden_states=images.hidden_states[image_index],
        encoder_attention_mask=None if images.attention_mask is None else images.attention_mask[image_index],
        mode="fusion",
    ).last_hidden_state
    return model.itm_head(fused[:, 0])[:, 1]


@torch.no_grad()
def rank_answers(model, question, answer_ids, answer_mask, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The candidates [B, k], likeliest first, and their log-likelihoods [B, k], for an encoded question."""
    num_questions = len(question.hidden_states)
    start = answer_ids[0, :1].expand(num_questions, 1)
    states = model.answer_decoder(start, question=question).last_hidden_state[:, 0]
    candidates = model.mlm_head(states).log_softmax(dim=-1)[:, answer_ids[:, 1]].topk(k, dim=1).indices
    ids, mask = answer_ids[candidates.flatten()], answer_mask[candidates.flatten()]
    repeated = model.answer_decoder.project_question(
        question.hidden_states.repeat_interleave(k, dim=0), question.attention_mask.repeat_interleave(k, dim=0)
    )
    logits = model.mlm_head(model.answer_decoder(ids, mask, question=repeated).last_hidden_state)
    likelihoods = logits[:, :-1].log_softmax(dim=-1).gather(2, ids[:, 1:, None]).squeeze(2)
    scores = (likelihoods * mask[:, 1:]).sum(dim=1).view(num_questions, k)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return candidates.gather(1, order), scores
