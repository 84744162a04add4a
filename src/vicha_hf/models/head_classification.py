"""The classification head of entailment and reasoning."""

import torch
from torch import nn


class ClassificationHead(nn.Module):
    """[CLS] of the fused text [B, d_t] -> linear, ReLU, linear -> logits [B, num_classes]."""

    def __init__(self, hidden_size: int, num_classes: int):
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, num_classes)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.output(self.dense(hidden_states).relu())
