"""
Base models of every family: a vision encoder and a text encoder with a joint space, and fusion (ALBEF, arXiv
2107.07651).
"""

import copy
import re

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import can_return_tuple

from .configuration_vision_text import VisionTextConfig
from .encoder_text import TextEncoder
from .encoder_vision import VisionEncoder, image_attention_mask
from .encodings import ImageEncoding, TextEncoding
from .hub_export import HubExportMixin
from .input_checks import check_rows
from .modeling_outputs import VisionTextOutput
from .training_state import TRAINING_STATE_PREFIX, TrainingStateMixin


TEMPERATURE_RANGE = (0.001, 0.5)


class VisionTextPreTrainedModel(TrainingStateMixin, HubExportMixin, PreTrainedModel):
    """Initialisation, loading and the training-only state shared by the models of every family."""

    config: VisionTextConfig
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["VisionEmbeddings", "VisionLayer", "TextEmbeddings", "TextLayer"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    # A folder holds heads and projections that another head has no use for.
    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012
        # Checkpoints of a run have teacher and queue among the weights.
        rf"^{re.escape(TRAINING_STATE_PREFIX)}",
        r"^(mim|mlm_head|hierarchical_itc|psl|itm_head|\w+_classifier|assignment_head|image_pair_encoder|answer_decoder)\.",
        r"^(\w+\.)?(vision_projection|text_projection|temperature)\b",
    ]
    # The losses are means over all processes already; Trainer must not rescale them.
    accepts_loss_kwargs = False

    def _new_base_model(self, add_projections: bool = True) -> "VisionTextModel":
        """The family's bare model."""
        raise NotImplementedError

    def _add_base_model(self, add_projections: bool = True) -> None:
        """Gives a head its base model, under the family's name for it."""
        setattr(self, self.base_model_prefix, self._new_base_model(add_projections))
        self.training_state = None

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, VisionTextModel) and module.temperature is not None:
            init.constant_(module.temperature, self.config.temperature_init)
        elif hasattr(module, "init_raw_tensors"):
            module.init_raw_tensors()

    def resize_token_embeddings(self, new_num_tokens=None, pad_to_multiple_of=None, mean_resizing=True):
        """
        Resizes as [`~transformers.PreTrainedModel.resize_token_embeddings`] does, before the teacher copies the sizes.
        """
        if getattr(self, "training_state", None) is not None:
            raise ValueError("Resize the token embeddings before `add_training_state`: the teacher copies the sizes.")
        return super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)

    def resize_image_size(self, image_size: int) -> None:
        """
        Interpolates the learned positions to another input size (pixels), e.g. 384 for fine-tuning.

        Raises:
            StrictDataclassError: a size that the configuration cannot have.
            ValueError: a model with training state.
        """
        if getattr(self, "training_state", None) is not None:
            raise ValueError("Resize the image size before `add_training_state`: the teacher copies the sizes.")
        # On a copy: a folder that could not be loaded again must not come to be.
        resized = copy.deepcopy(self.config)
        resized.vision_config.image_size = image_size
        resized.vision_config.validate()
        resized.validate()
        self.base_model.vision_model.resize_positions(image_size)

    def no_weight_decay(self) -> set[str]:
        """
        Names of the parameters that weight decay leaves alone besides biases and norms: temperature, [CLS], positions
        and mask token. The published code decays them (quirk `decay_embeddings`), and then the set is empty.
        """
        if "decay_embeddings" in self.config.reference_quirks:
            return set()
        free = ("temperature", "cls_token", "position_embeddings", "position_embeddings.weight", "mask_token")
        return {name for name, _ in self.named_parameters() if name.endswith(free)}

    def parameter_bounds(self) -> dict[str, tuple[float, float]]:
        """
        Names of the parameters that stay within bounds. `forward` sees to it in training mode; an optimiser that works on
        parts or copies of its own of the parameters (ZeRO) must do it too.
        """
        return {
            name: TEMPERATURE_RANGE
            for name, parameter in self.named_parameters()
            if name.split(".")[-1] == "temperature" and parameter.requires_grad
        }


