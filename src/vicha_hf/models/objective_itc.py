"""
Image-text contrastive learning with a momentum teacher and a queue.

References:
    [1] Li et al., Align before Fuse (ALBEF), arXiv 2107.07651, sections 3.2 (ITC) and 3.3 (momentum distillation).
    [2] He et al., Momentum Contrast, arXiv 1911.05722 (the queue).
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers.utils import ModelOutput

from .encoder_recomputation import in_product_precision, recomputed
from .feature_queue import FeatureQueue, PastFeatures
from .pair_step import ContrastColumns, PairStep
from .process_group import gather, gather_with_gradient, rank, require_equal_rows


@dataclass
class ContrastiveOutput(ModelOutput):
    """
    `loss` is the mean of `loss_i2t` and `loss_t2i`. Similarities and targets are [B, columns], columns = teacher
    features of the batch of every process, then the queue; similarities are divided by the temperature.
    """

    loss: torch.Tensor | None = None
    loss_i2t: torch.Tensor | None = None
    loss_t2i: torch.Tensor | None = None
    sim_i2t: torch.Tensor | None = None
    sim_t2i: torch.Tensor | None = None
    sim_i2t_teacher: torch.Tensor | None = None
    sim_t2i_teacher: torch.Tensor | None = None
    targets_i2t: torch.Tensor | None = None
    targets_t2i: torch.Tensor | None = None
    batch_start: int | None = None


class ImageTextContrast(nn.Module):
    """
    Each image is to find its text among the teacher's texts of the whole batch and the queue, and the reverse. The
    targets mix the true pairs with the teacher's own similarities: (1 - alpha) * positives + alpha * softmax(teacher).

    Columns of the same image as a row, other than its own pair, are no negatives. With `same_image="excluded"`
    (pretraining) they leave the denominator; with `"positive"` (fine-tuning) they share the target equally.

    Args:
        same_image: `"excluded"` or `"positive"`.
        local_columns: quirk `itc_local_columns`, only the own process's batch besides the queue.
    """

    def __init__(self, same_image: str = "excluded", local_columns: bool = False):
        super().__init__()
        if same_image not in ("excluded", "positive"):
            raise ValueError(f'`same_image={same_image!r}`: choose "excluded" or "positive".')
        self.same_image = same_image
        self.local_columns = local_columns

    def columns(
        self,
        image_embeds: torch.Tensor,
        text_embeds: torch.Tensor,
        image_ids: torch.Tensor | None = None,
        with_gradient: bool = False,
    ) -> ContrastColumns:
        """
        Of a process's features [B, E], the teacher's, and image ids [B]: those of all processes.

        Args:
            with_gradient: the features are the model's own, and learn as columns too.
        """
        if self.local_columns:
            return ContrastColumns(image_embeds, text_embeds, image_ids, start=0)
        collect = gather_with_gradient if with_gradient else gather
        return ContrastColumns(
            image_features=collect(image_embeds),
            text_features=collect(text_embeds),
            image_ids=None if image_ids is None else gather(image_ids),
            start=rank() * len(image_embeds),
        )

    def on_pairs(self, step: PairStep) -> ContrastiveOutput:
        """The contrast of an encoded batch, whose teacher features then join the queue."""
        images, texts = step.images.embeds, step.texts.embeds
        require_equal_rows(images)
        columns = None if step.part is None else step.part.columns
        if step.uses_teacher:
            keys = step.teacher_images.embeds, step.teacher_texts.embeds
        else:
            keys = images, texts
            columns = self.columns(*keys, step.pairs.image_ids, with_gradient=True)
        contrast = self(
            images,
            texts,
            *keys,
            step.temperature,
            step.alpha,
            queue=step.queue,
            image_ids=step.pairs.image_ids,
            columns=columns,
        )
        step.enqueue_teacher_features()
        return contrast

    def forward(
        self,
        image_embeds: torch.Tensor,
        text_embeds: torch.Tensor,
        teacher_image_embeds: torch.Tensor,
        teacher_text_embeds: torch.Tensor,
        temperature: torch.Tensor,
        alpha: float,
        queue: FeatureQueue | None = None,
        image_ids: torch.Tensor | None = None,
        columns: ContrastColumns | None = None,
    ) -> ContrastiveOutput:
        """
        Args:
            image_embeds, text_embeds: [B, E], L2-normalised, with gradient; row b of both is a pair.
            teacher_image_embeds, teacher_text_embeds: [B, E], L2-normalised, without gradient; without a teacher the model's
                own.
            temperature: [] or [1], learned.
            alpha: share of the teacher's soft targets.
            queue: past teacher features, not yet holding this batch.
            image_ids: [B], equal for the same image; `None` if every image is different.
            columns: of a larger batch that these rows are a part of; by default those of the rows themselves.
        """
        if columns is None:
            columns = self.columns(teacher_image_embeds, teacher_text_embeds, image_ids)
        batch_size = image_embeds.shape[0]
        image_columns, text_columns, column_ids = columns.image_features, columns.text_features, columns.image_ids
        num_batch_columns = image_columns.shape[0]
        own_pair = torch.arange(batch_size, device=image_embeds.device) + columns.start
        allowed = torch.ones(num_batch_columns, dtype=torch.bool, device=image_embeds.device)
        joined = []
        if queue is not None:
            # Made again for the backward pass: the queue is the largest tensor of a step.
            past_images, past_texts = queue.remember()
            join_images = partial(_join, image_columns, past_images)
            join_texts = partial(_join, text_columns, past_texts)
            image_columns, text_columns = map(in_product_precision, (join_images(), join_texts()))
            joined = [(image_columns, join_images), (text_columns, join_texts)]
            allowed = torch.cat([allowed, queue.usable()])
            column_ids = None if column_ids is None else torch.cat([column_ids, queue.image_ids])

        positives = nn.functional.one_hot(own_pair, image_columns.shape[0]).to(image_embeds.dtype)
        allowed = allowed.expand(batch_size, -1)
        if column_ids is not None:
            same_image = (image_ids[:, None] == column_ids[None, :]) & allowed
            if self.same_image == "positive":
                positives = same_image.to(image_embeds.dtype)
                positives = positives / positives.sum(dim=1, keepdim=True)
            else:
                allowed = allowed & (~same_image | (positives > 0))

        with recomputed(*joined, checkpointed=not joined):
            sim_i2t = _similarity(image_embeds, text_columns, temperature, allowed)
            sim_t2i = _similarity(text_embeds, image_columns, temperature, allowed)
        with torch.no_grad():
            sim_i2t_teacher = _similarity(teacher_image_embeds, text_columns, temperature, allowed)
            sim_t2i_teacher = _similarity(teacher_text_embeds, image_columns, temperature, allowed)
            targets_i2t = alpha * sim_i2t_teacher.softmax(dim=1) + (1 - alpha) * positives
            targets_t2i = alpha * sim_t2i_teacher.softmax(dim=1) + (1 - alpha) * positives
        loss_i2t = soft_cross_entropy(sim_i2t, targets_i2t)
        loss_t2i = soft_cross_entropy(sim_t2i, targets_t2i)
        return ContrastiveOutput(
            loss=(loss_i2t + loss_t2i) / 2,
            loss_i2t=loss_i2t,
            loss_t2i=loss_t2i,
            sim_i2t=sim_i2t,
            sim_t2i=sim_t2i,
            sim_i2t_teacher=sim_i2t_teacher,
            sim_t2i_teacher=sim_t2i_teacher,
            targets_i2t=targets_i2t,
            targets_t2i=targets_t2i,
            batch_start=columns.start,
        )


def _join(columns: torch.Tensor, past: PastFeatures) -> torch.Tensor:
    return torch.cat([columns, past().to(columns.dtype)])


def _similarity(rows, columns, temperature, allowed):
    similarity = rows @ columns.T / temperature
    # A finite floor rather than -inf: its target is 0, and 0 * -inf would be nan.
    return similarity.masked_fill(~allowed, torch.finfo(similarity.dtype).min)


def soft_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean over rows of -sum(targets * log_softmax(logits)); `logits`, `targets` [B, classes]."""
    return -(logits.log_softmax(dim=1) * targets).sum(dim=1).mean()
