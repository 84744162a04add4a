"""ViCHA: vision-language model with visual concepts, hierarchical alignment and masked image modelling (arXiv 2208.13628)."""

from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers.utils import can_return_tuple

from .configuration_vicha import ViChaConfig, ViChaTextConfig, ViChaVisionConfig
from .encoder_concept import ConceptEncoder
from .head_language_modeling import LanguageModelingHead
from .input_checks import check_rows, check_together
from .modeling_outputs import PreTrainingOutput
from .modeling_vision_text import VisionTextModel, VisionTextPreTrainedModel
from .objective_hierarchical_itc import HierarchicalContrast
from .objective_itc import ImageTextContrast
from .objective_itm import HardNegativeSampler, ImageTextMatching, MatchingOutput
from .objective_mim import MaskedImageModeling
from .objective_mlm import IGNORED, MaskedLanguageModeling, leading_positions, mask_tokens
from .pretrained_encoders import load_text_weights, load_vision_weights, text_config_from, vision_config_from
from .task_contrast_and_match import ContrastAndMatch
from .task_retrieval import RetrievalTask


if TYPE_CHECKING:
    # transformers ships the files that it finds imported: with these lines every folder carries the code of every head.
    from .modeling_vicha_entailment import ViChaForVisualEntailment  # noqa: F401
    from .modeling_vicha_grounding import ViChaForGrounding  # noqa: F401
    from .modeling_vicha_reasoning import ViChaForTextAssignment, ViChaForVisualReasoning  # noqa: F401
    from .modeling_vicha_vqa import ViChaForVQA  # noqa: F401


class ViChaPreTrainedModel(VisionTextPreTrainedModel):
    """What all ViCHA models share."""

    config: ViChaConfig
    base_model_prefix = "vicha"

    def _new_base_model(self, add_projections: bool = True) -> "ViChaModel":
        return ViChaModel(self.config, add_projections)

    def resize_token_embeddings(self, new_num_tokens=None, pad_to_multiple_of=None, mean_resizing=True):
        """Resizes the text encoder's and the concept encoder's word embeddings together: they share the tokenizer."""
        embeddings = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        concept_model = self.base_model.concept_model
        if concept_model is not None:
            # Its configuration is the text encoder's, which knows the new size already.
            size = embeddings.num_embeddings
            resized = self._get_resized_embeddings(concept_model.get_input_embeddings(), size, None, mean_resizing)
            concept_model.set_input_embeddings(resized)
        return embeddings

    def resize_image_size(self, image_size: int) -> None:
        """Interpolates the learned positions to another input size (pixels), e.g. 384 for fine-tuning."""
        if getattr(self, "mim", None) is not None:
            raise ValueError(
                "Masked image modelling has fixed positions: set `mim_weight=0` to change the image size."
            )
        super().resize_image_size(image_size)


