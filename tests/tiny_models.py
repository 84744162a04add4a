"""Models and inputs that are small enough to be tested by the dozen. Every builder is deterministic."""

import torch
from tiny_tokenizer import PIECES, SPECIAL_TOKENS, WORDS

from vicha_hf import ViChaConfig, ViChaForPreTraining, ViChaForRetrieval, ViChaModel


VOCAB_SIZE = len(SPECIAL_TOKENS) + len(WORDS.split()) + len(PIECES)
PAD, CLS, SEP, MASK = 0, 2, 3, 4
NUM_PATCHES = 16

VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "fusion_layer": 2,
    "max_position_embeddings": 24,
    "pad_token_id": PAD,
    "cls_token_id": CLS,
    "sep_token_id": SEP,
    "mask_token_id": MASK,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
OBJECTIVES = {
    "projection_dim": 16,
    "num_concept_layers": 1,
    "hierarchical_itc_levels": 2,
    "mim_decoder_hidden_size": 32,
    "mim_decoder_layers": 1,
    "mim_decoder_heads": 4,
    "queue_size": 10,
}


def tiny_config(vision_config=None, text_config=None, **fields) -> ViChaConfig:
    """Widths of 32, 16 patches of 8 pixels, no dropout; single fields of the parts are overridden by dicts."""
    return ViChaConfig(
        vision_config=VISION | (vision_config or {}), text_config=TEXT | (text_config or {}), **(OBJECTIVES | fields)
    )


def _build(model_class, attn_implementation, seed, spread, config):
    torch.manual_seed(seed)
    config._attn_implementation = attn_implementation
    model = model_class(config)
    if spread:
        spread_weights(model)
    return model.eval()


@torch.no_grad()
def spread_weights(model: torch.nn.Module) -> None:
    """
    Larger weights than a fresh initialisation: with the usual 0.02 a model of width 32 is almost constant, and a
    mistake in what it attends to would stay below any tolerance.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("temperature"):
            continue
        if parameter.dim() > 1:
            parameter.copy_(torch.randn_like(parameter) * 0.25)
        else:
            parameter.add_(torch.randn_like(parameter) * 0.05)


def tiny_model(seed=0, attn_implementation="sdpa", spread=True, **fields) -> ViChaModel:
    return _build(ViChaModel, attn_implementation, seed, spread, tiny_config(**fields))


def tiny_pretraining_model(seed=0, attn_implementation="sdpa", spread=True, **fields) -> ViChaForPreTraining:
    return _build(ViChaForPreTraining, attn_implementation, seed, spread, tiny_config(**fields))


def tiny_retrieval_model(seed=0, attn_implementation="sdpa", spread=True, **fields) -> ViChaForRetrieval:
    return _build(ViChaForRetrieval, attn_implementation, seed, spread, tiny_config(**fields))


def token_rows(lengths: list[int], seed: int = 0, longest: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Random ids [B, T] that begin with [CLS] and end with [SEP], and the mask; row i has `lengths[i]` tokens, 0 for a
    row of padding alone.
    """
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths) if longest is None else longest
    ids = torch.full((len(lengths), longest), PAD)
    mask = torch.zeros(len(lengths), longest, dtype=torch.long)
    for row, length in enumerate(lengths):
        if length == 0:
            continue
        ids[row, :length] = torch.randint(len(SPECIAL_TOKENS), VOCAB_SIZE, (length,), generator=generator)
        ids[row, 0], ids[row, length - 1] = CLS, SEP
        mask[row, :length] = 1
    return ids, mask


def tiny_batch(batch_size: int = 4, seed: int = 0, concepts: bool = True, image_size: int = 32) -> dict:
    """Images, captions and concepts of unequal lengths, as the heads' forward takes them."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 9, (2, batch_size), generator=generator).tolist()
    batch = {"pixel_values": torch.randn(batch_size, 3, image_size, image_size, generator=generator)}
    batch["input_ids"], batch["attention_mask"] = token_rows(lengths[0], seed=seed + 1)
    if concepts:
        batch["concept_input_ids"], batch["concept_attention_mask"] = token_rows(lengths[1], seed=seed + 2)
    return batch


def predict_positions(batch: dict, positions: list[list[int]]) -> dict:
    """`mlm_input_ids` and `mlm_labels` where row i predicts `positions[i]`, each replaced by [MASK]."""
    ids, labels = batch["input_ids"].clone(), torch.full_like(batch["input_ids"], -100)
    for row, columns in enumerate(positions):
        for column in columns:
            labels[row, column], ids[row, column] = ids[row, column].item(), MASK
    return {"mlm_input_ids": ids, "mlm_labels": labels}


def fill_queue(model, count: int, seed: int = 0, image_ids: list[int] | None = None) -> None:
    """
    Puts `count` random unit features into the model's empty queue, for images 1000, 1001, ... by default. Writes the
    buffers themselves: `enqueue` would collect the features of every process.
    """
    generator = torch.Generator().manual_seed(seed)
    queue = model.training_state.queue
    images, texts = torch.nn.functional.normalize(
        torch.randn(2, count, model.config.projection_dim, generator=generator), dim=-1
    )
    queue.image_features[:count], queue.text_features[:count] = images, texts
    queue.image_ids[:count] = torch.arange(1000, 1000 + count) if image_ids is None else torch.tensor(image_ids)
    queue.pointer.fill_(count % queue.size)
    queue.num_filled.fill_(count)


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The gradient of every trainable parameter, zero where there is none."""
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def assert_same(observed: dict, expected: dict, tolerance: float = 1e-5) -> None:
    """Two dicts of tensors; absolute tolerance for numbers up to 1, relative beyond. Names everything that differs."""
    assert observed.keys() == expected.keys()
    different = {}
    for name, value in expected.items():
        assert observed[name].shape == value.shape, name
        difference = (observed[name].double() - value.double()).abs().max().item() if value.numel() else 0.0
        if not difference <= tolerance * max(1.0, value.abs().max().item() if value.numel() else 0.0):
            different[name] = difference
    assert not different, different
