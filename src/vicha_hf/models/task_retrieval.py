"""Fine-tuning for image-text retrieval with contrast and matching (ALBEF section 5)."""

import torch
from torch import nn
from transformers.utils import can_return_tuple

from .contrast_parts import ContrastPart
from .input_checks import check_rows
from .modeling_outputs import RetrievalTrainingOutput
from .objective_itc import ImageTextContrast
from .objective_itm import HardNegativeSampler, ImageTextMatching
from .task_contrast_and_match import ContrastAndMatch


class RetrievalTask(ContrastAndMatch):
    """Mixin for retrieval, before a family's `PreTrainedModel`; scores as [`RetrievalScoring`] does."""

    def __init__(self, config):
        super().__init__(config)
        self._add_base_model()
        self.itm_head = nn.Linear(config.text_config.hidden_size, 2)
        self.itc = ImageTextContrast("positive", local_columns="itc_local_columns" in config.reference_quirks)
        self.negative_sampler = HardNegativeSampler()
        self.itm = ImageTextMatching()
        self.post_init()

    def _online_modules(self) -> dict[str, nn.Module]:
        return {self.base_model_prefix: self.base_model}

    @property
    def _clamps_temperature(self) -> bool:
        return "temperature_unclamped" not in self.config.reference_quirks

    def parameter_bounds(self) -> dict[str, tuple[float, float]]:
        return super().parameter_bounds() if self._clamps_temperature else {}

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        concept_input_ids: torch.Tensor | None = None,
        concept_attention_mask: torch.Tensor | None = None,
        image_ids: torch.Tensor | None = None,
        negative_image_indices: torch.Tensor | None = None,
        negative_text_indices: torch.Tensor | None = None,
        distillation_alpha: float | None = None,
        update_teacher: bool = True,
        contrast_part: ContrastPart | None = None,
        **kwargs,
    ) -> RetrievalTrainingOutput:
        """
        The fine-tuning losses; arguments as in the family's pretraining head. Every pair of the same `image_ids`,
        in the batch or in the queue, is a positive.
        """
        model = self.base_model
        check_rows(pixel_values=pixel_values, input_ids=input_ids, image_ids=image_ids)
        alpha = self._distillation_alpha(distillation_alpha)
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if self.training and self._clamps_temperature:
            model.clamp_temperature()
        self._begin_training_step(update_teacher and contrast_part is None)
        images = model.encode_images(pixel_values, concept_input_ids, concept_attention_mask)
        texts = model.encode_texts(input_ids, attention_mask)
        if contrast_part is None:
            teacher_images, teacher_texts = self._teacher_encodings(
                pixel_values, input_ids, attention_mask, concept_input_ids, concept_attention_mask
            )
        else:
            teacher_images, teacher_texts = contrast_part.teacher_images, contrast_part.teacher_texts
        contrast = self._contrast(images, texts, teacher_images, teacher_texts, alpha, image_ids, contrast_part)
        key_values = model.text_model.project_keys_values(images.hidden_states)
        match = self._match(
            images, key_values, texts, contrast, image_ids, negative_image_indices, negative_text_indices
        )
        return RetrievalTrainingOutput(
            loss=contrast.loss + match.loss,
            itc_loss=contrast.loss,
            itm_loss=match.loss,
            itm_logits=match.logits,
            # FSDP2 takes the weights' storage back after the step.
            temperature=model.temperature.detach().clone(),
            distillation_alpha=alpha,
        )
