"""What an image or a pair gives does not depend on the batch that it is in, on padding, or on the attention backend."""

import pytest
import torch
from tiny_models import (
    CLS,
    NUM_PATCHES,
    PAD,
    assert_same,
    gradients,
    tiny_batch,
    tiny_model,
    tiny_pretraining_model,
    tiny_retrieval_model,
    token_rows,
)


CONCEPT_LENGTHS = [5, 0, 8, 3]
TEXT_LENGTHS = [4, 7, 5, 8]
IMAGE_TOKENS = 1 + NUM_PATCHES


def batch_with_unequal_lengths():
    pixel_values = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    concept_input_ids, concept_attention_mask = token_rows(CONCEPT_LENGTHS, seed=1)
    input_ids, attention_mask = token_rows(TEXT_LENGTHS, seed=2)
    return {
        "pixel_values": pixel_values,
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "concept_input_ids": concept_input_ids,
        "concept_attention_mask": concept_attention_mask,
    }


def rows_of(batch, rows):
    return {name: value[rows] for name, value in batch.items()}


def alone(batch, row):
    """Row `row` by itself, without any padding."""
    single = rows_of(batch, [row])
    for ids, mask in (("input_ids", "attention_mask"), ("concept_input_ids", "concept_attention_mask")):
        length = int(single[mask].sum())
        single[ids], single[mask] = single[ids][:, :length], single[mask][:, :length]
    if single["concept_input_ids"].shape[1] == 0:
        del single["concept_input_ids"], single["concept_attention_mask"]
    return single


def padded(batch, concepts, texts):
    """The batch with more columns of padding, filled with ids that would show if they were read."""
    grown = dict(batch)
    for prefix, columns, filler in (("concept_", concepts, 9), ("", texts, 11)):
        ids, mask = grown[f"{prefix}input_ids"], grown[f"{prefix}attention_mask"]
        grown[f"{prefix}input_ids"] = torch.cat([ids, torch.full((len(ids), columns), filler)], dim=1)
        grown[f"{prefix}attention_mask"] = torch.cat([mask, mask.new_zeros(len(ids), columns)], dim=1)
    return grown


@torch.no_grad()
def results(model, batch, row):
    """Everything that a user reads of one row, without the columns of padding."""
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    image = {name: value for name, value in batch.items() if name not in text}
    images, texts = model.encode_images(**image), model.encode_texts(**text)
    length = int(batch["attention_mask"][row].sum())
    concepts = batch.get("concept_attention_mask")
    num_concepts = 0 if concepts is None else int(concepts[row].sum())
    output = model.vicha(**batch)
    return {
        "image_embeds": images.embeds[row],
        "patch_states": images.hidden_states[row, : IMAGE_TOKENS + num_concepts],
        "text_embeds": texts.embeds[row],
        "text_states": texts.hidden_states[row, :length],
        "similarity": output.logits_per_image[row, row],
        "fused": output.last_hidden_state[row, :length],
        "match": model.score_pairs(images, texts)[row],
        "own_match": model.score_pairs(images, texts, torch.tensor([row]), torch.tensor([row]))[0],
    }


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("row", range(4))
def test_alone_batched_reordered_and_padded_are_equal(row, attention):
    model, batch = tiny_retrieval_model(attn_implementation=attention), batch_with_unequal_lengths()
    expected = results(model, alone(batch, row), 0)
    variants = {
        "batched": (batch, row),
        "reversed": (rows_of(batch, [3, 2, 1, 0]), 3 - row),
        "beside itself": (rows_of(batch, [row, row]), 1),
        "concepts padded": (padded(batch, 9, 0), row),
        "texts padded": (padded(batch, 0, 6), row),
        "both padded": (padded(rows_of(batch, [row]), 1, 1), 0),
    }
    for variant, (other, position) in variants.items():
        try:
            assert_same(results(model, other, position), expected)
        except AssertionError as error:
            raise AssertionError(f"{variant}: {error}") from None


def test_backends_agree():
    batch = batch_with_unequal_lengths()
    eager, sdpa = (tiny_retrieval_model(attn_implementation=name) for name in ("eager", "sdpa"))
    for row in range(4):
        assert_same(results(sdpa, batch, row), results(eager, batch, row))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("layers", [0, 1, 2])
def test_a_row_without_concepts_is_encoded_as_without_concepts(layers, attention):
    model = tiny_model(attn_implementation=attention, num_concept_layers=layers)
    batch = batch_with_unequal_lengths()
    with torch.no_grad():
        mixed = model.encode_images(batch["pixel_values"], batch["concept_input_ids"], batch["concept_attention_mask"])
        none = model.encode_images(batch["pixel_values"])
        empty = model.encode_images(
            batch["pixel_values"], torch.full((4, 3), PAD), torch.zeros(4, 3, dtype=torch.long)
        )
        lone_cls = model.encode_images(batch["pixel_values"], torch.full((4, 1), CLS), torch.ones(4, 1))
    torch.testing.assert_close(mixed.embeds[1], none.embeds[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(empty.embeds, none.embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(empty.hidden_states[:, :IMAGE_TOKENS], none.hidden_states, atol=1e-5, rtol=0)
    # And the test would notice: concepts, even a lone [CLS], do change an image.
    assert (mixed.embeds[0] - none.embeds[0]).abs().max() > 1e-3
    assert (lone_cls.embeds - none.embeds).abs().max() > 1e-3


def test_unmasked_concepts_quirk_depends_on_padding():
    """The published behaviour, which the default departs from."""
    model, batch = tiny_model(reference_quirks=["unmasked_concepts"]), batch_with_unequal_lengths()
    with torch.no_grad():
        original, longer = model(**batch), model(**padded(batch, 2, 0))
    assert (original.image_embeds - longer.image_embeds).abs().max() > 1e-3


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("empty_rows", [[1], [0, 1, 2, 3]], ids=["one empty row", "all empty"])
def test_gradients_with_empty_concept_rows_are_finite(empty_rows, attention):
    model = tiny_pretraining_model(attn_implementation=attention).train()
    batch = tiny_batch(4)
    batch["concept_input_ids"][empty_rows] = PAD
    batch["concept_attention_mask"][empty_rows] = 0
    output = model(**batch)
    output.loss.backward()
    assert output.loss.isfinite()
    assert not [name for name, gradient in gradients(model).items() if not gradient.isfinite().all()]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_training_losses_and_gradients_do_not_depend_on_padding(attention):
    batch = tiny_batch(4)
    noise = torch.rand(4, NUM_PATCHES, generator=torch.Generator().manual_seed(0))
    negatives = {name: torch.tensor([1, 2, 3, 0]) for name in ("negative_image_indices", "negative_text_indices")}
    observed = []
    for variant in (batch, padded(batch, 3, 4)):
        model = tiny_pretraining_model(attn_implementation=attention, mim_mode="both").train()
        labels = torch.full_like(variant["input_ids"], -100)
        labels[:, 1] = variant["input_ids"][:, 1]
        output = model(**variant, **negatives, mim_noise=noise, mlm_input_ids=variant["input_ids"], mlm_labels=labels)
        output.loss.backward()
        losses = {name: value.detach() for name, value in output.items() if name.endswith("loss")}
        observed.append(gradients(model) | losses)
    assert len(observed[0]) > 100
    assert_same(observed[1], observed[0], tolerance=1e-5)
