"""The text encoder: BERT layers of which the upper ones also attend to image tokens (ALBEF section 3.1)."""

from functools import partial
from typing import Literal

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithCrossAttentions
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_vision_text import TextConfig
from .encoder_attention import (
    RealTokens,
    attention_function,
    cross_attention_implementation,
    expand_key_mask,
    split_heads,
)
from .encoder_recomputation import keeps_all, recomputed, recomputed_input


# Module names follow BERT's, so that a BERT checkpoint loads without translation.

KeyValues = tuple[torch.Tensor, torch.Tensor]


class TextEmbeddings(nn.Module):
    """Word, position and token-type embeddings, normalised."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = (
            nn.Embedding(config.type_vocab_size, config.hidden_size) if config.type_vocab_size > 0 else None
        )
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: torch.Tensor, token_type_ids: torch.Tensor | None = None) -> torch.Tensor:
        """`input_ids` and `token_type_ids` [B, T] -> [B, T, d_t]."""
        embeddings = self.word_embeddings(input_ids)
        if self.token_type_embeddings is not None:
            token_type_ids = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            embeddings = embeddings + self.token_type_embeddings(token_type_ids)
        return self.place(embeddings, "input_ids")

    def place(self, tokens: torch.Tensor, name: str = "tokens") -> torch.Tensor:
        """
        Any tokens [B, T, d_t] (single-stream models read image tokens as well) with the text's positions, normalised;
        `name` is what an error calls them.
        """
        length, longest = tokens.shape[1], self.position_embeddings.num_embeddings
        if length > longest:
            raise ValueError(
                f"`{name}` has {length} tokens, but the text encoder has `max_position_embeddings={longest}`; "
                "truncate the text, e.g. with the processor's `max_text_length`."
            )
        return self.dropout(self.LayerNorm(tokens + self.position_embeddings.weight[:length]))


class SelfAttention(nn.Module):
    def __init__(self, config: TextConfig, is_causal: bool = False):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = is_causal
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        attended_states: torch.Tensor | None = None,
        real_tokens: RealTokens | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        `attended_states`: the whole sequence, where `hidden_states` are only some of its rows. `real_tokens`: the whole
        sequence, and what is returned of it, is [tokens, d_t].
        """
        implementation = self.config._attn_implementation
        is_whole = attended_states is None
        if is_whole:
            attended_states = hidden_states
        else:
            implementation = cross_attention_implementation(implementation)
        query, key, value = self.query(hidden_states), self.key(attended_states), self.value(attended_states)
        if real_tokens is not None:
            query = real_tokens.pad(query) if is_whole else query
            key, value = real_tokens.pad(key), real_tokens.pad(value)
        context, probabilities = attention_function(self, implementation, kwargs.get("output_attentions"))(
            self,
            split_heads(query, self.head_dim),
            split_heads(key, self.head_dim),
            split_heads(value, self.head_dim),
            attention_mask,
            dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        context = context.flatten(2)
        return real_tokens.pack(context) if real_tokens is not None and is_whole else context, probabilities


class CrossAttention(nn.Module):
    """
    Attention from text to conditioning tokens, whose keys and values are projected once and shared by many texts.

    Args:
        config: the text configuration.
        encoder_hidden_size: width of the conditioning tokens; the configuration's `encoder_hidden_size` by default.
        projects: whether it has key and value projections of its own, or is given another layer's.
    """

    # Set by transformers with that of the layer.
    gradient_checkpointing = False

    def __init__(self, config: TextConfig, encoder_hidden_size: int | None = None, projects: bool = True):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        width = config.encoder_hidden_size if encoder_hidden_size is None else encoder_hidden_size
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(width, config.hidden_size) if projects else None
        self.value = nn.Linear(width, config.hidden_size) if projects else None

    def project(self, encoder_hidden_states: torch.Tensor) -> KeyValues:
        """[N, S, d_enc] -> keys and values, each [N, H, S, d]."""
        key, value = self.key(encoder_hidden_states), self.value(encoder_hidden_states)
        # Contiguous, or every pass that shares them would make a copy of its own for its matrix products, and keep it.
        return split_heads(key, self.head_dim).contiguous(), split_heads(value, self.head_dim).contiguous()

    def forward(
        self,
        hidden_states: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        index: torch.Tensor | None = None,
        real_tokens: RealTokens | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        `index` [B]: which keys and values [N, H, S, d] each text attends to. `real_tokens`: `hidden_states`, and what is
        returned, are [tokens, d_t].
        """
        query, selected = self.query(hidden_states), []
        query = split_heads(query if real_tokens is None else real_tokens.pad(query), self.head_dim)
        if index is not None:
            # A copy for each text of what is kept once: it is made again for the backward pass.
            shared = key.detach(), value.detach()
            key, value = key.index_select(0, index), value.index_select(0, index)
            selected = [
                (tensor, partial(source.index_select, 0, index))
                for tensor, source in zip((key, value), shared, strict=True)
            ]
        implementation = cross_attention_implementation(self.config._attn_implementation)
        checkpointed = self.training and self.gradient_checkpointing
        with recomputed(*selected, checkpointed=checkpointed or not selected):
            context, probabilities = attention_function(self, implementation, kwargs.get("output_attentions"))(
                self,
                query,
                key,
                value,
                attention_mask,
                dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
                scaling=self.scaling,
                **kwargs,
            )
        context = context.flatten(2)
        return context if real_tokens is None else real_tokens.pack(context), probabilities


class ResidualOutput(nn.Module):
    """Projection, dropout, residual and norm (post-norm), after attention and after the feed-forward layer."""

    def __init__(self, config: TextConfig, input_size: int):
        super().__init__()
        self.dense = nn.Linear(input_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.dropout(self.dense(hidden_states)) + residual)


class AttentionBlock(nn.Module):
    def __init__(self, config: TextConfig, attention: nn.Module):
        super().__init__()
        self.self = attention
        self.output = ResidualOutput(config, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        context, _ = self.self(hidden_states, *args, **kwargs)
        return self.output(context, hidden_states)


class Intermediate(nn.Module):
    """The first half of a feed-forward layer, under the name that BERT checkpoints use."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]


class TextLayer(GradientCheckpointingLayer):
    """
    A post-norm transformer layer: self-attention, cross-attention where it has one and is given keys, feed-forward.
    Keys and values are arguments of their own: reentrant checkpointing does not see tensors inside a tuple.
    """

    def __init__(self, config: TextConfig, cross_attention: CrossAttention | None = None, is_causal: bool = False):
        super().__init__()
        self.attention = AttentionBlock(config, SelfAttention(config, is_causal))
        self.crossattention = None if cross_attention is None else AttentionBlock(config, cross_attention)
        self.intermediate = Intermediate(config)
        self.output = ResidualOutput(config, config.intermediate_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_key: torch.Tensor | None = None,
        encoder_value: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        encoder_index: torch.Tensor | None = None,
        output_index: torch.Tensor | None = None,
        real_tokens: RealTokens | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """
        [B, T, d_t] -> [B, T, d_t], or [B, Q, d_t] where only the rows `output_index` [B or 1, Q] are wanted.
        `real_tokens`: all that is done to single tokens is done to these.
        """
        states = hidden_states if real_tokens is None else real_tokens.pack(hidden_states)
        if output_index is None:
            hidden_states = self.attention(states, attention_mask, real_tokens=real_tokens, **kwargs)
        else:
            wanted = hidden_states.take_along_dim(output_index.unsqueeze(-1), dim=1)
            hidden_states = self.attention(
                wanted, attention_mask, attended_states=states, real_tokens=real_tokens, **kwargs
            )
            # The wanted rows are a batch without padding.
            real_tokens = None
        if encoder_key is not None:
            hidden_states = self.crossattention(
                hidden_states,
                encoder_key,
                encoder_value,
                encoder_attention_mask,
                encoder_index,
                real_tokens,
                **kwargs,
            )
        hidden_states = self.feed_forward(hidden_states)
        return hidden_states if real_tokens is None else real_tokens.pad(hidden_states)

    def feed_forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[..., d_t] -> [..., d_t]"""
        return recomputed_input(
            self.intermediate.activation,
            self.intermediate.dense(hidden_states),
            partial(self.output, residual=hidden_states),
            checkpointed=keeps_all(self),
        )


class TextLayers(nn.Module):
    """The stack of layers, under the name that BERT checkpoints use."""

    def __init__(self, layers: list[TextLayer]):
        super().__init__()
        self.layer = nn.ModuleList(layers)


class TextEncoder(PreTrainedModel):
    """
    BERT-layout encoder with three modes. *text*: the text-only layers on token ids. *fusion*: the remaining layers on
    their output, attending to conditioning tokens. *multimodal*: all layers, on token ids.
    """

    config: TextConfig
    main_input_name = "input_ids"
    input_modalities = ("text",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["TextEmbeddings", "TextLayer"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": TextLayer,
        "attentions": OutputRecorder(SelfAttention, index=1),
        "cross_attentions": OutputRecorder(CrossAttention, index=1),
    }

    def __init__(self, config: TextConfig):
        super().__init__(config)
        self.embeddings = TextEmbeddings(config)
        self.encoder = TextLayers(
            [
                TextLayer(config, CrossAttention(config) if index >= config.first_cross_attention_layer else None)
                for index in range(config.num_hidden_layers)
            ]
        )
        self.post_init()

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        # transformers looks for the choice of backend in this file's text; it is in encoder_attention.py.
        return True

    def get_input_embeddings(self):
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value):
        self.embeddings.word_embeddings = value

    def project_keys_values(self, encoder_hidden_states: torch.Tensor) -> list[KeyValues | None]:
        """
        Projects conditioning tokens [N, S, d_enc] to keys and values for every layer (`None` where a layer has no
        cross-attention). All texts that are paired with the tokens share them.
        """
        return [
            None if layer.crossattention is None else layer.crossattention.self.project(encoder_hidden_states)
            for layer in self.encoder.layer
        ]

    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_key_values: list[KeyValues | None] | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        encoder_index: torch.Tensor | None = None,
        output_index: torch.Tensor | None = None,
        real_tokens: RealTokens | None = None,
        mode: Literal["text", "fusion", "multimodal"] = "multimodal",
        **kwargs,
    ) -> BaseModelOutputWithCrossAttentions:
        """
        Args:
            input_ids: [B, T]; for *text* and *multimodal* mode.
            attention_mask: [B, T], 1 = attend.
            inputs_embeds: [B, T, d_t], hidden states that enter the first layer of the mode as they are
                (the output of *text* mode for *fusion*).
            encoder_hidden_states: [N, S, d_enc], the conditioning tokens; or
            encoder_key_values: their keys and values from [`~TextEncoder.project_keys_values`].
            encoder_attention_mask: [N, S], 1 = attend.
            encoder_index: [B], which of the N sequences each text attends to; by default text b attends to b.
            output_index: [B, Q], or [1, Q] for all, the positions whose states are wanted: the last layer computes no
                others. By default all.
            real_tokens: of the texts: padding is then left out where it costs, and its states are 0.
        Returns:
            `last_hidden_state` [B, T, d_t], or [B, Q, d_t] with `output_index`.
        """
        hidden_states = inputs_embeds
        if hidden_states is None:
            hidden_states = self.embeddings(input_ids, token_type_ids)
        self_attention_mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden_states, attention_mask=attention_mask
        )
        layers = self.layers_of(mode)
        if mode == "text":
            encoder_key_values = [None] * len(self.encoder.layer)
        else:
            if encoder_key_values is None:
                encoder_key_values = self.project_keys_values(encoder_hidden_states)
            if encoder_attention_mask is not None and encoder_index is not None:
                encoder_attention_mask = encoder_attention_mask.index_select(0, encoder_index)
            encoder_attention_mask = expand_key_mask(
                encoder_attention_mask,
                hidden_states.dtype,
                cross_attention_implementation(self.config._attn_implementation),
            )
        for index in layers:
            key, value = encoder_key_values[index] or (None, None)
            rows = None
            if output_index is not None and index == layers[-1]:
                # Some rows attend to all: a cross-attention, with its mask.
                rows = output_index
                self_attention_mask = expand_key_mask(
                    attention_mask,
                    hidden_states.dtype,
                    cross_attention_implementation(self.config._attn_implementation),
                )
            hidden_states = self.encoder.layer[index](
                hidden_states,
                self_attention_mask,
                key,
                value,
                encoder_attention_mask,
                encoder_index,
                rows,
                real_tokens,
                **kwargs,
            )
        return BaseModelOutputWithCrossAttentions(last_hidden_state=hidden_states)

    def layers_of(self, mode: Literal["text", "fusion", "multimodal"]) -> range:
        """Indices of the layers that a mode runs."""
        if mode == "text":
            return range(self.config.num_text_layers)
        return range(self.config.num_text_layers if mode == "fusion" else 0, self.config.num_hidden_layers)
