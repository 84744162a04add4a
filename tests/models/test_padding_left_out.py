"""A training step leaves padding out of everything that is done to single tokens; its numbers are those of the padded step."""

from unittest import mock

import pytest
import torch
from simla_models import block, simla_batch, simla_model
from tiny_models import (
    assert_same,
    gradients,
    predict_positions,
    tiny_batch,
    tiny_pretraining_model,
    tiny_retrieval_model,
)

from vicha_hf import SimlaForPreTraining
from vicha_hf.models.encoder_attention import RealTokens


ALBEF = {"use_concepts": False, "hierarchical_itc_weight": 0, "mim_weight": 0}
HEADS = {
    "vicha": lambda: (tiny_pretraining_model(), tiny_batch(4)),
    "vicha, images fused with texts": lambda: (tiny_pretraining_model(mim_mode="both"), tiny_batch(4)),
    "albef": lambda: (tiny_pretraining_model(**ALBEF), tiny_batch(4, concepts=False)),
    "retrieval": lambda: (tiny_retrieval_model(), tiny_batch(4)),
    "simla": lambda: (simla_model(SimlaForPreTraining), simla_batch(4) | {"bool_masked_pos": block(4)}),
}


def built(head):
    """A head in training, and a batch that leaves nothing to be drawn, whose captions have different lengths."""
    model, batch = HEADS[head]()
    model.add_training_state()
    own = torch.arange(4)
    batch |= {"negative_image_indices": own.roll(1), "negative_text_indices": own.roll(-1)}
    if head != "retrieval":
        batch |= predict_positions(batch, [[1], [2], [1, 2], []])
    if head.startswith("vicha"):
        batch["mim_noise"] = torch.rand(4, 16, generator=torch.Generator().manual_seed(3))
    lengths = batch["attention_mask"].sum(dim=1)
    assert lengths.min() < lengths.max()
    return model.train(), batch


def losses_and_gradients(head, checkpointing=False):
    model, batch = built(head)
    if checkpointing:
        model.activation_checkpointing_enable()
    torch.manual_seed(0)
    output = model(**batch)
    output.loss.backward()
    return {name: value.detach() for name, value in output.items() if name.endswith("loss")} | gradients(model)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_losses_and_gradients_are_those_of_the_padded_step(head, checkpointing):
    observed = losses_and_gradients(head, checkpointing)
    with mock.patch.object(RealTokens, "of", return_value=None) as asked:
        expected = losses_and_gradients(head, checkpointing)
    assert asked.called
    assert_same(observed, expected)


def text_rows(model, batch):
    """Rows that each call of each text layer's feed-forward is given, of model and teacher."""
    rows = []
    base, teacher = model.base_model, model.training_state.teacher[model.base_model_prefix]
    layers = [layer for each in (base, teacher) for layer in each.text_model.encoder.layer]
    hooks = [
        layer.intermediate.dense.register_forward_pre_hook(
            lambda module, inputs: rows.append(inputs[0].shape[:-1].numel())
        )
        for layer in layers
    ]
    model(**batch)
    for hook in hooks:
        hook.remove()
    return sum(rows)


def test_padding_costs_nothing_where_tokens_are_alone():
    """However far captions are padded, the text layers work on as many rows."""
    model, batch = built("albef")
    observed = text_rows(model, batch)
    longer = dict(batch)
    for name, filler in (("input_ids", 0), ("attention_mask", 0), ("mlm_input_ids", 0), ("mlm_labels", -100)):
        longer[name] = torch.nn.functional.pad(batch[name], (0, 9), value=filler)
    assert text_rows(model, longer) == observed
    real = int(batch["attention_mask"].sum())
    pairs = real + real + int(batch["attention_mask"][batch["negative_text_indices"]].sum())
    # Text layers: captions and masked captions, of model and teacher. Fusion: the last of two layers computes [CLS] of
    # the 12 pairs, and as many columns as the caption with the most predicted words has.
    assert observed == 2 * 2 * 2 * real + (pairs + 12) + 2 * (real + 4 * 2)


def test_the_same_seed_draws_the_same_dropout():
    dropout, seen = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}, []
    for seed in (0, 0, 1):
        model = tiny_pretraining_model(text_config=dropout)
        model.add_training_state()
        torch.manual_seed(seed)
        seen.append(model.train()(**tiny_batch(4)).loss.item())
    assert seen[0] == seen[1] != seen[2]


def test_real_tokens_are_the_attended_ones_and_every_first():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 1, 0]])
    real = RealTokens.of(mask)
    assert real.index.tolist() == [0, 1, 3, 6, 7]
    states = torch.arange(9.0).view(3, 3, 1)
    assert real.pack(states).flatten().tolist() == [0, 1, 3, 6, 7]
    assert real.pad(real.pack(states)).flatten().tolist() == [0, 1, 0, 3, 0, 0, 6, 7, 0]


def test_without_padding_nothing_is_moved():
    assert RealTokens.of(torch.ones(2, 3)) is None
