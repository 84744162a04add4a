"""Fusing a text with two images: the cross-attending layers alternate between them (ALBEF section 5, NLVR2)."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import ClassVar

import torch
from torch import nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithCrossAttentions
from transformers.utils import logging

from .encoder_attention import cross_attention_implementation, expand_key_mask
from .encoder_text import CrossAttention, SelfAttention, TextEncoder, TextLayer
from .encodings import ImageEncoding
from .inputs import Texts
from .modeling_outputs import Recorded, chosen_states
from .pretrained_encoders import copy_matching_weights


logger = logging.get_logger(__name__)


class ImagePairEncoder(nn.Module):
    """
    Doubles the layers of a text encoder from one layer on. Behind each of them comes a twin with weights of its own.
    The twin reads the other image through its sibling's key and value projections. Of all layers that cross-attend,
    the first reads image 0, the next image 1, and so on.

    Args:
        config: the text configuration.
        first_doubled_layer: index of the first layer that has a twin.
    """

    def __init__(self, config, first_doubled_layer: int):
        super().__init__()
        self.first_doubled_layer = first_doubled_layer
        self.twins = nn.ModuleList(
            [
                TextLayer(config, CrossAttention(config, projects=False))
                for _ in range(first_doubled_layer, config.num_hidden_layers)
            ]
        )

    def start_from_siblings(self, text_model: TextEncoder) -> None:
        """Makes every twin a copy of the layer before it."""
        for twin, layer in zip(self.twins, text_model.encoder.layer[self.first_doubled_layer :], strict=True):
            copy_matching_weights(layer, twin)

    def forward(
        self,
        text_model: TextEncoder,
        texts: Texts,
        images: ImageEncoding,
        image_index: torch.Tensor,
        output_hidden_states: Recorded = False,
        output_attentions: bool = False,
    ) -> BaseModelOutputWithCrossAttentions:
        """
        Args:
            text_model: the text encoder whose layers are doubled.
            texts: B texts.
            images: N encoded images.
            image_index: [B, 2], each text's two images among the N.
            output_hidden_states, output_attentions: also return every layer's, in the order in which they run; of the
                states only those with the indices that are given.

        Returns:
            `last_hidden_state` [B, T, d_t], the fused text.
        """
        config = text_model.config
        hidden_states = text_model.embeddings(texts.input_ids)
        self_attention_mask = create_bidirectional_mask(
            config=config, inputs_embeds=hidden_states, attention_mask=texts.attention_mask
        )
        implementation = cross_attention_implementation(config._attn_implementation)
        image_masks = [
            None
            if images.attention_mask is None
            else expand_key_mask(images.attention_mask.index_select(0, index), hidden_states.dtype, implementation)
            for index in image_index.T
        ]
        record = {"output_attentions": True} if output_attentions else {}
        states, num_cross_attending = [hidden_states], 0
        with ExitStack() as stack:
            attentions = cross_attentions = None
            if output_attentions:
                layers = (text_model.encoder.layer, self.twins)
                attentions, cross_attentions = (
                    stack.enter_context(_collected_probabilities(layers, kind))
                    for kind in (SelfAttention, CrossAttention)
                )
            for number, layer in enumerate(text_model.encoder.layer):
                key_values = (None, None)
                if layer.crossattention is not None:
                    key_values = layer.crossattention.self.project(images.hidden_states)
                steps = [layer]
                if number >= self.first_doubled_layer:
                    steps.append(self.twins[number - self.first_doubled_layer])
                for step in steps:
                    image_arguments = ()
                    if layer.crossattention is not None:
                        image = num_cross_attending % 2
                        num_cross_attending += 1
                        image_arguments = (*key_values, image_masks[image], image_index[:, image])
                    hidden_states = step(hidden_states, self_attention_mask, *image_arguments, **record)
                    states.append(hidden_states)
        return BaseModelOutputWithCrossAttentions(
            last_hidden_state=hidden_states,
            hidden_states=chosen_states(tuple(states), output_hidden_states) if output_hidden_states else None,
            attentions=None if attentions is None else tuple(attentions),
            cross_attentions=None if cross_attentions is None else tuple(cross_attentions),
        )


@contextmanager
def _collected_probabilities(layers: Iterable[nn.Module], kind: type[nn.Module]) -> Iterator[list[torch.Tensor]]:
    """Collects the probabilities [B, H, Q, K] of the attention modules of a kind, in the order in which they run."""
    collected: list[torch.Tensor] = []
    modules = [module for part in layers for module in part.modules() if isinstance(module, kind)]
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: collected.append(output[1])) for module in modules
    ]
    try:
        yield collected
    finally:
        for hook in hooks:
            hook.remove()


class ImagePairTask:
    """A head that owns an `image_pair_encoder` beside its base model. To be mixed in before a family's base class."""

    head_modules: ClassVar[tuple[str, ...]] = ("image_pair_encoder",)

    def _start_missing_weights(self, missing: set[str]) -> None:
        super()._start_missing_weights(missing)
        twins = {f"image_pair_encoder.{name}" for name, _ in self.image_pair_encoder.named_parameters()}
        if twins <= missing:
            self.image_pair_encoder.start_from_siblings(self.base_model.text_model)
            logger.warning(
                "The second layer of each fusion pair (`image_pair_encoder`) starts as a copy of the first."
            )
