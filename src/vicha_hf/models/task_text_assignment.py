"""Pretraining for visual reasoning: assigning a text to one of two images or to neither (ALBEF section 5)."""

from dataclasses import dataclass
from typing import ClassVar, Unpack

import torch
from torch import nn
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from .configuration_vision_text import VisionTextConfig, name_classes
from .encoder_image_pair import ImagePairEncoder, ImagePairTask
from .input_checks import check_arguments, check_labels, value_bounds
from .inputs import Pairs
from .modeling_outputs import TextAssignmentOutput
from .modeling_vision_text import draws_its_labels
from .objective_mlm import distilled_cross_entropy
from .process_group import mean_over_processes
from .random_draws import Draws


FIRST, SECOND, NEITHER = 0, 1, 2


# Of the published code; the model's own learned temperature is not used here.
SIMILARITY_TEMPERATURE = 0.07


@dataclass
class ImagePairs(ModelOutput):
    """
    Pairs of images for texts. `indices` [B, 2]: the rows of each text's two images. `labels` [B]: 0 the own image
    comes first, 1 second, 2 it is neither. `exists` [B]: false where the batch holds no other image; both indices are
    then the row itself.
    """

    indices: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    exists: torch.Tensor | None = None


class ImagePairSampler(nn.Module):
    """
    Draws each class with probability 1/3 and the other images in proportion to their softmaxed similarity to the own
    one. Images with the own image id are never drawn; where only one other image is left, it is never "neither".
    """

    @torch.no_grad()
    def forward(
        self,
        image_embeds: torch.Tensor,
        image_ids: torch.Tensor | None = None,
        draws: Draws | None = None,
    ) -> ImagePairs:
        """
        `image_embeds` [B, E], L2-normalised; `image_ids` [B], equal for the same image; `draws`: source of the draws, torch's
        generator by default.
        """
        batch_size, device = len(image_embeds), image_embeds.device
        same = _same_image(image_embeds, image_ids)
        similarity = image_embeds.float() @ image_embeds.float().T / SIMILARITY_TEMPERATURE
        # Adding Gumbel noise and taking the largest draws without replacement in proportion to the softmax, for all
        # rows at once and without underflow.
        draws = Draws() if draws is None else draws
        noise = -draws.exponential(similarity.shape, device).log()
        others = (similarity + noise).masked_fill(same, -torch.inf).topk(min(2, batch_size), dim=1).indices
        num_others = (~same).sum(dim=1)
        own = torch.arange(batch_size, device=device)
        first_other = torch.where(num_others > 0, others[:, 0], own)
        labels = draws.integers(3, (batch_size,), device)
        without_neither = draws.integers(2, (batch_size,), device)
        labels = torch.where(num_others > 1, labels, without_neither)
        indices = torch.stack(
            [torch.where(labels == FIRST, own, first_other), torch.where(labels == SECOND, own, first_other)], dim=1
        )
        indices[:, 1] = torch.where(labels == NEITHER, others[:, -1], indices[:, 1])
        return ImagePairs(indices=indices, labels=labels, exists=num_others > 0)


def _same_image(image_embeds: torch.Tensor, image_ids: torch.Tensor | None) -> torch.Tensor:
    same = torch.eye(len(image_embeds), dtype=torch.bool, device=image_embeds.device)
    return same if image_ids is None else same | (image_ids[:, None] == image_ids[None, :])


