"""Inputs that the parts of a model are exported and compared with."""

import inspect

import torch
from torch import Tensor, nn
from torch.export import Dim

from ..models.modeling_vision_text import VisionTextPreTrainedModel


def example_inputs(
    model: VisionTextPreTrainedModel, part: nn.Module, batch_size: int, length: int, seed: int = 0
) -> dict[str, Tensor]:
    """
    Inputs of a part by name, with padding in every way: whole rows, cut rows, and a row without any token.

    Args:
        model: whose sizes they have.
        part: of the model.
        batch_size: rows, at least 3.
        length: tokens of a text; two less are those of the concepts, three less those of an answer.
        seed: of the values.
    """
    draw = torch.Generator().manual_seed(seed)
    vision, text = model.config.vision_config, model.config.text_config
    length = min(length, text.max_position_embeddings)
    tokens = vision.num_patches + 1

    def padded(width: int) -> Tensor:
        mask = torch.ones(batch_size, width, dtype=torch.int64)
        mask[1, width // 2 :] = 0
        mask[2] = 0
        return mask

    image_mask = torch.ones(batch_size, tokens + 4, dtype=torch.int64)
    image_mask[1, tokens:] = 0
    answer_mask = padded(length - 3)
    # An answer has its start token at least.
    answer_mask[2, 0] = 1
    made = {
        "pixel_values": torch.randn(
            batch_size, vision.num_channels, vision.image_size, vision.image_size, generator=draw
        ),
        "concept_input_ids": torch.randint(text.vocab_size, (batch_size, length - 2), generator=draw),
        "concept_attention_mask": padded(length - 2),
        "input_ids": torch.randint(text.vocab_size, (batch_size, length), generator=draw),
        "attention_mask": padded(length),
        "image_hidden_states": torch.randn(batch_size, tokens + 4, vision.hidden_size, generator=draw),
        "image_attention_mask": image_mask,
        "text_hidden_states": torch.randn(batch_size, length, text.hidden_size, generator=draw),
        "answer_input_ids": torch.randint(text.vocab_size, (batch_size, length - 3), generator=draw),
        "answer_attention_mask": answer_mask,
        "question_hidden_states": torch.randn(batch_size, length, text.hidden_size, generator=draw),
        "question_attention_mask": padded(length).index_fill(1, torch.tensor([0]), 1),
    }
    return {name: made[name] for name in part.inputs}


def dynamic_shapes(part: nn.Module) -> tuple:
    """
    The free dimensions of a part's inputs, as `torch.export` wants them: the batch, and the second one. An image has a
    fixed number of channels, rows and columns.
    """
    free = [{0: Dim.DYNAMIC} if name == "pixel_values" else {0: Dim.DYNAMIC, 1: Dim.DYNAMIC} for name in part.inputs]
    variadic = any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(part.forward).parameters.values())
    return (free[0], tuple(free[1:])) if variadic else tuple(free)
