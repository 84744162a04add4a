"""A training step on pairs of image and text: the batch is encoded once, and every objective takes what it needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithCrossAttentions

from .encoder_attention import RealTokens
from .encoder_text import KeyValues
from .encoder_vision import VisionOutput
from .encodings import ImageEncoding, TextEncoding
from .feature_queue import FeatureQueue
from .inputs import Pairs
from .modeling_outputs import Recorded, of_all_layers
from .modeling_vision_text import VisionTextModel, VisionTextPreTrainedModel
from .process_group import require_equal_rows
from .random_draws import Draws, draw_kept_patches


@dataclass
class ContrastColumns:
    """
    The keys that a process's rows are compared with, besides the queue: the teacher's features [N, E] and image ids [N]
    of the batch of every process. `start`: the column of the first row's own pair; the others follow.
    """

    image_features: torch.Tensor
    text_features: torch.Tensor
    image_ids: torch.Tensor | None
    start: int


@dataclass
class ContrastPart:
    """
    A part's knowledge of the other parts.

    Args:
        teacher_images, teacher_texts: the part's own encodings by the teacher.
        columns: the teacher's features of the whole batch.
        enqueued: image features, text features [n * B, E] and image ids of all parts, for the queue; the last part has
            them, for the others must not find them there.
    """

    teacher_images: ImageEncoding
    teacher_texts: TextEncoding
    columns: ContrastColumns
    enqueued: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None = None


@dataclass
class PairStep:
    """
    B pairs on their way through a training step, as the model and its momentum teacher encode them (ALBEF section 3).

    Args:
        pairs: the batch; its texts have a mask.
        model: the base model that is trained.
        teacher: the teacher's modules by name; the head's own where it has no teacher.
        teacher_model: the teacher's base model.
        images, texts: encodings by the model, with gradient.
        teacher_images, teacher_texts: encodings by the teacher, without.
        image_output, text_output: what was recorded of the model's encoders.
        real_tokens: of the texts; `None` where there is no padding.
        alpha: share of the teacher's soft targets.
        queue: the teacher's features of earlier batches; `None` without training state.
        part: the batch is a part of a larger one.
        training: whether the head is in training mode.
    """

    pairs: Pairs
    model: VisionTextModel
    teacher: Mapping[str, nn.Module]
    teacher_model: VisionTextModel
    images: ImageEncoding
    texts: TextEncoding
    teacher_images: ImageEncoding | None
    teacher_texts: TextEncoding | None
    image_output: VisionOutput
    text_output: BaseModelOutputWithCrossAttentions
    real_tokens: RealTokens | None
    alpha: float
    queue: FeatureQueue | None
    part: ContrastPart | None
    training: bool
    # Not a cached property, whose lock a compiled graph cannot take.
    _key_values: list[KeyValues | None] | None = field(default=None, init=False)

    @classmethod
    def encode(
        cls,
        head: VisionTextPreTrainedModel,
        pairs: Pairs,
        *,
        distillation_alpha: float | None = None,
        update_teacher: bool = True,
        use_teacher: bool = True,
        part: ContrastPart | None = None,
        patch_dropout: float = 0.0,
        record_layers: bool = False,
        **record: Recorded,
    ) -> "PairStep":
        """
        Begins a head's training step, which moves the teacher, and encodes the batch. In evaluation mode nothing moves.

        Args:
            head: a head whose teacher follows its base model.
            pairs: the batch.
            distillation_alpha: the configuration's by default.
            update_teacher: false where the teacher has moved already.
            use_teacher: false for a step that the teacher has no part in, except that it follows the model.
            part: the batch is a part of a larger one, for which the teacher has moved already.
            patch_dropout: share of each image's patches that the model does not see in training mode; drawn here unless
                the batch names the patches that stay.
            record_layers: keep the output of every layer of both encoders.
            record: what else to record of the text's layers, e.g. `output_attentions=True`.
        """
        model = head.base_model
        pairs = replace(pairs, texts=pairs.texts.masked())
        alpha = head.alpha_of(distillation_alpha) if use_teacher else 0.0
        _begin(head, update_teacher and part is None)
        if head.training and patch_dropout > 0 and pairs.patch_indices is None:
            pairs = replace(pairs, patch_indices=_draw_kept_patches(head, pairs, patch_dropout))
        layers = {"output_hidden_states": True} if record_layers else {}
        images, image_output = model.embed_images(
            pairs.pixel_values, pairs.concepts, patch_indices=pairs.patch_indices, **layers
        )
        real_tokens = RealTokens.of(pairs.texts.attention_mask)
        texts, text_output = model.embed_texts(
            pairs.texts, real_tokens=real_tokens, **(of_all_layers(record) | layers)
        )
        teacher_images = teacher_texts = None
        if part is not None:
            teacher_images, teacher_texts = part.teacher_images, part.teacher_texts
        elif use_teacher:
            teacher_images, teacher_texts = encode_by_teacher(head, pairs, real_tokens)
        teacher = head.teacher_modules()
        return cls(
            pairs=pairs,
            model=model,
            teacher=teacher,
            teacher_model=teacher[head.base_model_prefix],
            images=images,
            texts=texts,
            teacher_images=teacher_images,
            teacher_texts=teacher_texts,
            image_output=image_output,
            text_output=text_output,
            real_tokens=real_tokens,
            alpha=alpha,
            queue=head.training_state.queue if use_teacher and head.training_state is not None else None,
            part=part,
            training=head.training,
        )

    @property
    def uses_teacher(self) -> bool:
        """Whether the teacher has encoded the batch."""
        return self.teacher_images is not None

    @property
    def key_values(self) -> list[KeyValues | None]:
        """The images' keys and values for every text layer, projected once for all passes that fuse with them."""
        if self._key_values is None:
            self._key_values = self.model.text_model.project_keys_values(self.images.hidden_states)
        return self._key_values

    @property
    def temperature(self) -> torch.Tensor:
        """[1], of every contrast."""
        return self.model.temperature

    def used_temperature(self) -> torch.Tensor:
        """The temperature as a number to report; FSDP2 takes the weights' storage back after the step."""
        return self.temperature.detach().clone()

    def draws(self) -> Draws:
        """
        Source of a step's random draws: torch's own in training mode, the batch in evaluation mode, where the same batch
        gives the same loss.
        """
        return Draws(None if self.training else self.pairs.seed())

    def enqueue_teacher_features(self) -> None:
        """Adds the batch to the queue in training mode; of a batch in parts, all parts with the last."""
        if self.queue is None or not self.training:
            return
        if self.part is None:
            self.queue.enqueue(self.teacher_images.embeds, self.teacher_texts.embeds, self.pairs.image_ids)
        elif self.part.enqueued is not None:
            self.queue.enqueue(*self.part.enqueued)