class TextAssignmentTask(ImagePairTask):
    """
    Mixin for text assignment, before a family's `PreTrainedModel`. The joint space only finds similar images and is
    not trained.
    """

    CLASSES = ("first", "second", "neither")

    head_modules: ClassVar[tuple[str, ...]] = (*ImagePairTask.head_modules, "assignment_head")

    def __init__(self, config: VisionTextConfig):
        super().__init__(config)
        text = config.text_config
        self._add_base_model()
        self._freeze_untrained()
        self.image_pair_encoder = ImagePairEncoder(text, text.first_doubled_layer)
        self.image_pair_sampler = ImagePairSampler()
        name_classes(config, self.CLASSES)
        self.assignment_head = nn.Linear(text.hidden_size, len(self.CLASSES))
        self.post_init()

    def _freeze_untrained(self) -> None:
        base = self.base_model
        for part in (base.vision_projection, base.text_projection):
            part.requires_grad_(False)
        base.temperature.requires_grad_(False)

    def _online_modules(self) -> dict[str, nn.Module]:
        return {}

    def _image_pairs(
        self,
        pairs: Pairs,
        image_embeds: torch.Tensor,
        pair_indices: torch.Tensor | None,
        labels: torch.Tensor | None,
    ) -> ImagePairs:
        if pair_indices is None and labels is None:
            draws = Draws(None if self.training else pairs.seed())
            return self.image_pair_sampler(image_embeds, pairs.image_ids, draws)
        batch_size = len(image_embeds)
        if pair_indices is None:
            raise ValueError("`labels` [B] go with `pair_indices` [B, 2]: give both, or neither to have them drawn.")
        bounds = value_bounds(pair_indices)
        if pair_indices.shape != (batch_size, 2) or (
            bounds is not None and not 0 <= bounds[0] <= bounds[1] < batch_size
        ):
            raise ValueError(
                f"`pair_indices` has shape {tuple(pair_indices.shape)}; expected two rows of the batch for each text, "
                f"[{batch_size}, 2], between 0 and {batch_size - 1}."
            )
        if labels is None:
            return ImagePairs(indices=pair_indices)
        check_labels(labels, batch_size, self.CLASSES)
        return ImagePairs(indices=pair_indices, labels=labels, exists=torch.ones_like(labels, dtype=torch.bool))

    @draws_its_labels
    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        concept_input_ids: torch.Tensor | None = None,
        concept_attention_mask: torch.Tensor | None = None,
        pair_indices: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        image_ids: torch.Tensor | None = None,
        distillation_alpha: float | None = None,
        update_teacher: bool = True,
        return_loss: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TextAssignmentOutput:
        """
        Args:
            pixel_values: [B, 3, H, W]; row b of images and texts belongs together.
            input_ids, attention_mask: [B, T], 1 = attend.
            concept_input_ids, concept_attention_mask: [B, C], 1 = attend; optional, a zero row = no concepts.
            pair_indices: [B, 2], each text's two images as rows of the batch; drawn inside by default.
            labels: [B], 0 the own image comes first, 1 second, 2 neither. `pair_indices` without labels have no loss.
            image_ids: [B], equal for the same image, which is then never drawn as another one.
            distillation_alpha, update_teacher: accepted as by every training head. The task has no teacher, here as
                in the paper, so they change nothing.
            return_loss: tells transformers' Trainer that the loss needs no labels.

        Raises:
            ValueError: rows that do not belong together, or labels without pairs.
        """
        record = check_arguments(self, kwargs)
        given = Pairs.given(
            pixel_values=pixel_values,
            input_ids=input_ids,
            attention_mask=attention_mask,
            concept_input_ids=concept_input_ids,
            concept_attention_mask=concept_attention_mask,
            image_ids=image_ids,
        )
        base = self.base_model
        images, _ = base.embed_images(given.pixel_values, given.concepts)
        pairs = self._image_pairs(given, images.embeds, pair_indices, labels)
        fused = self.image_pair_encoder(base.text_model, given.texts, images, pairs.indices, **record)
        logits = self.assignment_head(fused.last_hidden_state[:, 0])
        loss = None
        if pairs.labels is not None:
            losses = distilled_cross_entropy(logits, None, pairs.labels, 0.0)
            # A batch of one image has nothing to assign: its rows do not count.
            counted = pairs.exists.to(losses.dtype)
            loss = mean_over_processes((losses * counted).sum(), counted.sum())
        return TextAssignmentOutput(
            loss=loss,
            logits=logits,
            labels=pairs.labels,
            pair_indices=pairs.indices,
            last_hidden_state=fused.last_hidden_state,
            hidden_states=fused.hidden_states,
            attentions=fused.attentions,
            cross_attentions=fused.cross_attentions,
        )
