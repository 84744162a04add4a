"""SIMLA at the size of `tiny_models`, with the same sizes and tokens, for the tests of both families' common ground."""

import torch
from tiny_models import TEXT, VISION, spread_weights, tiny_batch

from vicha_hf import (
    SimlaConfig,
    SimlaForGrounding,
    SimlaForPreTraining,
    SimlaForRetrieval,
    SimlaForTextAssignment,
    SimlaForVisualEntailment,
    SimlaForVisualReasoning,
    SimlaForVQA,
    SimlaModel,
)


GRID, NUM_CODES, UNK = 4, 20, 1
SIMLA_TEXT = {name: value for name, value in TEXT.items() if name != "fusion_layer"} | {"unk_token_id": UNK}
SIMLA_OBJECTIVES = {
    "projection_dim": 16,
    "queue_size": 10,
    "visual_vocab_size": NUM_CODES,
    "mim_max_masked_patches": 6,
    "mim_min_block_patches": 2,
    "psl_num_keywords": 3,
    "psl_votes_per_head": 2,
}
SIMLA_HEADS = {
    "entailment": SimlaForVisualEntailment,
    "reasoning": SimlaForVisualReasoning,
    "text-assignment": SimlaForTextAssignment,
    "vqa": SimlaForVQA,
    "grounding": SimlaForGrounding,
}


def simla_config(vision_config=None, text_config=None, **fields) -> SimlaConfig:
    """As `tiny_config`: widths of 32, 4 x 4 patches of 8 pixels, no dropout."""
    return SimlaConfig(
        vision_config=VISION | (vision_config or {}),
        text_config=SIMLA_TEXT | (text_config or {}),
        **(SIMLA_OBJECTIVES | fields),
    )


def simla_model(model_class, seed=0, attn_implementation="sdpa", spread=True, **fields):
    """Any of SIMLA's classes, in evaluation mode, with weights spread so that mistakes show."""
    torch.manual_seed(seed)
    config = simla_config(**fields)
    config._attn_implementation = attn_implementation
    model = model_class(config)
    if spread:
        spread_weights(model)
    return model.eval()


def simla_batch(batch_size=4, seed=0) -> dict:
    """Images and captions of unequal lengths, with a visual token for each patch."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(NUM_CODES, (batch_size, GRID, GRID), generator=generator)
    return tiny_batch(batch_size, seed=seed, concepts=False) | {"visual_token_ids": tokens}


def block(batch_size: int) -> torch.Tensor:
    """A mask [B, P] of two rows of patches, shifted by the image's number."""
    mask = torch.zeros(batch_size, GRID * GRID, dtype=torch.bool)
    for row in range(batch_size):
        mask[row, row % 8 : row % 8 + 5] = True
    return mask


__all__ = ["SimlaForPreTraining", "SimlaForRetrieval", "SimlaModel"]