class VisionTextModel:
    """
    Vision and text encoders, projections to a joint space, and fusion. To be mixed in before a family's
    `PreTrainedModel`.

    Args:
        config: its configuration.
        add_projections: whether images and texts are embedded in the joint space; heads that only fuse have no use
            for it, and their encodings have no `embeds`.
    """

    def __init__(self, config: VisionTextConfig, add_projections: bool = True):
        super().__init__(config)
        vision, text = config.vision_config, config.text_config
        self.vision_model = VisionEncoder(vision)
        self.text_model = TextEncoder(text)
        self._add_concepts()
        self.vision_projection = self.text_projection = self.temperature = None
        if add_projections:
            self.vision_projection = nn.Linear(vision.hidden_size, config.projection_dim)
            self.text_projection = nn.Linear(text.hidden_size, config.projection_dim)
            # One element rather than none: sharded training cannot split a scalar.
            self.temperature = nn.Parameter(torch.full((1,), config.temperature_init))
        self.training_state = None
        self.post_init()

    @property
    def reads_concept_padding(self) -> bool:
        """Whether padded concept tokens are attended to, so that an encoding depends on how far it is padded."""
        return False

    def _add_concepts(self) -> None:
        """The modules that turn visual concepts into tokens; none."""

    def get_input_embeddings(self):
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.text_model.set_input_embeddings(value)

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        self.temperature.clamp_(*TEMPERATURE_RANGE)

    def _concept_tokens(
        self,
        pixel_values: torch.Tensor,
        concept_input_ids: torch.Tensor | None,
        concept_attention_mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Tokens [B, C, d_v] that join the patches, and their mask [B, C]; none in a model without visual concepts."""
        if concept_input_ids is not None or concept_attention_mask is not None:
            raise ValueError(
                f"`concept_input_ids` was given to {type(self).__name__}, which has no visual concepts; leave it out."
            )
        return None, None

    def project_image(self, image_hidden_states: torch.Tensor) -> torch.Tensor | None:
        """[N, S, d_v] -> L2-normalised [N, E] from [CLS]; `None` without projections."""
        if self.vision_projection is None:
            return None
        return nn.functional.normalize(self.vision_projection(image_hidden_states[:, 0]), dim=-1)

    def project_text(self, text_hidden_states: torch.Tensor) -> torch.Tensor | None:
        """[N, T, d_t] -> L2-normalised [N, E] from the first token; `None` without projections."""
        if self.text_projection is None:
            return None
        return nn.functional.normalize(self.text_projection(text_hidden_states[:, 0]), dim=-1)

    def encode_images(
        self,
        pixel_values: torch.Tensor,
        concept_input_ids: torch.Tensor | None = None,
        concept_attention_mask: torch.Tensor | None = None,
    ) -> ImageEncoding:
        """
        `pixel_values` [N, 3, H, W]; concepts [N, C], mask 1 = attend, optional, for models that have them. An image
        whose mask row is zero is encoded as without concepts.
        """
        return self._encode_images(pixel_values, concept_input_ids, concept_attention_mask)[0]

    def _encode_images(
        self, pixel_values, concept_input_ids=None, concept_attention_mask=None, vision_model=None, **kwargs
    ):
        check_rows(
            pixel_values=pixel_values,
            concept_input_ids=concept_input_ids,
            concept_attention_mask=concept_attention_mask,
        )
        vision_model = self.vision_model if vision_model is None else vision_model
        concepts, concept_mask = self._concept_tokens(pixel_values, concept_input_ids, concept_attention_mask)
        output = vision_model(pixel_values, concepts, concept_mask, **kwargs)
        states = output.last_hidden_state
        num_image_tokens = states.shape[1] - (0 if concepts is None else concepts.shape[1])
        mask = image_attention_mask(states[:, :num_image_tokens], concept_mask)
        return ImageEncoding(embeds=self.project_image(states), hidden_states=states, attention_mask=mask), output

    def encode_texts(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> TextEncoding:
        """`input_ids`, `attention_mask` (1 = attend) [N, T]; without a mask every token is attended to."""
        return self._encode_texts(input_ids, attention_mask, token_type_ids)[0]

    def _encode_texts(self, input_ids, attention_mask=None, token_type_ids=None, **kwargs):
        output = self.text_model(input_ids, attention_mask, token_type_ids, mode="text", **kwargs)
        states = output.last_hidden_state
        encoding = TextEncoding(embeds=self.project_text(states), hidden_states=states, attention_mask=attention_mask)
        return encoding, output

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        concept_input_ids: torch.Tensor | None = None,
        concept_attention_mask: torch.Tensor | None = None,
    ) -> BaseModelOutputWithPooling:
        """`pooler_output` [N, E]: L2-normalised image embeddings; `last_hidden_state` [N, S, d_v]."""
        images = self.encode_images(pixel_values, concept_input_ids, concept_attention_mask)
        return BaseModelOutputWithPooling(last_hidden_state=images.hidden_states, pooler_output=images.embeds)

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> BaseModelOutputWithPooling:
        """`pooler_output` [N, E]: L2-normalised text embeddings; `last_hidden_state` [N, T, d_t]."""
        texts = self.encode_texts(input_ids, attention_mask, token_type_ids)
        return BaseModelOutputWithPooling(last_hidden_state=texts.hidden_states, pooler_output=texts.embeds)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        concept_input_ids: torch.Tensor | None = None,
        concept_attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        **kwargs,
    ) -> VisionTextOutput | BaseModelOutputWithPooling:
        """
        Compares n images with m texts. Images alone, or texts alone, give what `get_image_features` or
        `get_text_features` give: so transformers' pipelines for features find them.

        Args:
            pixel_values: [n, 3, H, W].
            input_ids, attention_mask, token_type_ids: [m, T]; mask 1 = attend.
            concept_input_ids, concept_attention_mask: [n, C]; mask 1 = attend; a zero row = no concepts. Only for models
                with visual concepts.

        Example:

        ```python
        >>> inputs = processor(images=image, text=["a cat", "a dog"], return_tensors="pt")
        >>> probabilities = model(**inputs).logits_per_image.softmax(dim=-1)  # [1, 2]
        ```
        """
        if pixel_values is None and input_ids is None:
            raise ValueError(f"{type(self).__name__} needs `pixel_values`, `input_ids`, or both.")
        if input_ids is None:
            return self.get_image_features(pixel_values, concept_input_ids, concept_attention_mask)
        if pixel_values is None:
            return self.get_text_features(input_ids, attention_mask, token_type_ids)
        images = self.encode_images(pixel_values, concept_input_ids, concept_attention_mask)
        texts = self.encode_texts(input_ids, attention_mask, token_type_ids)
        logits_per_image = images.embeds @ texts.embeds.T / self.temperature
        fused = None
        if len(pixel_values) == len(input_ids):
            fused = self.text_model(
                **texts.for_fusion(),
                encoder_hidden_states=images.hidden_states,
                encoder_attention_mask=images.attention_mask,
                **kwargs,
            )
        return VisionTextOutput(
            logits_per_image=logits_per_image,
            logits_per_text=logits_per_image.T,
            image_embeds=images.embeds,
            text_embeds=texts.embeds,
            last_hidden_state=None if fused is None else fused.last_hidden_state,
            image_hidden_states=images.hidden_states,
            text_hidden_states=texts.hidden_states,
            hidden_states=None if fused is None else fused.hidden_states,
            attentions=None if fused is None else fused.attentions,
            cross_attentions=None if fused is None else fused.cross_attentions,
        )


__all__ = ["VisionTextModel", "VisionTextPreTrainedModel"]