class ViChaModel(VisionTextModel, ViChaPreTrainedModel):
    """
    The bare ViCHA model: vision, concept and text encoders, projections to a joint space, and fusion.

    Args:
        config: its configuration.
        add_projections: whether pictures and texts are embedded in the joint space; heads that only fuse have no use
            for it, and their encodings have no `embeds`.
    """

    def _add_concepts(self) -> None:
        config, vision, text = self.config, self.config.vision_config, self.config.text_config
        self.concept_model = ConceptEncoder(text, config.num_concept_layers) if config.use_concepts else None
        self.concept_projection = nn.Linear(text.hidden_size, vision.hidden_size) if config.use_concepts else None

    def embed_concepts(
        self, concept_input_ids: torch.Tensor | None, concept_attention_mask: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Concepts [B, C] -> tokens for the vision encoder [B, C, d_v]; `None` without concepts."""
        if concept_input_ids is None:
            if concept_attention_mask is not None:
                raise ValueError("`concept_attention_mask` was given without `concept_input_ids`.")
            return None
        if self.concept_model is None:
            raise ValueError("`concept_input_ids` was given to a model with `use_concepts=False`; leave it out.")
        states = self.concept_model(concept_input_ids, concept_attention_mask).last_hidden_state
        return self.concept_projection(states)

    def _concept_tokens(self, pixel_values, concept_input_ids, concept_attention_mask):
        concepts = self.embed_concepts(concept_input_ids, concept_attention_mask)
        if concepts is None or "unmasked_concepts" in self.config.reference_quirks:
            concept_attention_mask = None
        if concepts is None and self.concept_model is not None and self.training and torch.is_grad_enabled():
            concepts, concept_attention_mask = self._unread_concepts(pixel_values)
        return concepts, concept_attention_mask

    def _unread_concepts(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        One concept token per picture that nothing attends to. Data-parallel training waits for the gradient of every
        parameter on every process, also where a whole batch happens to have no concepts.
        """
        ids = torch.zeros(pixel_values.shape[0], 1, dtype=torch.long, device=pixel_values.device)
        return self.embed_concepts(ids, ids), ids


class ViChaForPreTraining(ContrastAndMatch, ViChaPreTrainedModel):
    """
    ViCHA with its pretraining objectives: ITC with queue and momentum distillation, hierarchical ITC, ITM with hard
    negatives, MLM with distillation, MIM. Objectives whose weight is 0 have no parameters.
    """

    _tied_weights_keys = {  # noqa: RUF012
        "mlm_head.decoder.weight": "vicha.text_model.embeddings.word_embeddings.weight"
    }

    def __init__(self, config: ViChaConfig):
        super().__init__(config)
        vision, text, quirks = config.vision_config, config.text_config, config.reference_quirks
        self.vicha = ViChaModel(config)
        self.itm_head = nn.Linear(text.hidden_size, 2) if config.itm_weight > 0 else None
        self.itc = ImageTextContrast("excluded", local_columns="itc_local_columns" in quirks)
        self.negative_sampler = HardNegativeSampler()
        self.itm = ImageTextMatching()
        self.mlm_head = LanguageModelingHead(text) if config.mlm_weight > 0 else None
        if self.mlm_head is None:
            self._tied_weights_keys = {}
        self.mlm = MaskedLanguageModeling()
        self.hierarchical_itc = None
        if config.hierarchical_itc_weight > 0:
            self.hierarchical_itc = HierarchicalContrast(
                vision.hidden_size,
                text.hidden_size,
                config.projection_dim,
                config.hierarchical_itc_levels,
                config.hierarchical_itc_level_weights,
                local_diagonal="hitc_local_diagonal" in quirks,
            )
        self.mim = MaskedImageModeling(config) if config.mim_weight > 0 else None
        self.training_state = None
        self.post_init()

    def get_output_embeddings(self):
        return None if self.mlm_head is None else self.mlm_head.decoder

    def set_output_embeddings(self, new_embeddings):
        self.mlm_head.decoder = new_embeddings

    @classmethod
    def from_vision_text_pretrained(cls, vision: str, text: str, **config) -> "ViChaForPreTraining":
        """
        A model whose encoders start from separately pretrained ones, as the paper's do (DeiT-B and BERT-base).

        Args:
            vision: folder or Hub id of a ViT or DeiT checkpoint; its positions are interpolated to the image size.
            text: folder or Hub id of a BERT checkpoint; also starts the concept encoder and the masked-language head.
            config: fields of [`ViChaConfig`]; `vision_config` and `text_config` (dicts) override single fields of
                what the checkpoints say, e.g. `vision_config={"image_size": 256}`.
        """
        vision_config = vision_config_from(vision, ViChaVisionConfig, **config.pop("vision_config", {}))
        text_config = text_config_from(text, ViChaTextConfig, **config.pop("text_config", {}))
        model = cls(ViChaConfig(vision_config=vision_config, text_config=text_config, **config))
        load_vision_weights(model.vicha.vision_model, vision)
        load_text_weights(model.vicha.text_model, text, model.vicha.concept_model, model.mlm_head)
        return model

    def _online_modules(self) -> dict[str, nn.Module]:
        online = {"vicha": self.vicha}
        if self.mlm_head is not None:
            online["mlm_head"] = self.mlm_head
        return online

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        concept_input_ids: torch.Tensor | None = None,
        concept_attention_mask: torch.Tensor | None = None,
        image_ids: torch.Tensor | None = None,
        mlm_input_ids: torch.Tensor | None = None,
        mlm_labels: torch.Tensor | None = None,
        mim_noise: torch.Tensor | None = None,
        negative_image_indices: torch.Tensor | None = None,
        negative_text_indices: torch.Tensor | None = None,
        distillation_alpha: float | None = None,
        update_teacher: bool = True,
        **kwargs,
    ) -> PreTrainingOutput:
        """
        What is not given is drawn inside. In training mode the teacher is updated first and its features join the
        queue; in evaluation mode nothing changes.

        Args:
            pixel_values: [B, 3, H, W]; row b of pictures and texts is a pair.
            input_ids, attention_mask: [B, T], 1 = attend.
            concept_input_ids, concept_attention_mask: [B, C], 1 = attend.
            image_ids: [B], equal for the same image; other pairs of an image are then nobody's negatives.
            mlm_input_ids, mlm_labels: [B, T], masked ids and labels (-100 = not predicted).
            mim_noise: [B, P]; the patches with the smallest values stay.
            negative_image_indices: [B], for each text the row of its negative image.
            negative_text_indices: [B], for each image the row of its negative text.
            distillation_alpha: share of the teacher's soft targets; the configuration's by default.
            update_teacher: false for all but the first micro-batch of an accumulated step.
        """
        config, model = self.config, self.vicha
        check_rows(pixel_values=pixel_values, input_ids=input_ids, image_ids=image_ids, mim_noise=mim_noise)
        check_together(mlm_input_ids=mlm_input_ids, mlm_labels=mlm_labels)
        alpha = self._distillation_alpha(distillation_alpha)
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if self.training:
            model.clamp_temperature()
        self._begin_training_step(update_teacher)

        aligned = self.hierarchical_itc is not None
        record = {"output_hidden_states": True} if aligned else {}
        images, vision_output = model._encode_images(pixel_values, concept_input_ids, concept_attention_mask, **record)
        texts, text_output = model._encode_texts(input_ids, attention_mask, **record)
        teacher_images, teacher_texts = self._teacher_encodings(
            pixel_values, concept_input_ids, concept_attention_mask, input_ids, attention_mask
        )

        contrast = self._contrast(images, texts, teacher_images, teacher_texts, alpha, image_ids)
        losses = {"itc": contrast.loss}
        if aligned:
            losses["hierarchical_itc"] = self._align_levels(vision_output, text_output, image_ids).loss
        key_values = model.text_model.project_keys_values(images.hidden_states)
        match = MatchingOutput()
        if self.itm_head is not None:
            match = self._match(
                images, key_values, texts, contrast, image_ids, negative_image_indices, negative_text_indices
            )
            losses["itm"] = match.loss
        if self.mlm_head is not None:
            if mlm_input_ids is None:
                mlm_input_ids, mlm_labels = self._mask_tokens(input_ids, attention_mask)
            losses["mlm"] = self._model_language(
                images, key_values, teacher_images, mlm_input_ids, attention_mask, mlm_labels, alpha
            ).loss
        if self.mim is not None:
            losses["mim"] = self.mim(
                pixel_values, model.vision_model, model.text_model, texts.hidden_states, attention_mask, mim_noise
            ).loss
        weights = {name: getattr(config, f"{name}_weight") for name in losses}
        return PreTrainingOutput(
            # The contrast counts even with weight 0: it finds the hard negatives, and every projection needs a gradient.
            loss=sum(weights[name] * loss for name, loss in losses.items()),
            **{f"{name}_loss": loss for name, loss in losses.items() if weights[name] > 0},
            itm_logits=match.logits,
            temperature=model.temperature.detach(),
            distillation_alpha=alpha,
        )

    def _align_levels(self, vision_output, text_output, image_ids):
        levels = slice(-(self.config.hierarchical_itc_levels + 1), -1)
        norm = self.vicha.vision_model.layernorm
        image_levels = [norm(states[:, 0]) for states in vision_output.hidden_states[levels]]
        text_levels = [states[:, 0] for states in text_output.hidden_states[levels]]
        return self.hierarchical_itc(image_levels, text_levels, self.vicha.temperature, image_ids)

    def _mask_tokens(self, input_ids, attention_mask):
        text = self.config.text_config
        return mask_tokens(
            input_ids,
            attention_mask,
            self.config.mlm_probability,
            mask_token_id=text.mask_token_id,
            cls_token_id=text.cls_token_id,
            vocab_size=text.vocab_size,
        )

    def _model_language(self, images, key_values, teacher_images, masked_ids, attention_mask, labels, alpha):
        predicted = labels != IGNORED
        # Only these positions are read: as many columns as the text with the most of them needs.
        position, is_read = leading_positions(predicted)
        states = self.vicha.text_model(
            masked_ids,
            attention_mask,
            encoder_key_values=key_values,
            encoder_attention_mask=images.attention_mask,
            output_index=position,
        ).last_hidden_state
        with torch.no_grad():
            teacher = self._teacher()
            teacher_states = teacher[self.base_model_prefix].text_model(
                masked_ids,
                attention_mask,
                encoder_hidden_states=teacher_images.hidden_states,
                encoder_attention_mask=teacher_images.attention_mask,
                output_index=position,
            )
            teacher_logits = teacher["mlm_head"](teacher_states.last_hidden_state[is_read])
        return self.mlm(self.mlm_head(states[is_read]), teacher_logits, labels[predicted], alpha)


class ViChaForRetrieval(RetrievalTask, ViChaPreTrainedModel):
    """
    Image-text retrieval: fine-tuned with contrast and matching, answers in two stages ([`~ViChaForRetrieval.rerank`]).
    """


__all__ = ["ViChaForPreTraining", "ViChaForRetrieval", "ViChaModel", "ViChaPreTrainedModel"]
