"""Fine-tuning for image-text retrieval with contrast and matching (ALBEF section 5)."""

from typing import ClassVar, Unpack

import torch
from torch import nn
from transformers.utils import TransformersKwargs, can_return_tuple

from .configuration_vision_text import VisionTextConfig
from .encodings import ImageEncoding, TextEncoding
from .feature_queue import FeatureQueue
from .input_checks import check_arguments
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
        self.itm = ImageTextMatching(config.cross_process_negatives, config.itm_label_smoothing)
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
        token_type_ids: torch.Tensor | None = None,
        return_loss: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> RetrievalTrainingOutput:
        """
        Computes the fine-tuning losses; arguments as in the family's pretraining head. Every pair of the same
        `image_ids`, in the batch or in the queue, is a positive. In evaluation mode also compares n images with m texts,
        as the bare model does, and then n and m may differ.

        Args:
            token_type_ids: [m, T], for a comparison without losses.
            return_loss: false compares alone, in evaluation mode. Where images and texts are no pairs there is no loss.
        """
        record = check_arguments(self, kwargs)
        if not self.training and (not return_loss or len(pixel_values) != len(input_ids)):
            images = self.encode_images(pixel_values, concept_input_ids, concept_attention_mask)
            texts = self.base_model.encode_texts(input_ids, attention_mask, token_type_ids)
            return RetrievalTrainingOutput(**self._compare(images, texts))
        pairs = Pairs.given(
            pixel_values=pixel_values,
            input_ids=input_ids,
            attention_mask=attention_mask,
            concept_input_ids=concept_input_ids,
            concept_attention_mask=concept_attention_mask,
            image_ids=image_ids,
        )
        step = PairStep.encode(
            self,
            pairs,
            distillation_alpha=distillation_alpha,
            update_teacher=update_teacher,
            part=contrast_part,
            **record,
        )
        contrast = self.itc.on_pairs(step)
        match = self.itm.on_pairs(
            step,
            contrast,
            self.negative_sampler,
            self.itm_head,
            negative_image_indices,
            negative_text_indices,
            **record,
        )
        return RetrievalTrainingOutput(
            loss=contrast.loss + match.loss,
            itc_loss=contrast.loss,
            itm_loss=match.loss,
            itm_logits=match.logits,
            temperature=step.used_temperature(),
            distillation_alpha=step.alpha,
            hidden_states=match.hidden_states,
            attentions=match.attentions,
            cross_attentions=match.cross_attentions,
            **({} if self.training else self._compare(step.images, step.texts)),
        )

    def _compare(self, images: ImageEncoding, texts: TextEncoding) -> dict[str, torch.Tensor]:
        logits_per_image = images.embeds @ texts.embeds.T / self.base_model.temperature
        return {
            "logits_per_image": logits_per_image,
            "logits_per_text": logits_per_image.T,
            "image_embeds": images.embeds,
            "text_embeds": texts.embeds,
        }
