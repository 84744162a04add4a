"""Reconstruction of visual tokens against an obvious version of itself, one image at a time."""

import pytest
import torch
from simla_models import GRID, NUM_CODES, SimlaForPreTraining, block, simla_batch, simla_config, simla_model

from vicha_hf.models.objective_image_token_reconstruction import ImageTokenReconstruction


def reconstruction(**fields):
    torch.manual_seed(0)
    return ImageTokenReconstruction(simla_config(**fields))


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_loss_is_the_mean_over_masked_patches(alpha):
    objective = reconstruction()
    logits, teacher_logits = torch.randn(2, 7, NUM_CODES)
    labels = torch.randint(NUM_CODES, (7,))
    expected = 0.0
    for row in range(7):
        log_probabilities = logits[row] - logits[row].exp().sum().log()
        teacher = teacher_logits[row].exp() / teacher_logits[row].exp().sum()
        expected += (1 - alpha) * -log_probabilities[labels[row]] + alpha * -(teacher * log_probabilities).sum()
    loss = objective(logits, teacher_logits, labels, alpha).loss
    assert loss.item() == pytest.approx(expected.item() / 7, rel=1e-5)


def test_no_masked_patch_gives_zero_and_a_gradient_of_zero():
    model, batch = simla_model(SimlaForPreTraining).train(), simla_batch(2)
    output = model(**batch, bool_masked_pos=torch.zeros(2, GRID * GRID, dtype=torch.bool))
    output.loss.backward()
    assert output.mim_loss.item() == 0 and model.mim.head.weight.grad.abs().sum() == 0


@torch.no_grad()
def obvious_logits(model, pixel_values, masked, input_ids):
    """One image and its caption without padding: mask, ViT, text positions and norm, all text layers, head."""
    vision, text = model.simla.vision_model, model.simla.text_model
    tokens = vision.embeddings.patch_embeddings(pixel_values).flatten(2).transpose(1, 2)[0]
    positions = vision.embeddings.position_embeddings[0]
    rows = [vision.embeddings.cls_token[0, 0] + positions[0]]
    for patch in range(GRID * GRID):
        rows.append((model.mim.mask_token[0, 0] if masked[patch] else tokens[patch]) + positions[patch + 1])
    states = torch.stack(rows)[None]
    for layer in vision.layers:
        states = layer(states)
    states = vision.layernorm(states)
    words = text.embeddings(input_ids)
    states = text.embeddings.LayerNorm(states + text.embeddings.position_embeddings.weight[: states.shape[1]])
    for layer in text.encoder.layer:
        states = layer(states, None, *layer.crossattention.self.project(words))
    return model.mim.head(states[0, 1:][masked])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_predictions_equal_the_obvious_ones(attention):
    model, batch = simla_model(SimlaForPreTraining, attn_implementation=attention), simla_batch(3)
    masked, base = block(3), model.simla
    masked[1, 5:] = True  # unequal counts
    with torch.no_grad():
        words = base.text_model.embeddings(batch["input_ids"])
        inputs = (batch["pixel_values"], masked, words, batch["attention_mask"])
        logits = model.mim.predict(base.vision_model, base.text_model, *inputs)
    expected = []
    for row in range(3):
        length = int(batch["attention_mask"][row].sum())
        single = batch["pixel_values"][[row]], masked[row], batch["input_ids"][[row], :length]
        expected.append(obvious_logits(model, *single))
    torch.testing.assert_close(logits, torch.cat(expected), atol=1e-4, rtol=1e-4)


def test_masked_pixels_are_not_seen_and_the_text_is():
    model, batch = simla_model(SimlaForPreTraining), simla_batch(2)
    masked = block(2)
    changed = batch["pixel_values"].clone()
    for row in range(2):
        for patch in masked[row].nonzero().flatten().tolist():
            top, left = patch // GRID * 8, patch % GRID * 8
            changed[row, :, top : top + 8, left : left + 8] = 9.0
    base = model.simla

    def predict(pixels, ids):
        words = base.text_model.embeddings(ids)
        inputs = (pixels, masked, words, batch["attention_mask"])
        return model.mim.predict(base.vision_model, base.text_model, *inputs)

    with torch.no_grad():
        logits = predict(batch["pixel_values"], batch["input_ids"])
        torch.testing.assert_close(predict(changed, batch["input_ids"]), logits)
        other = batch["input_ids"].clone()
        other[:, 1] = (other[:, 1] + 1) % 40 + 5
        assert (predict(batch["pixel_values"], other) - logits).abs().max() > 1e-3


@pytest.mark.parametrize("shape", [(2, 16), (2, 4, 4)])
def test_tokens_come_as_grid_or_row(shape):
    objective, pixels = reconstruction(), torch.zeros(2, 3, 32, 32)
    tokens, mask = objective.check_tokens(pixels, torch.ones(shape).long(), torch.ones(shape).long())
    assert tokens.shape == mask.shape == (2, 16) and mask.dtype == torch.bool


@pytest.mark.parametrize(
    ("shape", "said"),
    [((2, 25), "25 per image"), ((2, 5, 5), "5 x 5 per image"), ((2, 2, 8), "2 x 8"), ((3, 16), "2")],
)
def test_a_grid_that_is_not_the_patches_names_both_sizes(shape, said):
    with pytest.raises(ValueError, match="4 x 4 = 16 patches") as error:
        reconstruction().check_tokens(torch.zeros(2, 3, 32, 32), torch.zeros(shape).long(), None)
    assert said in str(error.value)


def test_tokens_outside_the_vocabulary_and_missing_tokens_are_named():
    objective, pixels = reconstruction(), torch.zeros(1, 3, 32, 32)
    with pytest.raises(ValueError, match=r"0 to 20, but .*visual_vocab_size=20"):
        objective.check_tokens(pixels, torch.tensor([[0] * 15 + [20]]), None)
    with pytest.raises(ValueError, match=r"visual_token_ids.*mim_weight=0"):
        objective.check_tokens(pixels, None, None)


def test_drawn_masks_follow_the_configuration_and_torchs_generator():
    objective, pixels = reconstruction(mim_max_masked_patches=5), torch.zeros(50, 3, 32, 32)
    torch.manual_seed(3)
    masks = objective.draw_masks(pixels)
    assert masks.shape == (50, 16) and masks.sum(dim=1).min() >= 2 and masks.sum(dim=1).max() == 5
    torch.manual_seed(3)
    assert torch.equal(objective.draw_masks(pixels), masks)
