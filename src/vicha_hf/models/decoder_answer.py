"""The answer decoder: a causal BERT-layout decoder that reads the fused question (ALBEF section 5, VQA)."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_vision_text import TextConfig
from .encoder_attention import cross_attention_implementation, expand_key_mask
from .encoder_text import CrossAttention, KeyValues, TextEmbeddings, TextEncoder, TextLayer, TextLayers
from .pretrained_encoders import copy_matching_weights


@dataclass
class QuestionEncoding:
    """
    Fused questions, ready to be answered: `hidden_states` [B, T, d_t] and `attention_mask` [B, T] (1 = attend). Their
    keys and values for every decoder layer are projected once, however many answers they meet.
    """

    hidden_states: torch.Tensor
    attention_mask: torch.Tensor | None
    key_values: list[KeyValues]


@dataclass
class AnswerDecoderOutput(ModelOutput):
    """`last_hidden_state` [n, A, d_t]; `logits` [n, 1, vocabulary] of the token after the last one, on request."""

    last_hidden_state: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class AnswerDecoder(PreTrainedModel, GenerationMixin):
    """
    Causal layers over answer tokens, each with cross-attention to a question's states.

    Args:
        config: the text configuration; the decoder has its widths and vocabulary.
        num_layers: how many layers.
    """

    config: TextConfig
    main_input_name = "input_ids"
    input_modalities = ("text",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["TextEmbeddings", "TextLayer"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config, num_layers: int):
        super().__init__(config)
        self.embeddings = TextEmbeddings(config)
        self.encoder = TextLayers(
            [
                # Question states are as wide as the text, whatever the width of the image tokens.
                TextLayer(config, CrossAttention(config, config.hidden_size), is_causal=True)
                for _ in range(num_layers)
            ]
        )
        self.post_init()

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        # transformers looks for the attention functions in this file; they are in encoder_text.
        return True

    def get_input_embeddings(self):
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value):
        self.embeddings.word_embeddings = value

    def start_from_text_encoder(self, text_model: TextEncoder) -> list[str]:
        """Copies the embeddings and the last layers of a text encoder; returns the names of what has no counterpart."""
        unmatched = copy_matching_weights(text_model.embeddings, self.embeddings)
        layers = text_model.encoder.layer[len(text_model.encoder.layer) - len(self.encoder.layer) :]
        return unmatched + copy_matching_weights(layers, self.encoder.layer)

    def project_question(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> QuestionEncoding:
        """Fused questions [B, T, d_t] and their mask [B, T], 1 = attend -> [`QuestionEncoding`]."""
        key_values = [layer.crossattention.self.project(hidden_states) for layer in self.encoder.layer]
        return QuestionEncoding(hidden_states, attention_mask, key_values)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        question: QuestionEncoding | None = None,
        question_index: torch.Tensor | None = None,
        head: nn.Module | None = None,
        **kwargs,
    ) -> AnswerDecoderOutput:
        """
        Args:
            input_ids, attention_mask: [n, A], answers that begin with [CLS]; 1 = attend.
            question: the B encoded questions.
            question_index: [n], which of them each answer belongs to; by default answer b to question b.
            head: turns hidden states into logits; given, the logits after the last token are returned too.
        """
        hidden_states = self.embeddings(input_ids)
        # No cache; by position, for transformers 5.24 gave this argument another name.
        self_attention_mask = create_causal_mask(self.config, hidden_states, attention_mask, None)
        question_mask = question.attention_mask
        if question_mask is not None and question_index is not None:
            question_mask = question_mask.index_select(0, question_index)
        implementation = cross_attention_implementation(self.config._attn_implementation)
        question_mask = expand_key_mask(question_mask, hidden_states.dtype, implementation)
        for layer, (key, value) in zip(self.encoder.layer, question.key_values, strict=True):
            hidden_states = layer(hidden_states, self_attention_mask, key, value, question_mask, question_index)
        logits = None if head is None else head(hidden_states[:, -1:])
        return AnswerDecoderOutput(last_hidden_state=hidden_states, logits=logits)

    def prepare_inputs_for_generation(
        self, input_ids, attention_mask=None, question=None, question_index=None, head=None, **kwargs
    ):
        """
        Beams repeat `question_index`, not the questions. The whole answer is decoded at every step: answers are a few
        tokens long, and their questions' keys and values, the expensive part, are computed once.
        """
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "question": question,
            "question_index": question_index,
            "head": head,
        }
