"""Fine-tuning for image-text retrieval with contrast and matching (ALBEF section 5)."""

from typing import ClassVar

import torch
from torch import nn
from transformers.utils import can_return_tuple

from .configuration_vision_text import VisionTextConfig
from .feature_queue import FeatureQueue
from .inputs import Pairs
from .modeling_outputs import RetrievalTrainingOutput
from .objective_itc import ImageTextContrast
from .objective_itm import HardNegativeSampler, ImageTextMatching
from .pair_step import ContrastPart, PairStep
from .retrieval_scoring import RetrievalScoring


class RetrievalTask(RetrievalScoring):
    """Mixin for retrieval, before a family's `PreTrainedModel`; scores as [`RetrievalScoring`] does."""

    head_modules: ClassVar[tuple[str, ...]] = ("itm_head",)

    def __init__(self, config: VisionTextConfig):
        super().__init__(config)
        self._add_base_model()
        self.itm_head = nn.Linear(config.text_config.hidden_size, 2)
        self.itc = ImageTextContrast("positive", local_columns=config.quirks.itc_local_columns)
        self.negative_sampler = HardNegativeSampler()
        self.itm = ImageTextMatching(config.cross_process_negatives)
        self.post_init()

    def _online_modules(self) -> dict[str, nn.Module]:
        return {self.base_model_prefix: self.base_model}

    def _new_queue(self) -> FeatureQueue:
        return FeatureQueue.of(self.config)

    @property
    def clamps_temperature(self) -> bool:
        return not self.config.quirks.temperature_unclamped

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
        return_loss: bool = True,
        **kwargs,
    ) -> RetrievalTrainingOutput:
        """
        The fine-tuning losses; arguments as in the family's pretraining head. Every pair of the same `image_ids`,
        in the batch or in the queue, is a positive.
        """
        pairs = Pairs.given(
            pixel_values=pixel_values,
            input_ids=input_ids,
            attention_mask=attention_mask,
            concept_input_ids=concept_input_ids,
            concept_attention_mask=concept_attention_mask,
            image_ids=image_ids,
        )
        step = PairStep.encode(
            self, pairs, distillation_alpha=distillation_alpha, update_teacher=update_teacher, part=contrast_part
        )
        contrast = self.itc.on_pairs(step)
        match = self.itm.on_pairs(
            step, contrast, self.negative_sampler, self.itm_head, negative_image_indices, negative_text_indices
        )
        return RetrievalTrainingOutput(
            loss=contrast.loss + match.loss,
            itc_loss=contrast.loss,
            itm_loss=match.loss,
            itm_logits=match.logits,
            temperature=step.used_temperature(),
            distillation_alpha=step.alpha,
        )
