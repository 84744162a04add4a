"""Attention kernels that take padding out (flash attention): what they are given, and that the results are the same."""

import pytest
import torch
from head_checks import HEADS, inference_inputs, predict, tiny_head
from tiny_models import tiny_batch, tiny_model, tiny_pretraining_model, tiny_retrieval_model
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


@pytest.fixture
def padded(monkeypatch):
    """Registers `padding_free`, which computes as flash attention does; how often it met padding."""
    met = []

    def padding_free(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
        # One mask [B, T] for queries and keys: they must have the same length.
        assert query.shape[2] == key.shape[2] and (attention_mask is None or attention_mask.dim() == 2)
        met.append(attention_mask is not None)
        context = torch.zeros_like(query).transpose(1, 2)
        for row in range(len(query)):
            real = slice(None) if attention_mask is None else attention_mask[row].bool()
            parts = (tensor[row : row + 1, :, real] for tensor in (query, key, value))
            attended = torch.nn.functional.scaled_dot_product_attention(
                *parts, is_causal=module.is_causal, scale=scaling
            )
            # What stands at padding is undefined: nothing may read it.
            context[row] = 1e4
            context[row, real] = attended[0].transpose(0, 1)
        return context, None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "padding_free", padding_free)
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, "padding_free", flash_attention_mask)
    return met


@pytest.mark.parametrize("builder", [tiny_model, tiny_pretraining_model, tiny_retrieval_model])
def test_models(builder, padded):
    batch, outputs = tiny_batch(4), []
    batch["concept_attention_mask"][1] = 0
    for attention in ("sdpa", "padding_free"):
        torch.manual_seed(0)
        with torch.no_grad():
            outputs.append(builder(attn_implementation=attention)(**batch))
    expected, observed = outputs
    assert any(padded)
    for name, value in expected.items():
        if torch.is_tensor(value) and not name.endswith("hidden_state") and not name.endswith("hidden_states"):
            torch.testing.assert_close(observed[name], value, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("name", HEADS)
def test_heads(name, padded):
    inputs = inference_inputs(name)
    expected, observed = (
        predict(name, tiny_head(name, attn_implementation=kind), inputs) for kind in ("sdpa", "padding_free")
    )
    torch.testing.assert_close(observed, expected, atol=1e-5, rtol=1e-5)
    assert any(padded)


def test_written_answers(padded):
    inputs = inference_inputs("vqa")
    expected, observed = (
        tiny_head("vqa", attn_implementation=kind).generate(**inputs, max_new_tokens=4)
        for kind in ("sdpa", "padding_free")
    )
    assert torch.equal(observed, expected)
    assert any(padded)
