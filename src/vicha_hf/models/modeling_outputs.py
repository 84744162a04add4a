"""Typed outputs of the models."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


# Whether to record, or the indices of the hidden states to record.
Recorded = bool | int | list[int]


def of_all_layers(record: dict[str, Recorded]) -> dict[str, bool]:
    """The same request for every layer, where [`chosen_states`] chooses among them afterwards."""
    if record.get("output_hidden_states") is None:
        return record
    return record | {"output_hidden_states": bool(record["output_hidden_states"])}


def chosen_states(
    states: tuple[torch.Tensor, ...] | None, wanted: Recorded | None
) -> tuple[torch.Tensor | None, ...] | None:
    """
    The hidden states of every layer that `output_hidden_states` asks for: a flag for all, or indices; as transformers
    does, `None` stands in the place of the others.
    """
    if isinstance(wanted, bool) or wanted is None or states is None:
        return states
    indices = [wanted] if isinstance(wanted, int) else wanted
    kept = {index % len(states) for index in indices if -len(states) <= index < len(states)}
    return tuple(state if number in kept else None for number, state in enumerate(states))


@dataclass
class RerankOutput(ModelOutput):
    """
    Two-stage retrieval scores: the match logit of the k best candidates by similarity, -100 elsewhere.

    `scores_i2t` [N_i, N_t]: each image's texts; `scores_t2i` [N_t, N_i]: each text's images.
    """

    scores_i2t: torch.Tensor | None = None
    scores_t2i: torch.Tensor | None = None


@dataclass
class VisionTextOutput(ModelOutput):
    """
    n images against m texts.

    Output of a base model. `logits_per_image` [n, m] and `logits_per_text` [m, n] are cosine similarity over
    temperature. `image_embeds` [n, E] and `text_embeds` [m, E] are L2-normalised. `image_hidden_states` are [n, S,
    d_v], `text_hidden_states` [m, T, d_t]. `last_hidden_state` [n, T, d_t] are the fused states of image i with text
    i, only where n == m.
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

    `hidden_states`, `attentions` and `cross_attentions` on request. Text-only layers have a row for each of the B texts.
    Layers that fuse have 3B rows as in `itm_logits`.
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
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class KeywordPredictionOutput(ModelOutput):
    """The k words that an image most probably contains, best first: `token_ids` [B, k], `probabilities` [B, k]."""

    token_ids: torch.Tensor | None = None
    probabilities: torch.Tensor | None = None


@dataclass
class RetrievalTrainingOutput(ModelOutput):
    """
    `loss` = `itc_loss` + `itm_loss`; `itm_logits` [3B, 2] as in [`PreTrainingOutput`].

    Where images and texts are no pairs, there is no loss. Evaluation mode adds `logits_per_image` [n, m] and
    `logits_per_text` [m, n], cosine similarity over temperature. It also adds `image_embeds` [n, E] and `text_embeds`
    [m, E]. `hidden_states`, `attentions` and `cross_attentions` as in [`PreTrainingOutput`].
    """

    loss: torch.Tensor | None = None
    itc_loss: torch.Tensor | None = None
    itm_loss: torch.Tensor | None = None
    itm_logits: torch.Tensor | None = None
    temperature: torch.Tensor | None = None
    distillation_alpha: float | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class ClassificationOutput(ModelOutput):
    """
    `logits` [B, classes]; `loss` where `labels` were given, distilled with the share `distillation_alpha` in training;
    `last_hidden_state` [B, T, d_t], the fused text.

    `hidden_states`, `attentions` and `cross_attentions` of the fused text, on request.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    distillation_alpha: float | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class TextAssignmentOutput(ModelOutput):
    """
    `logits` [B, 3]: the text belongs to the first image, the second, neither; `labels` [B] and `pair_indices` [B, 2]
    as given or drawn; `last_hidden_state` [B, T, d_t], the fused text.

    `hidden_states`, `attentions` and `cross_attentions` of the fused text, on request.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    pair_indices: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class QuestionAnsweringOutput(ModelOutput):
    """
    `loss` = sum(weight * answer loss) / B; `answer_losses` [n]: each answer's summed token loss, unweighted;
    `question_hidden_states` [B, T, d_t], the fused questions.

    `hidden_states`, `attentions` and `cross_attentions` of the fused text, on request.
    """

    loss: torch.Tensor | None = None
    answer_losses: torch.Tensor | None = None
    question_hidden_states: torch.Tensor | None = None
    distillation_alpha: float | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None


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
    where it does not count. They are made of `attention` and `attention_gradient` (clamped at 0). Both are [B, heads,
    T, h, w] with 0 at the text positions that do not count (`"itm"`), or [B, heads, h, w] (`"itc"`). The score is
    `match_logits` [B, 2], or `similarity` [B, B] divided by the temperature.

    `hidden_states`, `attentions` and `cross_attentions` on request: of the fused text (`"itm"`), or the first two of the
    image (`"itc"`).
    """

    heatmaps: torch.Tensor | None = None
    word_heatmaps: torch.Tensor | None = None
    match_logits: torch.Tensor | None = None
    similarity: torch.Tensor | None = None
    attention: torch.Tensor | None = None
    attention_gradient: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class BoxRankingOutput(ModelOutput):
    """`best_indices` [B]: each image's best box, -1 where none scores above 0; `scores`: each image's [n]."""

    best_indices: torch.Tensor | None = None
    scores: tuple[torch.Tensor, ...] | None = None
