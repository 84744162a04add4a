"""Pretraining for visual reasoning: assigning a text to one of two pictures or to neither (ALBEF section 5)."""

import torch
from torch import nn
from transformers.utils import can_return_tuple

from .encoder_image_pair import ImagePairEncoder, ImagePairTask
from .input_checks import check_labels, check_rows
from .modeling_outputs import TextAssignmentOutput
from .objective_distillation import distilled_cross_entropy
from .objective_text_assignment import PicturePairs, PicturePairSampler
from .process_group import mean_over_processes


class TextAssignmentTask(ImagePairTask):
    """
    To be mixed in before a family's `PreTrainedModel`. The joint space only finds similar pictures and is not trained.
    """

    CLASSES = ("first", "second", "neither")

    def __init__(self, config):
        super().__init__(config)
        text = config.text_config
        self._add_base_model()
        self._freeze_untrained()
        self.image_pair_encoder = ImagePairEncoder(text, text.first_doubled_layer)
        self.assignment_head = nn.Linear(text.hidden_size, len(self.CLASSES))
        self.post_init()

    def _freeze_untrained(self) -> None:
        base = self.base_model
        for part in (base.vision_projection, base.text_projection):
            part.requires_grad_(False)
        base.temperature.requires_grad_(False)

    def _online_modules(self) -> dict[str, nn.Module]:
        return {}

    def _pairs(self, image_embeds, image_ids, pair_indices, labels) -> PicturePairs:
        if pair_indices is None and labels is None:
            return PicturePairSampler()(image_embeds, image_ids)
        batch_size = len(image_embeds)
        if pair_indices is None or labels is None:
            raise ValueError("Give both `pair_indices` [B, 2] and `labels` [B], or neither to have them drawn.")
        if (
            pair_indices.shape != (batch_size, 2)
            or not 0 <= int(pair_indices.min()) <= int(pair_indices.max()) < batch_size
        ):
            raise ValueError(
                f"`pair_indices` has shape {tuple(pair_indices.shape)}; expected two rows of the batch for each text, "
                f"[{batch_size}, 2], between 0 and {batch_size - 1}."
            )
        check_labels(labels, batch_size, self.CLASSES)
        return PicturePairs(indices=pair_indices, labels=labels, exists=torch.ones_like(labels, dtype=torch.bool))

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
        **kwargs,
    ) -> TextAssignmentOutput:
        """
        Args:
            pixel_values: [B, 3, H, W]; row b of pictures and texts belongs together.
            input_ids, attention_mask: [B, T], 1 = attend.
            concept_input_ids, concept_attention_mask: [B, C], 1 = attend; optional, a zero row = no concepts.
            pair_indices: [B, 2], each text's two pictures as rows of the batch; drawn inside by default.
            labels: [B], 0 the own picture comes first, 1 second, 2 neither; given together with `pair_indices`.
            image_ids: [B], equal for the same picture, which is then never drawn as another one.
            distillation_alpha, update_teacher: accepted as by every training head. The task has no teacher, here as
                in the paper, so they change nothing.

        Raises:
            ValueError: rows that do not belong together, or pairs without labels.
        """
        check_rows(
            pixel_values=pixel_values, input_ids=input_ids, concept_input_ids=concept_input_ids, image_ids=image_ids
        )
        base = self.base_model
        images = base.encode_images(pixel_values, concept_input_ids, concept_attention_mask)
        pairs = self._pairs(images.embeds, image_ids, pair_indices, labels)
        states = self.image_pair_encoder(base.text_model, input_ids, attention_mask, images, pairs.indices)
        logits = self.assignment_head(states[:, 0])
        losses = distilled_cross_entropy(logits, None, pairs.labels, 0.0)
        # A batch of one picture has nothing to assign: its rows do not count.
        counted = pairs.exists.to(losses.dtype)
        return TextAssignmentOutput(
            loss=mean_over_processes((losses * counted).sum(), counted.sum()),
            logits=logits,
            labels=pairs.labels,
            pair_indices=pairs.indices,
            last_hidden_state=states,
        )
