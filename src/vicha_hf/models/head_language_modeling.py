"""The masked-language-modelling head of BERT: transform, norm, and a decoder tied to the word embeddings."""

import torch
from torch import nn
from transformers.activations import ACT2FN


class PredictionTransform(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.activation(self.dense(hidden_states)))


class LanguageModelingHead(nn.Module):
    """`hidden_states` [..., d_t] -> logits [..., vocabulary]. The owner ties `decoder.weight` to the word embeddings."""

    def __init__(self, config):
        super().__init__()
        self.transform = PredictionTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.transform(hidden_states))
