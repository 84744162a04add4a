"""
Image-text matching with hard negatives from the batch, the process's own or that of all.

Reference:
    [1] Li et al., Align before Fuse (ALBEF), arXiv 2107.07651, section 3.2 (ITM).
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import ModelOutput

from .encoder_attention import RealTokens
from .encoder_text import KeyValues
from .encodings import ImageEncoding, TextEncoding
from .modeling_outputs import Recorded
from .objective_itc import ContrastiveOutput
from .pair_step import PairStep
from .process_group import RowFetcher, gather, longest_of_all, mean_over_processes, world_size
from .random_draws import Draws


MATCH = 1


@dataclass
class HardNegatives(ModelOutput):
    """
    `image_indices` [B]: for each text an image that it does not describe; `text_indices` [B]: for each image a text.
    `image_exists`, `text_exists` [B]: false where there is no negative to draw (the index is then the own pair).
    Indices count the N candidates.
    """

    image_indices: torch.Tensor | None = None
    text_indices: torch.Tensor | None = None
    image_exists: torch.Tensor | None = None
    text_exists: torch.Tensor | None = None


class HardNegativeSampler(nn.Module):
    """Draws negatives in proportion to the softmaxed similarity; pairs of the same image are never drawn."""

    @torch.no_grad()
    def forward(
        self,
        sim_i2t: torch.Tensor,
        sim_t2i: torch.Tensor,
        image_ids: torch.Tensor | None = None,
        image_indices: torch.Tensor | None = None,
        text_indices: torch.Tensor | None = None,
        own_start: int = 0,
        candidate_ids: torch.Tensor | None = None,
        draws: Draws | None = None,
    ) -> HardNegatives:
        """
        Args:
            sim_i2t, sim_t2i: [B, N], similarities with the candidates, divided by the temperature: the process's own batch
                (N = B), or the batch of all processes.
            image_ids: [B], equal for the same image.
            image_indices, text_indices: [B], negatives given instead of drawn.
            own_start: the candidate that is the first row's own pair; the others follow.
            candidate_ids: [N], the candidates' image ids, where they are not `image_ids`.
            draws: source of the draws; torch's generator by default.
        """
        rows, candidates = (torch.arange(size, device=sim_i2t.device) for size in sim_i2t.shape)
        own_pair = rows[:, None] + own_start == candidates
        same = own_pair
        if image_ids is not None:
            candidate_ids = image_ids if candidate_ids is None else candidate_ids
            same = same | (image_ids[:, None] == candidate_ids[None, :])
        exists = ~same.all(dim=1)
        draws = Draws() if draws is None else draws
        if image_indices is None:
            image_indices = _draw(sim_t2i, same, own_pair, draws)
        if text_indices is None:
            text_indices = _draw(sim_i2t, same, own_pair, draws)
        return HardNegatives(
            image_indices=image_indices,
            text_indices=text_indices,
            image_exists=exists,
            text_exists=exists,
        )


def _draw(similarity: torch.Tensor, same: torch.Tensor, own_pair: torch.Tensor, draws: Draws) -> torch.Tensor:
    """One column for each row of [B, N] similarities; a row whose columns are all `same` draws its own pair."""
    # The softmax over the candidates alone has the same proportions as one over all columns, and cannot underflow to
    # nothing where the own pair is far ahead.
    similarity = similarity.float().masked_fill(same, torch.finfo(torch.float32).min)
    weights = similarity.softmax(dim=1).masked_fill(same, 0.0)
    weights = weights + (own_pair & same.all(dim=1, keepdim=True)).to(weights.dtype)
    # What is not finite cannot be drawn by; whoever reads the loss, which is not finite either, says what happened.
    weights = torch.where(weights.isfinite().all(dim=1, keepdim=True), weights, own_pair.to(weights.dtype))
    return draws.choices(weights)


@dataclass
class MatchingOutput(ModelOutput):
    """
    `logits` [3B, 2]: the pairs, (negative image, own text), (own image, negative text); `labels` [3B]. `hidden_states`,
    `attentions` and `cross_attentions` of their fusion, on request.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None


