"""Typed outputs of the models."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import ModelOutput


@dataclass
class ImageEncoding(ModelOutput):
    """
    Pictures, encoded once and for all texts.

    `embeds` [N, E], L2-normalised; `hidden_states` [N, S, d_v] ([CLS], patches, concepts); `attention_mask` [N, S],
    1 = attend, `None` where nothing is masked.
    """

    embeds: torch.Tensor | None = None
    hidden_states: torch.Tensor | None = None
    attention_mask: torch.Tensor | None = None

    @classmethod
    def concatenate(cls, encodings: "Sequence[ImageEncoding]") -> "ImageEncoding":
        """Joins batches of encodings; shorter sequences are padded and masked."""
        return cls(**_concatenate(encodings))


@dataclass
class TextEncoding(ModelOutput):
    """
    Texts, encoded by the text-only layers.

    `embeds` [N, E], L2-normalised; `hidden_states` [N, T, d_t]; `attention_mask` [N, T], 1 = attend; `input_ids` [N, T]
    where the model fuses a text from its ids (single-stream) instead of from its states.
    """

    embeds: torch.Tensor | None = None
    hidden_states: torch.Tensor | None = None
    attention_mask: torch.Tensor | None = None
    input_ids: torch.Tensor | None = None

    @classmethod
    def concatenate(cls, encodings: "Sequence[TextEncoding]") -> "TextEncoding":
        """Joins batches of encodings; shorter sequences are padded and masked."""
        joined = cls(**_concatenate(encodings))
        if encodings[0].input_ids is not None:
            longest = joined.hidden_states.shape[1]
            rows = [
                nn.functional.pad(encoding.input_ids, (0, longest - encoding.input_ids.shape[1]))
                for encoding in encodings
            ]
            joined.input_ids = torch.cat(rows)
        return joined

    def for_fusion(self, index: torch.Tensor | None = None, trim: bool = False) -> dict:
        """
        What the text encoder needs to fuse these texts, as arguments of its forward: the states go on where they are,
        single-stream models start from the ids again.

        Args:
            index: [n], the rows to fuse; all by default.
            trim: leave out the columns that are padding in every row.
        """
        single_stream = self.input_ids is not None
        texts, mask = self.input_ids if single_stream else self.hidden_states, self.attention_mask
        if index is not None:
            texts = texts.index_select(0, index)
            mask = None if mask is None else mask.index_select(0, index)
        if trim and mask is not None:
            longest = int(mask.bool().any(dim=0).nonzero().max()) + 1
            texts, mask = texts[:, :longest], mask[:, :longest]
        if single_stream:
            return {"input_ids": texts, "attention_mask": mask, "mode": "multimodal"}
        return {"inputs_embeds": texts, "attention_mask": mask, "mode": "fusion"}


def _concatenate(encodings) -> dict[str, torch.Tensor | None]:
    lengths = [encoding.hidden_states.shape[1] for encoding in encodings]
    longest = max(lengths)
    unmasked = all(encoding.attention_mask is None for encoding in encodings) and min(lengths) == longest
    hidden_states, masks = [], []
    for encoding, length in zip(encodings, lengths, strict=True):
        states, mask = encoding.hidden_states, encoding.attention_mask
        if mask is None:
            mask = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
        hidden_states.append(nn.functional.pad(states, (0, 0, 0, longest - length)))
        masks.append(nn.functional.pad(mask, (0, longest - length)))
    return {
        "embeds": None if encodings[0].embeds is None else torch.cat([encoding.embeds for encoding in encodings]),
        "hidden_states": torch.cat(hidden_states),
        "attention_mask": None if unmasked else torch.cat(masks),
    }


@dataclass
class RerankOutput(ModelOutput):
    """
    Two-stage retrieval scores: the match logit of the k best candidates by similarity, -100 elsewhere.

    `scores_i2t` [N_i, N_t]: each picture's texts; `scores_t2i` [N_t, N_i]: each text's pictures.
    """

    scores_i2t: torch.Tensor | None = None
    scores_t2i: torch.Tensor | None = None


@dataclass
class VisionTextOutput(ModelOutput):
    """
    n pictures against m texts.

    `logits_per_image` [n, m] and `logits_per_text` [m, n]: cosine similarity over temperature; `image_embeds` [n, E]
    and `text_embeds` [m, E], L2-normalised; `image_hidden_states` [n, S, d_v]; `text_hidden_states` [m, T, d_t];
    `last_hidden_state` [n, T, d_t]: the fused states of picture i with text i, only where n == m.
    """

    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    image_hidden_states: torch.Tensor | None = None
    text_hidden_states: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class PreTrainingOutput(ModelOutput):
    """
    `loss` is the weighted sum of the objectives; each objective's own loss is unweighted, `None` where it is off.

    `hierarchical_itc_loss` has its level weights applied. `itm_logits` [3B, 2]: matching pairs, (negative image, own
    text), (own image, negative text). `temperature` and `distillation_alpha` are those that were used.
    """

    loss: torch.Tensor | None = None
    itc_loss: torch.Tensor | None = None
    hierarchical_itc_loss: torch.Tensor | None = None
    itm_loss: torch.Tensor | None = None
    mlm_loss: torch.Tensor | None = None
    mim_loss: torch.Tensor | None = None
    psl_loss: torch.Tensor | None = None
    itm_logits: torch.Tensor | None = None
    temperature: torch.Tensor | None = None
    distillation_alpha: float | None = None


@dataclass
class KeywordPredictionOutput(ModelOutput):
    """The k words that a picture most probably contains, best first: `token_ids` [B, k], `probabilities` [B, k]."""

    token_ids: torch.Tensor | None = None
    probabilities: torch.Tensor | None = None


@dataclass
class RetrievalTrainingOutput(ModelOutput):
    """`loss` = `itc_loss` + `itm_loss`; `itm_logits` [3B, 2] as in [`PreTrainingOutput`]."""

    loss: torch.Tensor | None = None
    itc_loss: torch.Tensor | None = None
    itm_loss: torch.Tensor | None = None
    itm_logits: torch.Tensor | None = None
    temperature: torch.Tensor | None = None
    distillation_alpha: float | None = None


@dataclass
class ClassificationOutput(ModelOutput):
    """
    `logits` [B, classes]; `loss` where `labels` were given, distilled with the share `distillation_alpha` in training;
    `last_hidden_state` [B, T, d_t], the fused text.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    distillation_alpha: float | None = None


