"""Masked image modelling: patches, masks, the decoder's input and the loss, against loops."""

import math

import pytest
import torch
from tiny_models import NUM_PATCHES, PAD, tiny_batch, tiny_pretraining_model

from vicha_hf.models.objective_mim import (
    draw_patch_mask,
    insert_mask_tokens,
    normalized_patches,
    patchify,
    sincos_positions,
)


def image(height=13, width=9, batch_size=2):
    return torch.randn(batch_size, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("height", "width", "patch"), [(8, 8, 4), (13, 9, 4), (6, 12, 3)])
def test_patchify_equals_a_loop(height, width, patch):
    pixels = image(height, width)
    patches = patchify(pixels, patch)
    rows, columns = height // patch, width // patch
    assert patches.shape == (2, rows * columns, patch * patch * 3)
    for sample in range(2):
        for row in range(rows):
            for column in range(columns):
                expected = [
                    pixels[sample, channel, row * patch + y, column * patch + x].item()
                    for y in range(patch)
                    for x in range(patch)
                    for channel in range(3)
                ]
                assert patches[sample, row * columns + column].tolist() == expected


def test_normalized_patches_use_the_unbiased_variance():
    pixels = image(8, 8)
    patches = normalized_patches(pixels, 4)
    raw = patchify(pixels, 4)[1, 2].tolist()
    mean = sum(raw) / 48
    variance = sum((value - mean) ** 2 for value in raw) / 47
    expected = [(value - mean) / math.sqrt(variance + 1e-6) for value in raw]
    assert patches[1, 2].tolist() == pytest.approx(expected, abs=1e-5)
    assert (normalized_patches(torch.ones(1, 3, 4, 4), 4) == 0).all()


@pytest.mark.parametrize(("ratio", "kept"), [(0.75, 4), (0.5, 8), (0.1, 14)])
def test_kept_removed_and_restored_patches_agree(ratio, kept):
    noise = torch.rand(3, NUM_PATCHES, generator=torch.Generator().manual_seed(0))
    mask = draw_patch_mask(noise, ratio)
    assert mask.kept_indices.shape == (3, kept)
    for row in range(3):
        smallest = sorted(range(NUM_PATCHES), key=lambda patch: noise[row, patch].item())
        assert mask.kept_indices[row].tolist() == smallest[:kept]
        removed = [patch for patch in range(NUM_PATCHES) if mask.removed[row, patch] == 1]
        assert sorted(smallest[kept:]) == removed
        shuffled = [smallest.index(patch) for patch in range(NUM_PATCHES)]
        assert mask.restore_indices[row].tolist() == shuffled


def test_mask_tokens_fill_the_removed_places():
    noise = torch.rand(3, NUM_PATCHES, generator=torch.Generator().manual_seed(0))
    mask = draw_patch_mask(noise, 0.75)
    # Each token carries the number of its patch, [CLS] 100, the mask token -1.
    tokens = torch.cat([torch.full((3, 1), 100), mask.kept_indices], dim=1)[..., None].float().expand(-1, -1, 2)
    restored = insert_mask_tokens(tokens, torch.full((1, 1, 2), -1.0), mask)
    assert restored.shape == (3, 1 + NUM_PATCHES, 2)
    assert (restored[:, 0] == 100).all()
    for row in range(3):
        for patch in range(NUM_PATCHES):
            expected = -1 if mask.removed[row, patch] else patch
            assert (restored[row, 1 + patch] == expected).all()


