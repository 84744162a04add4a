"""The concept encoder: embeds an image's visual concepts as tokens for the vision encoder (ViCHA section 3.2)."""

import torch
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.output_capturing import capture_outputs

from .configuration_vicha import ViChaTextConfig
from .encoder_text import SelfAttention, TextEmbeddings, TextLayer, TextLayers


class ConceptEncoder(PreTrainedModel):
    """BERT embeddings and the first `num_layers` BERT layers over the concepts' tokens; 0 layers = embeddings only."""

    config: ViChaTextConfig
    main_input_name = "input_ids"
    input_modalities = ("text",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["TextEmbeddings", "TextLayer"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": TextLayer, "attentions": SelfAttention}  # noqa: RUF012

    def __init__(self, config, num_layers: int):
        super().__init__(config)
        self.embeddings = TextEmbeddings(config)
        self.encoder = TextLayers([TextLayer(config) for _ in range(num_layers)])
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value):
        self.embeddings.word_embeddings = value

    @capture_outputs
    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> BaseModelOutput:
        """`input_ids` and `attention_mask` (1 = attend) [B, C] -> `last_hidden_state` [B, C, d_t]."""
        hidden_states = self.embeddings(input_ids)
        attention_mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden_states, attention_mask=attention_mask
        )
        for layer in self.encoder.layer:
            hidden_states = layer(hidden_states, attention_mask, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states)
