"""Patches that a few small convolutions embed, in the place of one linear map."""

import copy
import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from simla_models import block, simla_batch, simla_config
from tiny_models import assert_same, gradients, tiny_batch, tiny_config, tiny_model, tiny_pretraining_model
from transformers import AutoModel

from vicha_hf import SimlaForPreTraining, ViChaModel
from vicha_hf.models.configuration_vicha import ViChaVisionConfig
from vicha_hf.models.encoder_vision import ConvolutionalStem
from vicha_hf.models.objective_mim import draw_patch_mask


STEM = {"stem": "convolutional"}


def stem_by_hand(stem, image):
    """[C, H, W] -> [d, h, w], place by place."""
    layers = list(stem)
    for convolution, norm in zip(layers[:-1:3], layers[1:-1:3], strict=True):
        weight, (channels, height, width) = convolution.weight.double(), image.shape
        padded = image.new_zeros(channels, height + 2, width + 2)
        padded[:, 1:-1, 1:-1] = image
        found = image.new_zeros(len(weight), height // 2, width // 2)
        for row in range(height // 2):
            for column in range(width // 2):
                seen = padded[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
                value = (weight * seen).sum(dim=(1, 2, 3))
                value = (value - value.mean()) / (value.var(correction=0) + norm.eps).sqrt()
                value = value * norm.weight.double() + norm.bias.double()
                found[:, row, column] = value * (1 + torch.erf(value / math.sqrt(2))) / 2
        image = found
    last = layers[-1]
    return torch.einsum("oc,chw->ohw", last.weight[:, :, 0, 0].double(), image) + last.bias.double()[:, None, None]


@torch.no_grad()
@pytest.mark.parametrize("patch_size", [2, 8])
def test_against_loops_over_the_places(patch_size):
    torch.manual_seed(0)
    stem = ConvolutionalStem(3, 16, patch_size, eps=1e-6)
    for parameter in stem.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.3)
    # The last pixels are no whole patch.
    images = torch.randn(2, 3, 2 * patch_size + 1, 3 * patch_size)
    found = stem(images)
    assert found.shape == (2, 16, 2, 3)
    for image, embedded in zip(images, found, strict=True):
        expected = stem_by_hand(stem, image[:, : 2 * patch_size].double())
        torch.testing.assert_close(embedded.double(), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("size", [32, 29, 48])
def test_an_image_is_embedded_by_itself_at_any_size(size):
    model = tiny_model(vision_config=STEM)
    pixels = torch.randn(4, 3, size, size)
    together = model.encode_images(pixels).hidden_states
    assert together.shape[1] == 1 + (size // 8) ** 2
    for row in range(4):
        torch.testing.assert_close(model.encode_images(pixels[row : row + 1]).hidden_states[0], together[row])
    if size == 29:
        # Beyond the last whole patch nothing is read.
        pixels[..., 24:] = 7.0
        pixels[..., 24:, :] = 7.0
        torch.testing.assert_close(model.encode_images(pixels).hidden_states, together)


@torch.no_grad()
def test_an_edge_in_a_patch_moves_its_embedding_where_the_mean_is_the_same():
    """What the stem is for: a shifted line within one patch is a small change of pixels and another shape."""
    model = tiny_model(vision_config=STEM)
    first, second = torch.zeros(2, 1, 3, 32, 32)
    first[..., 10, 8:16] = second[..., 13, 8:16] = 1.0
    embed = model.vision_model.embeddings.patch_embeddings
    assert (embed(first) - embed(second)).abs().max() > 1e-3


def test_every_weight_learns_in_both_families():
    for model, batch in (
        (tiny_pretraining_model(vision_config=STEM), tiny_batch()),
        (SimlaForPreTraining(simla_config(vision_config=STEM)), simla_batch()),
    ):
        model.train()(**batch).loss.backward()
        stem = {name: gradient for name, gradient in gradients(model).items() if "patch_embeddings" in name}
        # Three convolutions with their norms, and the last one with its bias.
        assert len(stem) == 3 * 3 + 2
        assert all(gradient.abs().sum() > 0 for gradient in stem.values())


def test_the_parts_of_a_batch_have_the_gradient_of_the_whole():
    """Batch norm would not."""
    model, pixels = tiny_model(vision_config=STEM).train(), torch.randn(6, 3, 32, 32)
    whole, parts = copy.deepcopy(model), model
    whole.encode_images(pixels).embeds.square().mul(torch.arange(6.0)[:, None] + 1).sum().backward()
    for rows in (slice(0, 2), slice(2, 6)):
        embeds = parts.encode_images(pixels[rows]).embeds
        embeds.square().mul(torch.arange(6.0)[rows, None] + 1).sum().backward()
    assert_same(gradients(parts), gradients(whole), tolerance=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["unimodal", "crossmodal", "both"])
def test_what_is_to_be_reconstructed_is_not_seen_through_the_stem(mode):
    """A kept patch's embedding reads the rims of its neighbours, and those may be removed."""
    model = tiny_pretraining_model(vision_config=STEM, mim_mode=mode)
    batch, noise = tiny_batch(), torch.rand(4, 16)
    mask = draw_patch_mask(noise, model.config.mim_mask_ratio)
    other = batch["pixel_values"] + 3.0 * pixels_of(mask.removed)
    encoder = model.vicha.vision_model
    # Without the masking of pixels, the two would differ.
    seen = [
        encoder(pixels, patch_indices=mask.kept_indices).last_hidden_state for pixels in (batch["pixel_values"], other)
    ]
    assert not torch.allclose(*seen, atol=1e-3)

    def reconstruct(pixel_values):
        texts = torch.ones(4, 5, model.config.text_config.hidden_size), torch.ones(4, 5)
        return model.mim(pixel_values, encoder, model.vicha.text_model, *texts, noise)

    found, expected = reconstruct(other), reconstruct(batch["pixel_values"])
    assert torch.equal(found.image_tokens, expected.image_tokens)
    for one, another in zip(found.predictions, expected.predictions, strict=True):
        assert torch.equal(one, another)
    # The target is of the whole image.
    assert not torch.allclose(found.target, expected.target, atol=1e-3)


@torch.no_grad()
def test_masked_visual_tokens_are_not_seen_through_the_stem():
    model = SimlaForPreTraining(simla_config(vision_config=STEM)).eval()
    batch, mask = simla_batch(), block(4)
    embeddings = torch.randn(4, 5, model.config.text_config.hidden_size)

    def reconstruct(pixel_values):
        return model.mim.reconstruct(model.simla.vision_model, model.simla.text_model, pixel_values, mask, embeddings)

    changed = batch["pixel_values"] + 3.0 * pixels_of(mask)
    assert torch.equal(reconstruct(changed), reconstruct(batch["pixel_values"]))
    kept = batch["pixel_values"] + 3.0 * pixels_of(~mask)
    assert not torch.allclose(reconstruct(kept), reconstruct(batch["pixel_values"]), atol=1e-3)


def pixels_of(patches):
    """Random pixels [B, 3, 32, 32] where `patches` [B, 16] says yes, and zeros elsewhere."""
    grid = patches.float().unflatten(1, (1, 4, 4))
    return torch.nn.functional.interpolate(grid, scale_factor=8) * torch.randn(len(patches), 3, 32, 32)


@torch.no_grad()
@pytest.mark.parametrize("start", [None, 0.8])
def test_the_last_convolution_starts_as_asked(start):
    model = ViChaModel(tiny_config(vision_config=STEM | {"stem_initializer_range": start}))
    *others, last = [one for one in model.vision_model.embeddings.patch_embeddings if hasattr(one, "stride")]
    usual = model.config.vision_config.initializer_range
    assert last.weight.std().item() == pytest.approx(start or usual, rel=0.2)
    assert all(one.weight.std().item() == pytest.approx(usual, rel=0.2) for one in others)


@torch.no_grad()
def test_a_folder_keeps_it(tmp_path):
    model = tiny_model(vision_config=STEM)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.config.vision_config.stem == "convolutional"
    batch = tiny_batch()
    names = ("pixel_values", "concept_input_ids", "concept_attention_mask")
    found, expected = (one.encode_images(*(batch[name] for name in names)).embeds for one in (loaded, model))
    assert torch.equal(found, expected)


def test_it_exports_to_onnx(tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    from tiny_models import tiny_retrieval_model

    from vicha_hf.export.exporting import export_model

    differences = export_model(tiny_retrieval_model(vision_config=STEM), tmp_path, parts=["image_encoder"])
    assert differences["image_encoder"] < 1e-4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stem": "conv"}, r"`vision_config\.stem='conv'`.*\('patchify', 'convolutional'\)"),
        (STEM | {"patch_size": 12}, r"`vision_config\.patch_size=12`.*power of two"),
        (STEM | {"patch_size": 1}, r"`vision_config\.patch_size=1`.*2 or more"),
        (STEM | {"hidden_size": 12, "patch_size": 16}, r"`vision_config\.hidden_size=12`.*multiple of 8"),
        (STEM | {"stem_initializer_range": 0.0}, r"`vision_config\.stem_initializer_range=0\.0`.*above 0"),
        ({"stem_initializer_range": 0.5}, r"`vision_config\.stem_initializer_range=0\.5`.*stem='convolutional'"),
    ],
)
def test_what_cannot_be_built_is_named(fields, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        tiny_config(vision_config=fields)


def test_the_papers_models_have_none():
    assert ViChaVisionConfig().stem == "patchify"
    assert isinstance(ViChaModel(tiny_config()).vision_model.embeddings.patch_embeddings, torch.nn.Conv2d)