def test_sincos_positions_equal_a_loop():
    dim, grid = 12, 3
    positions = sincos_positions(dim, grid)
    assert positions.shape == (1 + grid * grid, dim) and (positions[0] == 0).all()
    for row in range(grid):
        for column in range(grid):
            expected = []
            for place in (column, row):
                angles = [place / 10000 ** (index / (dim / 4)) for index in range(dim // 4)]
                expected += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
            assert positions[1 + row * grid + column].tolist() == pytest.approx(expected, abs=1e-6)


def model_and_inputs(mode):
    model, batch = tiny_pretraining_model(mim_mode=mode), tiny_batch(3)
    text_states = model.vicha.encode_texts(batch["input_ids"], batch["attention_mask"]).hidden_states
    noise = torch.rand(3, NUM_PATCHES, generator=torch.Generator().manual_seed(0))
    return model, batch, text_states, noise


def run(model, batch, text_states, noise):
    vicha = model.vicha
    return model.mim(
        batch["pixel_values"], vicha.vision_model, vicha.text_model, text_states, batch["attention_mask"], noise
    )


@pytest.mark.parametrize(("mode", "branches"), [("unimodal", 1), ("crossmodal", 1), ("both", 2)])
def test_loss_is_the_error_of_removed_patches_alone(mode, branches):
    model, batch, text_states, noise = model_and_inputs(mode)
    with torch.no_grad():
        output = run(model, batch, text_states, noise)
    assert len(output.predictions) == len(output.branch_losses) == branches
    target = normalized_patches(batch["pixel_values"], 8)
    removed = draw_patch_mask(noise, 0.75).removed
    expected = []
    for prediction in output.predictions:
        errors = [
            (prediction[row, patch] - target[row, patch]).square().mean().item()
            for row in range(3)
            for patch in range(NUM_PATCHES)
            if removed[row, patch]
        ]
        assert len(errors) == 3 * 12
        expected.append(sum(errors) / len(errors))
    assert [loss.item() for loss in output.branch_losses] == pytest.approx(expected, rel=1e-5)
    assert output.loss.item() == pytest.approx(sum(expected) / branches, rel=1e-5)


@pytest.mark.parametrize("mode", ["unimodal", "both"])
@pytest.mark.parametrize(("fraction", "rows"), [(0.4, 2), (0.01, 1), (1, 3)])
def test_a_fraction_of_the_batch_is_reconstructed(mode, fraction, rows):
    model, batch, text_states, noise = model_and_inputs(mode)
    with torch.no_grad():
        first = {name: value[:rows] for name, value in batch.items()}
        expected = run(model, first, text_states[:rows], noise[:rows]).loss
        everything = run(model, batch, text_states, noise).loss
        model.config.mim_fraction = fraction
        observed = model(**batch, mim_noise=noise).mim_loss
    torch.testing.assert_close(observed, expected)
    assert torch.isclose(observed, everything) == (rows == 3)


@pytest.mark.parametrize("mode", ["unimodal", "crossmodal"])
def test_predictions_do_not_see_the_removed_pixels(mode):
    model, batch, text_states, noise = model_and_inputs(mode)
    removed = draw_patch_mask(noise, 0.75).removed[0].nonzero().flatten().tolist()
    changed = {**batch, "pixel_values": batch["pixel_values"].clone()}
    for patch in removed:
        row, column = divmod(patch, 4)
        changed["pixel_values"][0, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 5.0
    kept_changed = {**batch, "pixel_values": batch["pixel_values"].clone()}
    row, column = divmod(next(patch for patch in range(NUM_PATCHES) if patch not in removed), 4)
    kept_changed["pixel_values"][0, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 5.0
    with torch.no_grad():
        original = run(model, batch, text_states, noise)
        torch.testing.assert_close(run(model, changed, text_states, noise).predictions[0], original.predictions[0])
        other = run(model, kept_changed, text_states, noise).predictions[0]
    assert (other[0] - original.predictions[0][0]).abs().max() > 1e-3
    torch.testing.assert_close(other[1:], original.predictions[0][1:])


def test_unimodal_branch_by_hand():
    """Kept patches with their positions through the encoder, then the decoder over all places with fixed positions."""
    model, batch, text_states, noise = model_and_inputs("unimodal")
    vision, decoder, kept = model.vicha.vision_model, model.mim.decoder, draw_patch_mask(noise, 0.75).kept_indices
    with torch.no_grad():
        output = run(model, batch, text_states, noise)
        for row in range(3):
            embedded = vision.embeddings.patch_embeddings(batch["pixel_values"][row : row + 1])[0]
            positions = vision.embeddings.position_embeddings[0]
            tokens = [vision.embeddings.cls_token[0, 0] + positions[0]]
            tokens += [embedded[:, patch // 4, patch % 4] + positions[1 + patch] for patch in kept[row].tolist()]
            states = torch.stack(tokens)[None]
            for layer in vision.layers:
                states = layer(states)
            states = decoder.embed(vision.layernorm(states))[0]
            places = [model.mim.mask_token[0, 0]] * NUM_PATCHES
            for place, patch in enumerate(kept[row].tolist()):
                places[patch] = states[1 + place]
            states = (torch.stack([states[0], *places]) + sincos_positions(32, 4))[None]
            for layer in decoder.layers:
                states = layer(states)
            prediction = decoder.prediction(decoder.layernorm(states))[0, 1:]
            torch.testing.assert_close(output.predictions[0][row], prediction, atol=1e-5, rtol=1e-5)


def test_crossmodal_branch_reads_the_text_and_not_its_padding():
    model, batch, text_states, noise = model_and_inputs("crossmodal")
    padding = (batch["attention_mask"] == 0)[..., None]
    assert padding.any() and (batch["input_ids"][padding.squeeze(-1)] == PAD).all()
    with torch.no_grad():
        original = run(model, batch, text_states, noise).predictions[0]
        same = run(model, batch, text_states.masked_fill(padding, 9.0), noise).predictions[0]
        other = run(model, batch, text_states.flip(0), noise).predictions[0]
    torch.testing.assert_close(same, original)
    assert (other - original).abs().max() > 1e-3


def test_noise_is_drawn_when_not_given():
    """Anew in every training step; in evaluation mode from the batch, so that its loss is always the same."""
    model, masks = tiny_pretraining_model(), []
    model.mim.register_forward_hook(lambda module, inputs, output: masks.append(output.mask.removed))
    for training in (True, False):
        model.train(training)
        for seed in (0, 0, 1):
            with torch.no_grad():
                model(**tiny_batch(4, seed=seed))
    assert all((mask.sum(dim=1) == 12).all() and not torch.equal(mask[0], mask[1]) for mask in masks)
    assert not torch.equal(masks[0], masks[1])
    assert torch.equal(masks[3], masks[4]) and not torch.equal(masks[4], masks[5])