def _begin(head: VisionTextPreTrainedModel, update_teacher: bool) -> None:
    if head.training and head.clamps_temperature:
        head.base_model.clamp_temperature()
    head.begin_training_step(update_teacher)


def _draw_kept_patches(head: VisionTextPreTrainedModel, pairs: Pairs, dropout: float) -> torch.Tensor:
    """[B, K], patches that stay."""
    patch, (height, width) = head.config.vision_config.patch_size, pairs.pixel_values.shape[-2:]
    return draw_kept_patches(len(pairs), (height // patch) * (width // patch), dropout, pairs.pixel_values.device)


@torch.no_grad()
def encode_by_teacher(
    head: VisionTextPreTrainedModel, pairs: Pairs, real_tokens: RealTokens | None = None
) -> tuple[ImageEncoding, TextEncoding]:
    """Encodes whole images and texts by a head's teacher; `real_tokens`: of the texts, where they are known."""
    teacher = head.teacher_modules()[head.base_model_prefix]
    images, _ = teacher.embed_images(pairs.pixel_values, pairs.concepts)
    texts, _ = teacher.embed_texts(pairs.texts, real_tokens=real_tokens)
    return images, texts


@torch.no_grad()
def cache_contrast(head: VisionTextPreTrainedModel, batches: Sequence[Mapping[str, Any]]) -> list[ContrastPart]:
    """
    Prepares an optimiser step whose batch runs through `forward` in parts, each of which is then contrasted with all of
    them. Give `forward` every part with its own `contrast_part`, in this order, and average the losses. Loss and
    gradients of the contrast over batch and queue are those of the whole batch. The other objectives see their part
    alone, hard negatives and the hierarchical contrast included. The teacher does not move in such a step: call
    `update_teacher()` before.

    Args:
        head: a head with a contrast.
        batches: arguments of `forward` for each part, equally many rows in all of them.

    Raises:
        ValueError: parts of different sizes, or a model that draws its negatives from other processes.

    Reference:
        [1] Gao et al., GradCache, arXiv 2101.06983. There features are computed once without a graph, so that their
            gradient can be cached, and once more with one. The columns here are a teacher's and have no gradient: one
            pass is enough.
    """
    rows = {len(batch["pixel_values"]) for batch in batches}
    if len(rows) != 1:
        raise ValueError(
            f"the parts of a batch have {sorted(rows)} rows: their mean is the whole's only if all are equal."
        )
    if head.config.cross_process_negatives:
        raise ValueError(
            "`cross_process_negatives=True` is not possible with a batch in parts: negatives come from the own part."
        )
    _begin(head, update_teacher=False)
    encoded = []
    for batch in batches:
        pairs = Pairs.given(**{name: batch.get(name) for name in ENCODED_ARGUMENTS})
        pairs = replace(pairs, texts=pairs.texts.masked())
        encoded.append(encode_by_teacher(head, pairs, RealTokens.of(pairs.texts.attention_mask)))
    image_embeds, text_embeds = (torch.cat([pair[side].embeds for pair in encoded]) for side in (0, 1))
    ids = [batch.get("image_ids") for batch in batches]
    image_ids = None if ids[0] is None else torch.cat(ids)
    require_equal_rows(image_embeds)
    columns = head.itc.columns(image_embeds, text_embeds, image_ids)
    (size,) = rows
    return [
        ContrastPart(
            teacher_images=images,
            teacher_texts=texts,
            columns=replace(columns, start=columns.start + number * size),
            enqueued=(image_embeds, text_embeds, image_ids) if number == len(batches) - 1 else None,
        )
        for number, (images, texts) in enumerate(encoded)
    ]


# The arguments of `forward` that the teacher's encoders read.
ENCODED_ARGUMENTS = ("pixel_values", "input_ids", "attention_mask", "concept_input_ids", "concept_attention_mask")


__all__ = ["ContrastColumns", "ContrastPart", "PairStep", "cache_contrast", "encode_by_teacher"]
