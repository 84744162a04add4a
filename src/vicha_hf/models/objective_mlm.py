"""
Masked language modelling with a momentum teacher's soft targets.

References:
    [1] Devlin et al., BERT, arXiv 1810.04805, section 3.1 (the 80/10/10 masking).
    [2] Li et al., Align before Fuse (ALBEF), arXiv 2107.07651, sections 3.2 (MLM) and 3.3 (distillation).
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.utils import ModelOutput

from .configuration_vision_text import VisionTextConfig
from .input_checks import check_shape, check_together
from .inputs import Texts
from .pair_step import PairStep
from .process_group import mean_over_processes
from .random_draws import Draws


class PredictionTransform(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.activation(self.dense(hidden_states)))


class LanguageModelingHead(nn.Module):
    """BERT's head [1]: `hidden_states` [..., d_t] -> logits [..., vocabulary]. The owner ties `decoder.weight` to the word
    embeddings."""

    def __init__(self, config):
        super().__init__()
        self.transform = PredictionTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.transform(hidden_states))


# The label of a position at which nothing is predicted.
IGNORED = -100


def distilled_cross_entropy(
    logits: torch.Tensor,
    teacher_logits: torch.Tensor | None,
    labels: torch.Tensor,
    alpha: float,
    soft_log_probabilities: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    (1 - alpha) * cross-entropy with `labels` [M] + alpha * cross-entropy with the softmax of `teacher_logits`
    [M, classes], for each row of `logits` [M, classes] -> [M]. Without teacher logits the labels alone count.
    `soft_log_probabilities` [M, classes] meet the teacher's in place of the logits' own. A label of -100 gives 0.
    """
    ignored = labels == IGNORED
    precision = torch.promote_types(logits.dtype, torch.float32)
    log_probabilities = logits.log_softmax(dim=-1, dtype=precision)
    hard = -log_probabilities.gather(1, labels.masked_fill(ignored, 0)[:, None]).squeeze(1)
    if teacher_logits is None:
        return hard.masked_fill(ignored, 0.0)
    if soft_log_probabilities is None:
        soft_log_probabilities = log_probabilities
    soft = -(soft_log_probabilities * teacher_logits.softmax(dim=-1, dtype=precision)).sum(dim=-1)
    return ((1 - alpha) * hard + alpha * soft).masked_fill(ignored, 0.0)