@dataclass
class TextAssignmentOutput(ModelOutput):
    """
    `logits` [B, 3]: the text belongs to the first picture, the second, neither; `labels` [B] and `pair_indices` [B, 2]
    as given or drawn; `last_hidden_state` [B, T, d_t], the fused text.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    pair_indices: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None


@dataclass
class QuestionAnsweringOutput(ModelOutput):
    """
    `loss` = sum(weight * answer loss) / B; `answer_losses` [n]: each answer's summed token loss, unweighted;
    `question_hidden_states` [B, T, d_t], the fused questions.
    """

    loss: torch.Tensor | None = None
    answer_losses: torch.Tensor | None = None
    question_hidden_states: torch.Tensor | None = None
    distillation_alpha: float | None = None


@dataclass
class AnswerRankingOutput(ModelOutput):
    """
    Each question's candidates, best first: `answer_indices` [B, k] into the list, `probabilities` [B, k] among the
    candidates, `scores` [B, k] log-likelihoods; `first_token_logits` [B, vocabulary].
    """

    answer_indices: torch.Tensor | None = None
    probabilities: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    first_token_logits: torch.Tensor | None = None


@dataclass
class GroundingOutput(ModelOutput):
    """
    `heatmaps` [B, h, w] over the patches; `word_heatmaps` [B, T, h, w], what each text position adds to them (`"itm"`), 0
    where it does not count. What they are made of: `attention` and `attention_gradient` (clamped at 0),
    [B, heads, T, h, w] with 0 at the text positions that do not count (`"itm"`) or [B, heads, h, w] (`"itc"`); and
    `match_logits` [B, 2] or `similarity` [B, B], divided by the temperature.
    """

    heatmaps: torch.Tensor | None = None
    word_heatmaps: torch.Tensor | None = None
    match_logits: torch.Tensor | None = None
    similarity: torch.Tensor | None = None
    attention: torch.Tensor | None = None
    attention_gradient: torch.Tensor | None = None


@dataclass
class BoxRankingOutput(ModelOutput):
    """`best_indices` [B]: each picture's best box, -1 where none scores above 0; `scores`: each picture's [n]."""

    best_indices: torch.Tensor | None = None
    scores: tuple[torch.Tensor, ...] | None = None
