"""Base of every family's pretraining head: contrast, matching and masked language modelling (ALBEF section 3)."""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from .block_mask import draw_kept_patches
from .contrast_parts import ContrastPart
from .encoder_text import KeyValues
from .encodings import ImageEncoding, TextEncoding
from .input_checks import check_rows, check_together
from .modeling_outputs import PreTrainingOutput
from .objective_itc import ContrastiveOutput, ImageTextContrast
from .objective_itm import HardNegativeSampler, ImageTextMatching, MatchingOutput
from .objective_mlm import (
    IGNORED,
    LanguageModelingHead,
    MaskedLanguageModeling,
    MaskedLanguageModelingOutput,
    leading_positions,
    mask_tokens,
)
from .pretrained_encoders import load_text_weights, load_vision_weights, text_config_from, vision_config_from
from .task_contrast_and_match import ContrastAndMatch


@dataclass
class EncodedStep:
    """
    A batch of pairs on its way through a training step. It holds encodings by the model and by its teacher, keys and
    values of the images for every text layer, and what the encoders recorded. It also knows the batch that it is a
    part of.
    """

    images: ImageEncoding
    texts: TextEncoding
    teacher_images: ImageEncoding
    teacher_texts: TextEncoding
    key_values: list[KeyValues | None]
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    image_ids: torch.Tensor | None
    alpha: float
    vision_output: object
    text_output: object
    part: ContrastPart | None


