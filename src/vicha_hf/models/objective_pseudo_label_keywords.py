"""
Pseudo-labelled keywords: the image's feature names the words that the teacher finds salient in its caption.

Reference:
    [1] Khan et al., SIMLA, arXiv 2203.14395, section 3 (pseudo-labelled keyword prediction, PSL).
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import ModelOutput

from .configuration_simla import SimlaConfig
from .encoder_attention import recorded_attention
from .pair_step import PairStep
from .process_group import mean_over_processes


@dataclass
class Keywords(ModelOutput):
    """
    Keywords of captions: their `positions` [B, K], the most voted first, and `exists` [B, K], which is false where a
    short caption has fewer. `votes` [B, T] counts the heads that nominated each position.
    """

    positions: torch.Tensor | None = None
    exists: torch.Tensor | None = None
    votes: torch.Tensor | None = None


@torch.no_grad()
def select_keywords(
    attention: torch.Tensor, candidates: torch.Tensor, votes_per_head: int, num_keywords: int
) -> Keywords:
    """
    Each head nominates the `votes_per_head` candidates that [CLS] attends to most; the `num_keywords` positions with the
    most nominations are the keywords. Equal attention and equal votes go to the earlier position; a position that no head
    nominated is no keyword.

    Args:
        attention: [B, H, T], what [CLS] pays to each position, by head.
        candidates: [B, T], true where a keyword may stand.
        votes_per_head, num_keywords: see above; a caption with fewer candidates has fewer keywords.
    """
    ranked = attention.float().masked_fill(~candidates[:, None], -1.0).sort(dim=-1, descending=True, stable=True)
    nominated = ranked.indices[..., :votes_per_head].flatten(1)
    counts = (ranked.values[..., :votes_per_head] >= 0).flatten(1).long()
    votes = torch.zeros_like(candidates, dtype=torch.long).scatter_add_(1, nominated, counts)
    ordered = votes.sort(dim=1, descending=True, stable=True)
    return Keywords(
        positions=ordered.indices[:, :num_keywords], exists=ordered.values[:, :num_keywords] > 0, votes=votes
    )


def word_positions(
    input_ids: torch.Tensor, attention_mask: torch.Tensor | None, special_token_ids: tuple[int, ...]
) -> torch.Tensor:
    """[B, T], true where a word stands: neither padding nor a special token."""
    words = ~torch.isin(input_ids, torch.tensor(special_token_ids, device=input_ids.device))
    return words if attention_mask is None else words & attention_mask.bool()


@dataclass
class PseudoLabelOutput(ModelOutput):
    """
    `logits`, `hard_targets`, `soft_targets` [B, vocabulary]; `keywords` as selected; `hard_loss` and `soft_loss` are the
    two parts of `loss`, before they are weighted.
    """

    loss: torch.Tensor | None = None
    hard_loss: torch.Tensor | None = None
    soft_loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hard_targets: torch.Tensor | None = None
    soft_targets: torch.Tensor | None = None
    keywords: Keywords | None = None


class PseudoLabelKeywords(nn.Module):
    """
    A linear head over the image's feature predicts the keywords. The loss is (1 - alpha) * binary cross-entropy with
    the keywords + alpha * binary cross-entropy with the teacher's own predictions. These know words that the caption
    leaves out. It is the mean over images and vocabulary, of all processes.

    Args:
        config: sizes, special tokens, and how keywords are chosen.
    """

    def __init__(self, config: SimlaConfig):
        super().__init__()
        self.config = config
        self.head = nn.Linear(config.projection_dim, config.text_config.vocab_size)

    def on_pairs(self, step: PairStep) -> PseudoLabelOutput:
        """Predicts the keywords of an encoded batch's texts from its images; the step's teacher has a head like this one."""
        texts = step.pairs.texts
        with torch.no_grad():
            teacher_logits = step.teacher["psl"].head(step.teacher_images.embeds)
            attention = self._attention(step)
        return self(step.images.embeds, teacher_logits, attention, texts.input_ids, texts.attention_mask, step.alpha)

    def _attention(self, step: PairStep) -> torch.Tensor:
        """[B, H, T], what [CLS] pays to each token in the last layer of the teacher's fusion with the image."""
        model, texts = step.teacher_model, step.pairs.texts
        images = step.images if self.config.quirks.simla_teacher_online_inputs else step.teacher_images
        with recorded_attention(model.text_model.encoder.layer[-1].attention.self) as record:
            # Only what [CLS] attends to is read.
            only_cls = texts.input_ids.new_zeros(1, 1)
            model.fuse_tokens(images, texts, output_index=only_cls, real_tokens=step.real_tokens)
        return record.probabilities[:, :, 0]

    def select(
        self, attention: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> Keywords:
        """The keywords of texts [B, T] by the teacher's attention [B, H, T]; mask 1 = a token."""
        config = self.config
        if not config.quirks.psl_any_position:
            candidates = word_positions(input_ids, attention_mask, config.text_config.special_token_ids)
            return select_keywords(attention, candidates, config.psl_votes_per_head, config.psl_num_keywords)
        anything = torch.ones_like(input_ids, dtype=torch.bool)
        keywords = select_keywords(attention, anything, config.psl_votes_per_head, config.psl_num_keywords)
        keywords.exists = torch.ones_like(keywords.exists)
        return keywords

    def hard_targets(self, keywords: Keywords, input_ids: torch.Tensor) -> torch.Tensor:
        """Multi-hot [B, vocabulary] over the keywords; never [CLS]."""
        text = self.config.text_config
        # What is no keyword goes to a column of its own, which is cut off.
        ids = input_ids.gather(1, keywords.positions).masked_fill(~keywords.exists, text.vocab_size)
        targets = torch.zeros(len(ids), text.vocab_size + 1, device=ids.device).scatter_(1, ids, 1.0)
        targets[:, text.cls_token_id] = 0.0
        return targets[:, : text.vocab_size]

    def forward(
        self,
        image_embeds: torch.Tensor,
        teacher_logits: torch.Tensor,
        attention: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        alpha: float,
    ) -> PseudoLabelOutput:
        """
        Args:
            image_embeds: [B, E], L2-normalised.
            teacher_logits: [B, vocabulary], the teacher's head on the teacher's feature.
            attention: [B, H, T], the teacher's [CLS] attention to the text, fused with the image, in its last layer.
            input_ids, attention_mask: [B, T], the whole captions; 1 = attend.
            alpha: share of the teacher's predictions.
        """
        keywords = self.select(attention, input_ids, attention_mask)
        hard, soft = self.hard_targets(keywords, input_ids), teacher_logits.detach().float().sigmoid()
        logits = self.head(image_embeds)
        hard_loss, soft_loss = (
            mean_over_processes(
                nn.functional.binary_cross_entropy_with_logits(logits.float(), targets, reduction="sum"),
                torch.tensor(logits.numel(), device=logits.device),
            )
            for targets in (hard, soft)
        )
        return PseudoLabelOutput(
            loss=(1 - alpha) * hard_loss + alpha * soft_loss,
            hard_loss=hard_loss,
            soft_loss=soft_loss,
            logits=logits,
            hard_targets=hard,
            soft_targets=soft,
            keywords=keywords,
        )
