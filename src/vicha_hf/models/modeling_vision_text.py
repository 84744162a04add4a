"""
Base models of every family: a vision encoder and a text encoder with a joint space, and fusion (ALBEF, arXiv
2107.07651).
"""

import copy
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Unpack

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithCrossAttentions, BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import TransformersKwargs, can_return_tuple

from .configuration_vision_text import VisionTextConfig
from .encoder_attention import RealTokens
from .encoder_text import KeyValues, TextEncoder
from .encoder_vision import VisionEncoder, VisionOutput
from .encodings import ImageEncoding, TextEncoding
from .hub_export import HubExportMixin
from .input_checks import check_arguments, check_rows
from .inputs import Concepts, ConceptTokens, Texts
from .modeling_outputs import Recorded, VisionTextOutput, chosen_states, of_all_layers
from .training_state import TRAINING_STATE_PREFIX, TrainingStateMixin


TEMPERATURE_RANGE = (0.001, 0.5)


def draws_its_labels(forward: Callable) -> Callable:
    """
    Hides a forward's arguments named as labels from whoever reads its signature. The head draws those that it is not given;
    transformers' Trainer would wait for them before it computes a loss in evaluation.
    """
    signature = inspect.signature(forward)
    shown = [parameter for name, parameter in signature.parameters.items() if "label" not in name]
    forward.__signature__ = signature.replace(parameters=shown)
    return forward


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
    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012
        # Checkpoints of a run have teacher and queue among the weights.
        rf"^{re.escape(TRAINING_STATE_PREFIX)}",
        # The base model's parts that some heads leave out.
        r"^(\w+\.)?(vision_projection|text_projection|temperature)\b",
    ]
    # The modules that a head or a task adds to the base model, by name.
    head_modules: ClassVar[tuple[str, ...]] = ()
    # The losses are means over all processes already; Trainer must not rescale them.
    accepts_loss_kwargs = False

    def post_init(self) -> None:
        """Finishes the model. Its folder may hold what any other head adds to the base model, which it has no use for."""
        super().post_init()
        names = {name for head in _classes_below(VisionTextPreTrainedModel) for name in head.head_modules}
        self._keys_to_ignore_on_load_unexpected.update(rf"^{name}\." for name in names)

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

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """
        Resizes as [`~transformers.PreTrainedModel.resize_token_embeddings`] does, and whatever else goes by the same
        tokenizer. A teacher keeps its own weights for the tokens that stay, and starts those of new tokens as a copy.

        Raises:
            RuntimeError: a model with training state that is split over processes.
        """
        self.require_whole_training_state()
        embeddings = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        self._resize_other_vocabularies(embeddings.num_embeddings, mean_resizing)
        if self.training_state is not None:
            self.training_state.resize_vocabulary(self._online_modules())
        return embeddings

    def _resize_other_vocabularies(self, num_tokens: int, mean_resizing: bool) -> None:
        """Resizes what else has a row for every token, besides the text encoder's embeddings and what is tied to them."""

    def resize_image_size(self, image_size: int) -> None:
        """
        Interpolates the learned positions to another input size (pixels), e.g. 384 for fine-tuning; a teacher's too.

        Raises:
            StrictDataclassError: a size that the configuration cannot have.
            RuntimeError: a model with training state that is split over processes.
        """
        self.require_whole_training_state()
        # On a copy: a folder that could not be loaded again must not come to be.
        resized = copy.deepcopy(self.config)
        resized.vision_config.image_size = image_size
        resized.vision_config.validate()
        resized.validate()
        self.base_model.vision_model.resize_positions(image_size)
        if self.training_state is not None:
            teacher = self.training_state.teacher[self.base_model_prefix]
            teacher.vision_model.resize_positions(image_size)
            teacher.requires_grad_(False)

    def no_weight_decay(self) -> set[str]:
        """
        Names of the parameters that weight decay leaves alone besides biases and norms: temperature, [CLS], positions
        and mask token. The published code decays them (quirk `decay_embeddings`), and then the set is empty.
        """
        if self.config.quirks.decay_embeddings:
            return set()
        free = ("temperature", "cls_token", "position_embeddings", "position_embeddings.weight", "mask_token")
        return {name for name, _ in self.named_parameters() if name.endswith(free)}

    @property
    def clamps_temperature(self) -> bool:
        """Whether training keeps the temperature within its bounds."""
        return True

    def parameter_bounds(self) -> dict[str, tuple[float, float]]:
        """
        Names of the parameters that stay within bounds. `forward` sees to it in training mode; an optimiser that works on
        parts or copies of its own of the parameters (ZeRO) must do it too.
        """
        if not self.clamps_temperature:
            return {}
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

    def concept_tokens(self, concepts: Concepts | None, num_images: int) -> ConceptTokens:
        """Embeds the concepts of B images; empty in a model without visual concepts."""
        if concepts is not None:
            raise TypeError(
                f"`concept_input_ids` was given to {type(self).__name__}, which has no visual concepts; leave it out."
            )
        return ConceptTokens()

    def project_image(
        self, image_hidden_states: torch.Tensor, concept_embeds: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        """
        [N, S, d_v] -> L2-normalised [N, E] from [CLS], in equal parts with the concepts' own embeddings [N, E] where there
        are any; `None` without projections.
        """
        if self.vision_projection is None:
            return None
        embeds = nn.functional.normalize(self.vision_projection(image_hidden_states[:, 0]), dim=-1)
        return embeds if concept_embeds is None else nn.functional.normalize(embeds + concept_embeds, dim=-1)

    def project_text(
        self, text_hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        """
        [N, T, d_t] -> L2-normalised [N, E] from the first token, or from the mean of those that `attention_mask` [N, T]
        has (`text_pooling`); `None` without projections.
        """
        if self.text_projection is None:
            return None
        pooled = text_hidden_states[:, 0]
        if self.config.text_pooling == "mean":
            pooled = _mean_of_tokens(text_hidden_states, attention_mask)
        return nn.functional.normalize(self.text_projection(pooled), dim=-1)

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
        check_rows(pixel_values=pixel_values, concept_input_ids=concept_input_ids)
        return self.embed_images(pixel_values, Concepts.given(concept_input_ids, concept_attention_mask))[0]

    def embed_images(
        self,
        pixel_values: torch.Tensor,
        concepts: Concepts | None = None,
        *,
        patch_indices: torch.Tensor | None = None,
        vision_model: VisionEncoder | None = None,
        **record: Recorded,
    ) -> tuple[ImageEncoding, VisionOutput]:
        """
        Encodes images, and tells what the encoder recorded on the way.

        Args:
            pixel_values: [N, 3, H, W].
            concepts: of the N images.
            patch_indices: [N, K], the patches that are seen; all by default.
            vision_model: reads the images; this model's own by default.
            record: what to record, e.g. `output_hidden_states=True`.
        """
        vision_model = self.vision_model if vision_model is None else vision_model
        joined = self.concept_tokens(concepts, len(pixel_values))
        output = vision_model(pixel_values, joined.tokens, joined.mask, patch_indices=patch_indices, **record)
        states = output.last_hidden_state
        encoding = ImageEncoding(
            embeds=self.project_image(states, joined.embeds),
            hidden_states=states,
            attention_mask=output.attention_mask,
        )
        return encoding, output

    def encode_texts(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> TextEncoding:
        """`input_ids`, `attention_mask` (1 = attend) [N, T]; without a mask every token is attended to."""
        return self.embed_texts(Texts.given(input_ids, attention_mask), token_type_ids)[0]

    def embed_texts(
        self,
        texts: Texts,
        token_type_ids: torch.Tensor | None = None,
        *,
        real_tokens: RealTokens | None = None,
        **record: Recorded,
    ) -> tuple[TextEncoding, BaseModelOutputWithCrossAttentions]:
        """
        Encodes N texts by the text-only layers, and tells what the encoder recorded on the way; `token_type_ids`
        [N, T], `real_tokens` of the texts, `record` as in [`~VisionTextModel.embed_images`].
        """
        output = self.text_model(
            texts.input_ids,
            texts.attention_mask,
            token_type_ids,
            mode="text",
            real_tokens=real_tokens,
            **of_all_layers(record),
        )
        # Indices count the layers that ran, not those of the configuration.
        output.hidden_states = chosen_states(output.hidden_states, record.get("output_hidden_states"))
        states = output.last_hidden_state
        fuses_from_ids = self.text_model.config.fusion_mode == "multimodal"
        encoding = TextEncoding(
            embeds=self.project_text(states, texts.attention_mask),
            hidden_states=states,
            attention_mask=texts.attention_mask,
            input_ids=texts.input_ids if fuses_from_ids else None,
        )
        return encoding, output

    def fuse(
        self,
        images: ImageEncoding,
        texts: TextEncoding,
        *,
        key_values: Sequence[KeyValues | None] | None = None,
        image_index: torch.Tensor | None = None,
        text_index: torch.Tensor | None = None,
        output_index: torch.Tensor | None = None,
        real_tokens: RealTokens | None = None,
        text_output: BaseModelOutputWithCrossAttentions | None = None,
        **record: Recorded,
    ) -> BaseModelOutputWithCrossAttentions:
        """
        Fuses n pairs of encoded images and texts: from a text's states on, or from its ids where the family is
        single-stream.

        Args:
            images, texts: the encodings.
            key_values: the images', from [`~TextEncoder.project_keys_values`]; projected here by default.
            image_index, text_index: [n], the image and the text of each pair; by default those of the same row.
            output_index: [n, Q] or [1, Q], the text positions whose states are wanted; all by default.
            real_tokens: of the pairs' texts, whose padding is then left out.
            text_output: what was recorded of all text-only layers, a row for each text; it then comes before what is
                recorded here, with a row for each pair.
            record: as in [`~VisionTextModel.embed_images`].

        Returns:
            `last_hidden_state` [n, T, d_t], or [n, Q, d_t].
        """

        def chosen(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return tensor if tensor is None or text_index is None else tensor.index_select(0, text_index)

        mode = self.text_model.config.fusion_mode
        start = {"input_ids": texts.input_ids} if mode == "multimodal" else {"inputs_embeds": texts.hidden_states}
        fused = self.text_model(
            **{name: chosen(tokens) for name, tokens in start.items()},
            attention_mask=chosen(texts.attention_mask),
            mode=mode,
            encoder_hidden_states=images.hidden_states if key_values is None else None,
            encoder_key_values=key_values,
            encoder_attention_mask=images.attention_mask,
            encoder_index=image_index,
            output_index=output_index,
            real_tokens=real_tokens,
            **of_all_layers(record),
        )
        if text_output is not None and mode == "fusion":
            if fused.hidden_states is not None:
                # The first is what the text-only layers end with.
                fused.hidden_states = (*text_output.hidden_states, *fused.hidden_states[1:])
            if fused.attentions is not None:
                fused.attentions = (*text_output.attentions, *fused.attentions)
        fused.hidden_states = chosen_states(fused.hidden_states, record.get("output_hidden_states"))
        return fused

    def fuse_tokens(
        self,
        images: ImageEncoding,
        texts: Texts,
        *,
        key_values: Sequence[KeyValues | None] | None = None,
        output_index: torch.Tensor | None = None,
        real_tokens: RealTokens | None = None,
        **record: Recorded,
    ) -> BaseModelOutputWithCrossAttentions:
        """
        Fuses B images with B texts that were not encoded before, through all layers; arguments as in
        [`~VisionTextModel.fuse`].
        """
        return self.text_model(
            texts.input_ids,
            texts.attention_mask,
            encoder_hidden_states=images.hidden_states if key_values is None else None,
            encoder_key_values=key_values,
            encoder_attention_mask=images.attention_mask,
            output_index=output_index,
            real_tokens=real_tokens,
            **record,
        )

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        concept_input_ids: torch.Tensor | None = None,
        concept_attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """
        `pooler_output` [N, E]: L2-normalised image embeddings; `last_hidden_state` [N, S, d_v]. `hidden_states` and
        `attentions` of the vision encoder with `output_hidden_states` and `output_attentions`.
        """
        record = check_arguments(self, kwargs)
        check_rows(pixel_values=pixel_values, concept_input_ids=concept_input_ids)
        concepts = Concepts.given(concept_input_ids, concept_attention_mask)
        images, output = self.embed_images(pixel_values, concepts, **record)
        return BaseModelOutputWithPooling(
            last_hidden_state=images.hidden_states,
            pooler_output=images.embeds,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """
        `pooler_output` [N, E]: L2-normalised text embeddings; `last_hidden_state` [N, T, d_t]. `hidden_states` and
        `attentions` of the text layers with `output_hidden_states` and `output_attentions`.
        """
        record = check_arguments(self, kwargs)
        texts, output = self.embed_texts(Texts.given(input_ids, attention_mask), token_type_ids, **record)
        return BaseModelOutputWithPooling(
            last_hidden_state=texts.hidden_states,
            pooler_output=texts.embeds,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        concept_input_ids: torch.Tensor | None = None,
        concept_attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
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
            return self.get_image_features(pixel_values, concept_input_ids, concept_attention_mask, **kwargs)
        if pixel_values is None:
            return self.get_text_features(input_ids, attention_mask, token_type_ids, **kwargs)
        record = check_arguments(self, kwargs)
        images = self.encode_images(pixel_values, concept_input_ids, concept_attention_mask)
        texts, text_output = self.embed_texts(
            Texts.given(input_ids, attention_mask), token_type_ids, **of_all_layers(record)
        )
        logits_per_image = images.embeds @ texts.embeds.T / self.temperature
        fused = None
        if len(pixel_values) == len(input_ids):
            fused = self.fuse(images, texts, text_output=text_output, **record)
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


def _mean_of_tokens(states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """[N, T, d] -> [N, d], over the tokens that `attention_mask` [N, T] has; zero for a row without any."""
    if attention_mask is None:
        return states.mean(dim=1)
    weights = attention_mask[..., None].to(states.dtype)
    return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)


def _classes_below(parent: type) -> Iterator[type]:
    for child in parent.__subclasses__():
        yield child
        yield from _classes_below(child)


__all__ = ["VisionTextModel", "VisionTextPreTrainedModel"]