class PretrainingTask(ContrastAndMatch):
    """
    Builds the modules of the objectives that all families share, and runs them on an encoded step. To be mixed in before
    a family's `PreTrainedModel`; the family adds its own objectives and writes `forward`.
    """

    def __init__(self, config):
        super().__init__(config)
        text, quirks = config.text_config, config.reference_quirks
        self._add_base_model()
        self.itm_head = nn.Linear(text.hidden_size, 2) if config.itm_weight > 0 else None
        self.itc = ImageTextContrast("excluded", local_columns="itc_local_columns" in quirks)
        self.negative_sampler = HardNegativeSampler()
        self.itm = ImageTextMatching()
        self.mlm_head = LanguageModelingHead(text) if config.mlm_weight > 0 else None
        word_embeddings = f"{self.base_model_prefix}.text_model.embeddings.word_embeddings.weight"
        self._tied_weights_keys = {} if self.mlm_head is None else {"mlm_head.decoder.weight": word_embeddings}
        self.mlm = MaskedLanguageModeling()

    def get_output_embeddings(self):
        return None if self.mlm_head is None else self.mlm_head.decoder

    def set_output_embeddings(self, new_embeddings):
        self.mlm_head.decoder = new_embeddings

    @classmethod
    def from_vision_text_pretrained(cls, vision: str | None, text: str | None, **config):
        """
        A model whose encoders start from separately pretrained ones, as the papers' do (DeiT-B and BERT-base).

        Args:
            vision: folder or Hub id of a ViT or DeiT checkpoint; its positions are interpolated to the image size. `None`
                starts the vision encoder from random weights.
            text: folder or Hub id of a BERT checkpoint; also starts the masked-language head and, where there is one,
                the concept encoder. `None` starts them from random weights.
            config: fields of the family's configuration; `vision_config` and `text_config` (dicts) override single
                fields of what the checkpoints say, e.g. `vision_config={"image_size": 256}`.

        Raises:
            ValueError: a checkpoint of another kind, or one that lacks weights of its encoder, by name.
        """
        parts = cls.config_class.sub_configs
        vision_fields, text_fields = config.pop("vision_config", {}), config.pop("text_config", {})
        vision_class, text_class = parts["vision_config"], parts["text_config"]
        vision_config = vision_fields if vision is None else vision_config_from(vision, vision_class, **vision_fields)
        text_config = text_fields if text is None else text_config_from(text, text_class, **text_fields)
        model = cls(cls.config_class(vision_config=vision_config, text_config=text_config, **config))
        base = model.base_model
        if vision is not None:
            load_vision_weights(base.vision_model, vision)
        if text is not None:
            load_text_weights(base.text_model, text, getattr(base, "concept_model", None), model.mlm_head)
        return model

    def _online_modules(self) -> dict[str, nn.Module]:
        online = {self.base_model_prefix: self.base_model}
        if self.mlm_head is not None:
            online["mlm_head"] = self.mlm_head
        return online

    def _encode_step(
        self,
        pixel_values,
        input_ids,
        attention_mask,
        image_ids,
        distillation_alpha,
        update_teacher,
        concept_input_ids=None,
        concept_attention_mask=None,
        patch_indices=None,
        contrast_part=None,
        **record,
    ) -> EncodedStep:
        """Updates the teacher and encodes the batch; `record` goes to the online encoders."""
        check_rows(pixel_values=pixel_values, input_ids=input_ids, image_ids=image_ids, patch_indices=patch_indices)
        model = self.base_model
        alpha = self._distillation_alpha(distillation_alpha)
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if self.training:
            model.clamp_temperature()
        self._begin_training_step(update_teacher and contrast_part is None)
        inputs = (pixel_values, input_ids, attention_mask, concept_input_ids, concept_attention_mask)
        state = None if contrast_part is None else contrast_part.random_state
        with nullcontext() if state is None else state.replayed():
            images, vision_output, texts, text_output = self._encode_online(*inputs, patch_indices, **record)
        if contrast_part is None:
            teacher_images, teacher_texts = self._teacher_encodings(*inputs)
        else:
            teacher_images, teacher_texts = contrast_part.teacher_images, contrast_part.teacher_texts
        return EncodedStep(
            images=images,
            texts=texts,
            teacher_images=teacher_images,
            teacher_texts=teacher_texts,
            key_values=model.text_model.project_keys_values(images.hidden_states),
            input_ids=input_ids,
            attention_mask=attention_mask,
            image_ids=image_ids,
            alpha=alpha,
            vision_output=vision_output,
            text_output=text_output,
            part=contrast_part,
        )

    def _encode_online(
        self,
        pixel_values,
        input_ids,
        attention_mask,
        concept_input_ids=None,
        concept_attention_mask=None,
        patch_indices=None,
        **record,
    ):
        """The encodings of images and texts, each followed by what its encoder recorded."""
        if patch_indices is None:
            patch_indices = self._draw_kept_patches(pixel_values)
        images, vision_output = self.base_model._encode_images(
            pixel_values, concept_input_ids, concept_attention_mask, patch_indices=patch_indices, **record
        )
        texts, text_output = self.base_model._encode_texts(input_ids, attention_mask, **record)
        return images, vision_output, texts, text_output

    def _draw_kept_patches(self, pixel_values: torch.Tensor) -> torch.Tensor | None:
        """[B, K], or `None` where every patch stays."""
        dropout, patch = self.config.patch_dropout, self.config.vision_config.patch_size
        if dropout == 0 or not self.training:
            return None
        num_patches = (pixel_values.shape[-2] // patch) * (pixel_values.shape[-1] // patch)
        return draw_kept_patches(len(pixel_values), num_patches, dropout, pixel_values.device)

    def _contrast_step(self, step: EncodedStep) -> ContrastiveOutput:
        return self._contrast(
            step.images, step.texts, step.teacher_images, step.teacher_texts, step.alpha, step.image_ids, step.part
        )

    def _match_step(
        self, step: EncodedStep, contrast: ContrastiveOutput, negative_image_indices, negative_text_indices
    ) -> MatchingOutput:
        return self._match(
            step.images,
            step.key_values,
            step.texts,
            contrast,
            step.image_ids,
            negative_image_indices,
            negative_text_indices,
        )

    def _language_step(self, step: EncodedStep, mlm_input_ids, mlm_labels) -> MaskedLanguageModelingOutput:
        """Masked language modelling with the given masked ids and labels [B, T], or with drawn ones."""
        check_together(mlm_input_ids=mlm_input_ids, mlm_labels=mlm_labels)
        if mlm_input_ids is None:
            mlm_input_ids, mlm_labels = self._mask_tokens(step.input_ids, step.attention_mask)
        predicted = mlm_labels != IGNORED
        # Only these positions are read: as many columns as the text with the most of them needs.
        position, is_read = leading_positions(predicted)
        over_sequence = "mlm_softmax_over_sequence" in self.config.reference_quirks
        if over_sequence:
            position, is_read = None, predicted
        states = self.base_model.text_model(
            mlm_input_ids,
            step.attention_mask,
            encoder_key_values=step.key_values,
            encoder_attention_mask=step.images.attention_mask,
            output_index=position,
        ).last_hidden_state
        with torch.no_grad():
            teacher = self._teacher()
            teacher_states = teacher[self.base_model_prefix].text_model(
                mlm_input_ids,
                step.attention_mask,
                encoder_hidden_states=step.teacher_images.hidden_states,
                encoder_attention_mask=step.teacher_images.attention_mask,
                output_index=position,
            )
            teacher_logits = teacher["mlm_head"](teacher_states.last_hidden_state[is_read])
        soft = self.mlm_head(states).log_softmax(dim=1)[predicted] if over_sequence else None
        return self.mlm(self.mlm_head(states[is_read]), teacher_logits, mlm_labels[predicted], step.alpha, soft)

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

    def _weigh(self, losses: dict[str, torch.Tensor], step: EncodedStep, match: MatchingOutput) -> PreTrainingOutput:
        """The weighted sum of the losses by objective, and each of them as a field."""
        weights = {name: getattr(self.config, f"{name}_weight") for name in losses}
        return PreTrainingOutput(
            # The contrast counts even with weight 0: it finds the hard negatives, and every projection needs a gradient.
            loss=sum(weights[name] * loss for name, loss in losses.items()),
            **{f"{name}_loss": loss for name, loss in losses.items() if weights[name] > 0},
            itm_logits=match.logits,
            # FSDP2 takes the weights' storage back after the step.
            temperature=self.base_model.temperature.detach().clone(),
            distillation_alpha=step.alpha,
        )