class ImageTextMatching(nn.Module):
    """
    Binary cross-entropy over positive and hard negative pairs, averaged over the pairs of all processes.

    Args:
        cross_process: the negatives come from the batch of all processes instead of the own one.
        label_smoothing: share of each label that both answers get alike; 0 is the papers' loss.
    """

    def __init__(self, cross_process: bool = False, label_smoothing: float = 0.0):
        super().__init__()
        self.cross_process = cross_process
        self.label_smoothing = label_smoothing

    def on_pairs(
        self,
        step: PairStep,
        contrast: ContrastiveOutput,
        sampler: HardNegativeSampler,
        head: nn.Module,
        image_indices: torch.Tensor | None = None,
        text_indices: torch.Tensor | None = None,
        hardness: float = 1.0,
        **record: Recorded,
    ) -> MatchingOutput:
        """
        Fuses the pairs of an encoded batch, each text with a hard negative image and each image with a hard negative
        text, and judges them.

        Args:
            step: the encoded batch.
            contrast: its contrast, whose similarities find the negatives.
            sampler: draws them.
            head: the matching head, [n, d_t] -> [n, 2].
            image_indices, text_indices: [B], negatives given instead of drawn.
            hardness: what the similarities are multiplied by before negatives are drawn by their softmax; 0 draws all
                with one probability.
            record: what to record of the fusion, e.g. `output_attentions=True`.
        """
        batch_size, first, image_ids = len(step.pairs), contrast.batch_start, step.pairs.image_ids
        everywhere = self.cross_process and world_size() > 1
        candidates = slice(0, world_size() * batch_size) if everywhere else slice(first, first + batch_size)
        negatives = sampler(
            hardness * contrast.sim_i2t[:, candidates],
            hardness * contrast.sim_t2i[:, candidates],
            image_ids,
            image_indices,
            text_indices,
            own_start=first - candidates.start,
            candidate_ids=gather(image_ids) if everywhere and image_ids is not None else None,
            draws=step.draws(),
        )
        images, texts, key_values = step.images, step.texts, step.key_values
        image_index, text_index = negatives.image_indices, negatives.text_indices
        pair = torch.arange(batch_size, device=images.embeds.device)
        if everywhere:
            images, texts, key_values = _with_negatives(step, negatives)
            # Behind the own images and texts come the fetched ones, one for each row.
            image_index = text_index = pair + batch_size
        text_index = torch.cat([pair, pair, text_index])
        fused = step.model.fuse(
            images,
            texts,
            key_values=key_values,
            image_index=torch.cat([pair, image_index, pair]),
            text_index=text_index,
            real_tokens=RealTokens.of(texts.attention_mask.index_select(0, text_index)),
            # The matching head reads [CLS] alone.
            output_index=None if any(record.values()) else pair.new_zeros(1, 1),
            text_output=step.text_output,
            **record,
        )
        output = self(head(fused.last_hidden_state[:, 0]), negatives)
        output.hidden_states, output.attentions = fused.hidden_states, fused.attentions
        output.cross_attentions = fused.cross_attentions
        return output

    def forward(self, logits: torch.Tensor, negatives: HardNegatives) -> MatchingOutput:
        """`logits` [3B, 2] in the order of [`MatchingOutput`]; negatives that do not exist are left out of the mean."""
        batch_size = logits.shape[0] // 3
        positive = torch.ones(batch_size, dtype=torch.bool, device=logits.device)
        labels = torch.cat([positive, ~positive, ~positive]).long()
        losses = nn.functional.cross_entropy(
            logits.float(), labels, reduction="none", label_smoothing=self.label_smoothing
        )
        exists = torch.cat([positive, negatives.image_exists, negatives.text_exists]).to(losses.dtype)
        loss = mean_over_processes((losses * exists).sum(), exists.sum())
        return MatchingOutput(loss=loss, logits=logits, labels=labels)


def _with_negatives(
    step: PairStep, negatives: HardNegatives
) -> tuple[ImageEncoding, TextEncoding, list[KeyValues | None]]:
    """
    The own images and texts [B, ...], each followed by the B negatives, which come from the processes that have them, and
    the images' keys and values. Images travel as tokens: keys and values of all layers would be more.
    """
    images, texts, batch_size = step.images, step.texts, len(step.pairs)
    tokens, image_mask, device = images.hidden_states, images.attention_mask, images.hidden_states.device
    if image_mask is None:
        image_mask = torch.ones(tokens.shape[:2], dtype=torch.long, device=device)
    # Each process pads to its own longest row.
    num_tokens, num_words = longest_of_all([tokens.shape[1], texts.attention_mask.shape[1]], device)
    fetch = RowFetcher(negatives.image_indices, batch_size)
    negative_key_values = step.model.text_model.project_keys_values(fetch(_lengthened(tokens, num_tokens)))
    key_values = [
        None
        if own is None
        else tuple(
            torch.cat([_lengthened(mine, num_tokens, dim=2), theirs]) for mine, theirs in zip(own, others, strict=True)
        )
        for own, others in zip(step.key_values, negative_key_values, strict=True)
    ]
    image_mask = _lengthened(image_mask, num_tokens)
    image_mask = torch.cat([image_mask, fetch(image_mask)])
    fetch = RowFetcher(negatives.text_indices, batch_size)

    def with_fetched(tensor: torch.Tensor) -> torch.Tensor:
        tensor = _lengthened(tensor, num_words)
        return torch.cat([tensor, fetch(tensor)])

    # Only what fusion starts from travels.
    start = "hidden_states" if texts.input_ids is None else "input_ids"
    texts = TextEncoding(
        attention_mask=with_fetched(texts.attention_mask), **{start: with_fetched(getattr(texts, start))}
    )
    return ImageEncoding(attention_mask=image_mask), texts, key_values


def _lengthened(tensor: torch.Tensor, length: int, dim: int = 1) -> torch.Tensor:
    """Zeros behind what stands along `dim`, up to `length`."""
    missing = length - tensor.shape[dim]
    if missing == 0:
        return tensor
    return torch.cat([tensor, tensor.new_zeros(*tensor.shape[:dim], missing, *tensor.shape[dim + 1 :])], dim=dim)