@torch.no_grad()
def mask_tokens(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    probability: float,
    mask_token_id: int,
    cls_token_id: int,
    vocab_size: int,
    draws: Draws | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Chooses each token that is neither padding nor [CLS] with the given probability; of the chosen 80 % become [MASK],
    10 % a random id, 10 % stay. `input_ids`, `attention_mask` (1 = real) [B, T]; `draws`: their source, torch's generator
    by default.

    Returns the masked ids and the labels, both [B, T]; labels are -100 where nothing is predicted.
    """
    draws = Draws() if draws is None else draws
    chosen = draws.uniform((2, *input_ids.shape), input_ids.device)
    predicted = (chosen[0] < probability) & attention_mask.bool() & (input_ids != cls_token_id)
    labels = input_ids.masked_fill(~predicted, IGNORED)
    random_ids = draws.integers(vocab_size, input_ids.shape, input_ids.device, input_ids.dtype)
    masked = torch.where(predicted & (chosen[1] < 0.8), torch.full_like(input_ids, mask_token_id), input_ids)
    masked = torch.where(predicted & (chosen[1] >= 0.9), random_ids, masked)
    return masked, labels


def mask_texts(
    texts: Texts, config: VisionTextConfig, draws: Draws | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """[`mask_tokens`] of texts that have a mask, as a model's configuration says."""
    text, real = config.text_config, texts.attention_mask.bool()
    if text.pad_token_id is not None:
        real = real & (texts.input_ids != text.pad_token_id)
    return mask_tokens(
        texts.input_ids,
        real,
        config.mlm_probability,
        mask_token_id=text.mask_token_id,
        cls_token_id=text.cls_token_id,
        vocab_size=text.vocab_size,
        draws=draws,
    )


def leading_positions(predicted: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
    """
    The predicted positions of each text, in order, as columns. Turns `predicted` [B, T] into positions [B, Q] and a
    mask [B, Q] of the predicted ones among them; the others fill the row up. Q is the most of any text, and at least
    1. In a compiled graph, whose shapes may not depend on values: `None`, for all positions, and `predicted`.
    """
    if torch.compiler.is_compiling():
        return None, predicted
    longest = max(int(predicted.sum(dim=1).max()), 1)
    position = predicted.int().argsort(dim=1, descending=True, stable=True)[:, :longest]
    return position, predicted.gather(1, position)


def predicted_rows(values: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    """
    The rows of `values` [B, T, ...] that `predicted` [B, T] marks: [M, ...]. In a compiled graph, whose shapes may not
    depend on values: all rows [B * T, ...]; labels of -100 then tell which do not count.
    """
    return values.flatten(0, 1) if torch.compiler.is_compiling() else values[predicted]


@dataclass
class MaskedLanguageModelingOutput(ModelOutput):
    """`logits`, `teacher_logits` [M, vocabulary] at the M predicted positions, in row-major order."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    teacher_logits: torch.Tensor | None = None


class MaskedLanguageModeling(nn.Module):
    """(1 - alpha) * cross-entropy + alpha * soft cross-entropy against the teacher, on the predicted positions only."""

    def on_pairs(
        self,
        step: PairStep,
        head: nn.Module,
        masked_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> MaskedLanguageModelingOutput:
        """
        Predicts words of an encoded batch's texts with the help of the images.

        Args:
            step: the encoded batch.
            head: turns states [n, d_t] into logits; the teacher's is its `mlm_head`.
            masked_ids, labels: [B, T], -100 where nothing is predicted; drawn by default.
        """
        check_together(mlm_input_ids=masked_ids, mlm_labels=labels)
        check_shape(step.pairs.texts.input_ids.shape, mlm_input_ids=masked_ids, mlm_labels=labels)
        if masked_ids is None:
            masked_ids, labels = mask_texts(step.pairs.texts, step.model.config, step.draws())
        texts, predicted = Texts(masked_ids, step.pairs.texts.attention_mask), labels != IGNORED
        # Only these positions are read: as many columns as the text with the most of them needs.
        (position, is_read), real_tokens = leading_positions(predicted), step.real_tokens
        over_sequence = step.model.config.quirks.mlm_softmax_over_sequence
        if over_sequence:
            # The softmax runs over padding too.
            position, is_read, real_tokens = None, predicted, None
        read = {"output_index": position, "real_tokens": real_tokens}
        states = step.model.fuse_tokens(step.images, texts, key_values=step.key_values, **read).last_hidden_state
        teacher_logits = None
        if step.uses_teacher:
            with torch.no_grad():
                teacher_states = step.teacher_model.fuse_tokens(step.teacher_images, texts, **read).last_hidden_state
                teacher_logits = step.teacher["mlm_head"](predicted_rows(teacher_states, is_read))
        soft = predicted_rows(head(states).log_softmax(dim=1), predicted) if over_sequence else None
        logits, labels = head(predicted_rows(states, is_read)), predicted_rows(labels, predicted)
        return self(logits, teacher_logits, labels, step.alpha, soft)

    def forward(
        self,
        logits: torch.Tensor,
        teacher_logits: torch.Tensor | None,
        labels: torch.Tensor,
        alpha: float,
        soft_log_probabilities: torch.Tensor | None = None,
    ) -> MaskedLanguageModelingOutput:
        """
        `logits`, `teacher_logits` [M, vocabulary] and `labels` [M] at the predicted positions. The teacher's targets
        meet the logits' softmax over the vocabulary, unless `soft_log_probabilities` [M, vocabulary] are given (quirk
        `mlm_softmax_over_sequence`). The mean is over the positions of all processes, without those whose label is -100;
        no position at all gives 0.
        """
        losses = distilled_cross_entropy(logits, teacher_logits, labels, alpha, soft_log_probabilities)
        loss = mean_over_processes(losses.sum(), (labels != IGNORED).sum())
        return MaskedLanguageModelingOutput(loss=loss, logits=logits, teacher_logits=teacher_logits)
