"""With dropout on a CPU attention is computed plainly, where SDPA's fallback would keep scaled copies of the keys."""

import pytest
import torch
from kept_memory import bytes_kept
from tiny_models import tiny_pretraining_model

from vicha_hf.models import encoder_attention


def cross_attention(dropout, is_training=True):
    torch.manual_seed(0)
    model = tiny_pretraining_model(attn_implementation="sdpa")
    attention = model.vicha.text_model.encoder.layer[-1].crossattention.self
    attention.config.attention_probs_dropout_prob = dropout
    return attention.train(is_training)


def inputs(attention, queries=5, keys=64):
    torch.manual_seed(1)
    key, value = torch.randn(2, 3, attention.config.num_attention_heads, keys, attention.head_dim)
    states = torch.randn(3, queries, attention.config.hidden_size)
    allowed = torch.ones(3, 1, 1, keys, dtype=torch.bool)
    allowed[1, ..., 40:] = False
    return states, key.requires_grad_(), value.requires_grad_(), allowed


def test_it_is_the_same_attention():
    """Dropout so rare that nothing is dropped, against SDPA without dropout."""
    observed = []
    for dropout, is_training in ((1e-9, True), (1e-9, False), (0.0, True)):
        attention = cross_attention(dropout, is_training)
        states, key, value, allowed = inputs(attention)
        context, _ = attention(states, key, value, allowed)
        context.square().sum().backward()
        observed.append((context, key.grad, value.grad))
    for others in observed[1:]:
        for ours, theirs in zip(observed[0], others, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_dropout_drops():
    attention = cross_attention(0.5)
    given = inputs(attention)
    torch.manual_seed(2)
    first, again = attention(*given)[0], attention(*given)[0]
    torch.manual_seed(2)
    assert torch.equal(first, attention(*given)[0]) and not torch.equal(first, again)


@pytest.mark.parametrize("is_plain", [True, False])
def test_no_copy_of_the_keys_is_kept(monkeypatch, is_plain):
    if not is_plain:
        monkeypatch.setattr(encoder_attention, "_has_no_fused_kernel", lambda module: False)
    attention = cross_attention(0.1)
    states, key, value, allowed = inputs(attention, queries=1)
    attention(states, key, value, allowed)
    allocated, _ = bytes_kept(lambda: attention(states, key, value, allowed)[0])
    assert (allocated < key.nbytes) == is_plain
