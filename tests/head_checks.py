"""What the tests of the task heads share: every head, tiny, with inputs for a step and for inference."""

import torch
from tiny_models import spread_weights, tiny_batch, tiny_config, token_rows

from vicha_hf import (
    ViChaForGrounding,
    ViChaForTextAssignment,
    ViChaForVisualEntailment,
    ViChaForVisualReasoning,
    ViChaForVQA,
)


HEADS = {
    "entailment": ViChaForVisualEntailment,
    "reasoning": ViChaForVisualReasoning,
    "text-assignment": ViChaForTextAssignment,
    "vqa": ViChaForVQA,
    "grounding": ViChaForGrounding,
}


def head_config(attn_implementation="sdpa", **fields):
    """Vision and text of different widths: no head may mix them up."""
    config = tiny_config(vision_config={"hidden_size": 24, **fields.pop("vision_config", {})}, **fields)
    config._attn_implementation = attn_implementation
    return config


def tiny_head(name, seed=0, attn_implementation="sdpa", spread=True, **fields):
    torch.manual_seed(seed)
    model = HEADS[name](head_config(attn_implementation, **fields))
    if spread:
        spread_weights(model)
    return model.eval()


def inference_inputs(name, batch_size=3, seed=0, concepts=True):
    batch = tiny_batch(batch_size, seed=seed, concepts=concepts)
    if name == "reasoning":
        other = tiny_batch(batch_size, seed=seed + 100, concepts=concepts)
        batch["pixel_values"] = torch.stack([batch["pixel_values"], other["pixel_values"]], dim=1)
        for key in ("concept_input_ids", "concept_attention_mask") if concepts else ():
            batch[key] = (batch[key], other[key])
    if name == "text-assignment":
        batch["pair_indices"] = torch.stack([torch.arange(batch_size), torch.arange(batch_size).roll(1)], dim=1)
        batch["labels"] = torch.arange(batch_size) % 3
    return batch


def step_inputs(name, batch_size=3, seed=0, concepts=True):
    batch = inference_inputs(name, batch_size, seed, concepts)
    if name in ("entailment", "reasoning"):
        batch["labels"] = torch.arange(batch_size) % 2
    if name == "vqa":
        counts = [1 + index % 2 for index in range(batch_size)]
        ids, mask = token_rows([3 + index % 3 for index in range(sum(counts))], seed=seed + 7)
        batch |= {"answer_input_ids": ids, "answer_attention_mask": mask, "answer_counts": torch.tensor(counts)}
    return batch


ANSWERS = dict(zip(("input_ids", "attention_mask"), token_rows([3, 5, 4, 3, 6, 4, 3], seed=5), strict=True))


@torch.no_grad()
def predict(name, model, inputs):
    """What a head says in inference: one tensor with a row per sample."""
    if name == "vqa":
        return model.rank_answers(**inputs, answers=ANSWERS, top_k=3).scores
    output = model(**inputs)
    return output.heatmaps if name == "grounding" else output.logits
