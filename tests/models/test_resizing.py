"""Changing the vocabulary and the image size of a model."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from tiny_models import (
    VOCAB_SIZE,
    assert_same,
    tiny_batch,
    tiny_model,
    tiny_pretraining_model,
    tiny_retrieval_model,
)

from vicha_hf import ViChaForPreTraining
from vicha_hf.models.encoder_vision import interpolate_positions
from vicha_hf.models.objective_mim import sincos_positions


@pytest.mark.parametrize("new_size", [VOCAB_SIZE + 5, VOCAB_SIZE - 5])
@pytest.mark.parametrize("builder", [tiny_model, tiny_pretraining_model, tiny_retrieval_model])
def test_every_vocabulary_is_resized(builder, new_size):
    model = builder()
    kept = min(new_size, VOCAB_SIZE)
    bare = getattr(model, "vicha", model)
    text = bare.text_model.embeddings.word_embeddings.weight[:kept].clone()
    concepts = bare.concept_model.embeddings.word_embeddings.weight[:kept].clone()
    returned = model.resize_token_embeddings(new_size)
    assert returned is bare.text_model.embeddings.word_embeddings
    for module in (bare.text_model, bare.concept_model):
        assert module.get_input_embeddings().weight.shape == (new_size, 32)
    assert torch.equal(bare.text_model.embeddings.word_embeddings.weight[:kept], text)
    assert torch.equal(bare.concept_model.embeddings.word_embeddings.weight[:kept], concepts)
    assert model.config.text_config.vocab_size == new_size
    if builder is tiny_pretraining_model:
        decoder = model.mlm_head.decoder
        assert decoder.weight is bare.text_model.embeddings.word_embeddings.weight
        assert decoder.bias.shape == (new_size,) and decoder.out_features == new_size


def test_a_resized_model_trains_on_the_new_tokens_and_is_saved(tmp_path):
    model = tiny_pretraining_model().train()
    model.resize_token_embeddings(VOCAB_SIZE + 5)
    batch, newest = tiny_batch(3), VOCAB_SIZE + 4
    batch["input_ids"][:, 1] = batch["concept_input_ids"][:, 1] = newest
    labels = torch.full_like(batch["input_ids"], -100)
    labels[:, 1] = newest
    output = model(**batch, mlm_input_ids=batch["input_ids"], mlm_labels=labels)
    output.loss.backward()
    assert output.loss.isfinite()
    for module in (model.vicha.text_model, model.vicha.concept_model):
        assert module.get_input_embeddings().weight.grad[newest].abs().sum() > 0
    model.save_pretrained(tmp_path)
    loaded = ViChaForPreTraining.from_pretrained(tmp_path)
    inference = {key: value for key, value in model.state_dict().items() if not key.startswith("training_state")}
    assert_same(loaded.state_dict(), inference, tolerance=0)


def test_asking_for_nothing_changes_nothing():
    model = tiny_pretraining_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.resize_token_embeddings()
    assert_same(model.state_dict(), before, tolerance=0)


def test_the_teacher_sees_images_of_the_new_size():
    model = tiny_retrieval_model().train()
    model.add_training_state()
    teacher = model.training_state.teacher["vicha"].vision_model.embeddings
    with torch.no_grad():
        teacher.position_embeddings.add_(1.0)
    expected = interpolate_positions(teacher.position_embeddings, (8, 8))
    model.resize_image_size(64)
    assert torch.equal(teacher.position_embeddings, expected) and not teacher.position_embeddings.requires_grad
    model(**tiny_batch(3, image_size=64)).loss.backward()


@pytest.mark.parametrize("size", [64, 40, 24])
@pytest.mark.parametrize("builder", [tiny_model, tiny_retrieval_model])
def test_another_image_size_equals_interpolating_at_every_call(builder, size):
    model, batch = builder(), tiny_batch(2, image_size=size)
    bare = getattr(model, "vicha", model)
    with torch.no_grad():
        on_the_fly = bare(**batch)
        model.resize_image_size(size)
        resized = bare(**batch)
    assert model.config.vision_config.image_size == size
    assert bare.vision_model.embeddings.position_embeddings.shape == (1, 1 + (size // 8) ** 2, 32)
    assert bare.vision_model.embeddings.position_embeddings.requires_grad
    torch.testing.assert_close(resized.image_embeds, on_the_fly.image_embeds)
    torch.testing.assert_close(resized.last_hidden_state, on_the_fly.last_hidden_state)


def test_a_resized_model_is_saved(tmp_path):
    model, batch = tiny_model(), tiny_batch(2, image_size=64)
    model.resize_image_size(64)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).image_embeds, model(**batch).image_embeds)


def test_a_size_without_a_patch_is_refused():
    model = tiny_retrieval_model()
    with pytest.raises(StrictDataclassError, match=r"vision_config\.image_size=7"):
        model.resize_image_size(7)
    assert model.config.vision_config.image_size == 32


def test_image_modelling_goes_on_at_another_size(tmp_path):
    model = tiny_pretraining_model(mim_mode="unimodal")
    model.resize_image_size(64)
    positions = model.mim.decoder.positions
    assert torch.equal(positions, sincos_positions(positions.shape[1], model.config.vision_config.grid_size))
    batch = tiny_batch(image_size=64)
    assert torch.isfinite(model(**batch, mlm_input_ids=batch["input_ids"], mlm_labels=batch["input_ids"]).mim_loss)
    model.save_pretrained(tmp_path)
    assert torch.equal(type(model).from_pretrained(tmp_path).mim.decoder.positions, positions)


def test_positions_of_cls_are_kept_and_a_constant_stays_constant():
    positions = torch.full((1, 17, 3), 2.0)
    positions[:, 0] = 7.0
    resized = interpolate_positions(positions, (6, 5))
    assert resized.shape == (1, 31, 3)
    assert (resized[:, 0] == 7).all()
    torch.testing.assert_close(resized[:, 1:], torch.full((1, 30, 3), 2.0))
    assert interpolate_positions(positions, (4, 4)) is positions


def test_positions_follow_rows_and_columns():
    """A map that grows along one axis only must still do so, along the same one."""
    grid = torch.arange(4.0).view(1, 4, 1).expand(4, 4, 2).clone()
    grid[..., 1] = torch.arange(4.0).view(4, 1)
    positions = torch.cat([torch.zeros(1, 1, 2), grid.flatten(0, 1)[None]], dim=1)
    resized = interpolate_positions(positions, (8, 8))[0, 1:].view(8, 8, 2)
    assert (resized[:, :, 0] - resized[:1, :, 0]).abs().max() < 1e-5
    assert (resized[:, :, 1] - resized[:, :1, 1]).abs().max() < 1e-5
    assert (resized[0, 1:, 0] > resized[0, :-1, 0]).all() and (resized[1:, 0, 1] > resized[:-1, 0, 1]).all()
