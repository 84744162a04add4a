"""Folders: what is written, what comes back, and how the training-only state is kept apart."""

import warnings

import pytest
import torch
from safetensors import safe_open
from tiny_models import (
    fill_queue,
    predict_positions,
    tiny_batch,
    tiny_config,
    tiny_model,
    tiny_pretraining_model,
    tiny_retrieval_model,
)

from vicha_hf import ViChaForPreTraining, ViChaForRetrieval, ViChaModel
from vicha_hf.models.objective_mim import sincos_positions
from vicha_hf.models.training_state import TRAINING_STATE_FILE


BUILDERS = {
    ViChaModel: tiny_model,
    ViChaForPreTraining: tiny_pretraining_model,
    ViChaForRetrieval: tiny_retrieval_model,
}


def stored_names(folder):
    names = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as stored:
            names |= set(stored.keys())
    return names


def equal_weights(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("model_class", BUILDERS)
def test_round_trip(tmp_path, model_class):
    model = BUILDERS[model_class]()
    model.save_pretrained(tmp_path)
    loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert equal_weights(model, loaded)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert type(loaded) is model_class and not loaded.training and loaded.training_state is None
    batch = tiny_batch(3)
    if model_class is not ViChaModel:
        batch |= {name: torch.tensor([1, 2, 0]) for name in ("negative_image_indices", "negative_text_indices")}
    if model_class is ViChaForPreTraining:
        batch |= predict_positions(batch, [[1], [2], [1, 2]]) | {"mim_noise": torch.rand(3, 16)}
    with torch.no_grad():
        expected, observed = model(**batch).to_tuple(), loaded(**batch).to_tuple()
    assert all(torch.equal(*pair) for pair in zip(expected, observed, strict=True) if torch.is_tensor(pair[0]))


@pytest.mark.parametrize(("saved", "loaded"), [(a, b) for a in BUILDERS for b in BUILDERS if a is not b])
def test_every_head_loads_from_every_folder(tmp_path, saved, loaded):
    model = BUILDERS[saved]()
    model.save_pretrained(tmp_path)
    other, info = loaded.from_pretrained(tmp_path, output_loading_info=True)
    bare = {ViChaModel: lambda model: model}.get
    theirs, ours = (bare(type(m), lambda m: m.vicha)(m) for m in (model, other))
    assert equal_weights(theirs, ours)
    if hasattr(model, "itm_head") and hasattr(other, "itm_head"):
        assert torch.equal(model.itm_head.weight, other.itm_head.weight)
    # Only heads may be new, and only heads may be left aside.
    heads = ("itm_head.", "mlm_head.", "mim.", "hierarchical_itc.")
    assert all(name.startswith(heads) for name in info["missing_keys"]), info["missing_keys"]
    assert all(name.startswith(heads) for name in info["unexpected_keys"]), info["unexpected_keys"]
    assert other(**tiny_batch(2)) is not None


@pytest.mark.parametrize("builder", [tiny_pretraining_model, tiny_retrieval_model])
def test_folders_hold_no_training_state(tmp_path, builder):
    model = builder()
    names = set(model.state_dict())
    model.add_training_state()
    assert len(model.state_dict()) > len(names)
    model.save_pretrained(tmp_path / "plain")
    assert not any(name.startswith("training_state") for name in stored_names(tmp_path / "plain"))
    assert not (tmp_path / "plain" / TRAINING_STATE_FILE).exists()
    # The state dict of a distributed run is handed over whole.
    model.save_pretrained(tmp_path / "given", state_dict=model.state_dict())
    assert stored_names(tmp_path / "given") == stored_names(tmp_path / "plain")
    assert equal_weights(type(model).from_pretrained(tmp_path / "given"), builder())


def test_tied_weights_are_stored_once_and_tied_after_loading(tmp_path):
    model = tiny_pretraining_model()
    model.save_pretrained(tmp_path)
    assert "mlm_head.decoder.weight" not in stored_names(tmp_path)
    loaded = ViChaForPreTraining.from_pretrained(tmp_path, training_state=True)
    assert loaded.mlm_head.decoder.weight is loaded.vicha.text_model.embeddings.word_embeddings.weight
    teacher = loaded.training_state.teacher
    assert teacher["mlm_head"].decoder.weight is teacher["vicha"].text_model.embeddings.word_embeddings.weight
    assert teacher["mlm_head"].decoder.weight is not loaded.mlm_head.decoder.weight


def test_teacher_starts_as_a_copy_of_the_loaded_weights(tmp_path):
    tiny_model(seed=3).save_pretrained(tmp_path)
    model = ViChaForRetrieval.from_pretrained(tmp_path, training_state=True)
    assert equal_weights(model.training_state.teacher["vicha"], model.vicha)
    assert int(model.training_state.queue.num_filled) == 0
    shared = {value.data_ptr() for value in model.vicha.parameters()}
    assert not shared & {value.data_ptr() for value in model.training_state.parameters()}


@pytest.mark.parametrize("builder", [tiny_pretraining_model, tiny_retrieval_model])
def test_training_state_is_saved_and_loaded_on_request(tmp_path, builder):
    model = builder().train()
    model.add_training_state()
    fill_queue(model, 4)
    with torch.no_grad():
        model.vicha.vision_projection.weight.add_(1.0)
    model(**tiny_batch(3))
    assert not torch.equal(
        model.training_state.teacher["vicha"].vision_projection.weight, model.vicha.vision_projection.weight
    )
    model.save_pretrained(tmp_path, training_state=True)
    loaded = type(model).from_pretrained(tmp_path, training_state=True)
    assert equal_weights(model, loaded)
    assert int(loaded.training_state.queue.num_filled) == 7
    assert type(model).from_pretrained(tmp_path).training_state is None


def test_training_state_of_another_head_or_queue_says_what_to_do(tmp_path):
    model = tiny_pretraining_model()
    model.add_training_state()
    model.save_pretrained(tmp_path, training_state=True)
    with pytest.raises(ValueError, match=rf"(?s){TRAINING_STATE_FILE}.*ViChaForRetrieval.*without"):
        ViChaForRetrieval.from_pretrained(tmp_path, training_state=True)
    with pytest.raises(ValueError, match=rf"(?s){TRAINING_STATE_FILE}.*ViChaForPreTraining.*without"):
        ViChaForPreTraining.from_pretrained(tmp_path, training_state=True, queue_size=5)


def test_saving_without_training_state_leaves_no_older_one_behind(tmp_path):
    model = tiny_pretraining_model()
    model.add_training_state()
    model.save_pretrained(tmp_path, training_state=True)
    model.save_pretrained(tmp_path)
    assert not (tmp_path / TRAINING_STATE_FILE).exists()


def test_training_state_is_added_once_and_evaluation_keeps_it():
    model = tiny_pretraining_model()
    model.add_training_state()
    state = model.training_state
    fill_queue(model, 4)
    model.add_training_state()
    model.eval()
    with torch.no_grad():
        model(**tiny_batch(2))
    assert model.training_state is state and int(state.queue.num_filled) == 4
    model.train()
    assert model.training_state is state


def test_a_model_without_objective_has_no_training_state():
    with pytest.raises(TypeError, match="ViChaModel has no training objective"):
        tiny_model().add_training_state()


def test_training_without_preparation_warns_and_copies(caplog):
    from transformers.utils import logging

    model = tiny_retrieval_model().train()
    logger = logging.get_logger("vicha_hf.models.modeling_vicha")
    logger.addHandler(caplog.handler)
    try:
        model(**tiny_batch(2))
    finally:
        logger.removeHandler(caplog.handler)
    assert model.training_state is not None


def test_fixed_positions_come_back(tmp_path):
    """Buffers that are in no file would otherwise be uninitialised memory."""
    model = tiny_pretraining_model(mim_mode="both")
    model.save_pretrained(tmp_path)
    junk = [torch.full((17, 32), float("nan")) for _ in range(50)]
    del junk
    loaded = ViChaForPreTraining.from_pretrained(tmp_path)
    assert torch.equal(loaded.mim.decoder.positions, sincos_positions(32, 4))
    without_mim = tiny_pretraining_model(mim_weight=0)
    without_mim.save_pretrained(tmp_path / "without")
    new = ViChaForPreTraining.from_pretrained(tmp_path / "without", mim_weight=1.0)
    assert torch.equal(new.mim.decoder.positions, sincos_positions(32, 4))
    assert (new.mim.mask_token == 0).all()


def test_parameters_that_were_not_loaded_start_as_in_a_fresh_model():
    model = tiny_pretraining_model(temperature_init=0.11)
    raw = ("temperature", "cls_token", "vision_model.embeddings.position_embeddings", "mask_token")
    state = {name: value for name, value in model.state_dict().items() if not name.endswith(raw)}
    # A folder may not lack those of an encoder.
    loaded, info = ViChaForPreTraining.from_pretrained(
        None, config=model.config, state_dict=state, output_loading_info=True
    )
    assert len(info["missing_keys"]) == len(raw)
    embeddings = loaded.vicha.vision_model.embeddings
    assert loaded.vicha.temperature.item() == pytest.approx(0.11)
    assert (loaded.mim.mask_token == 0).all()
    for value in (embeddings.cls_token, embeddings.position_embeddings):
        assert value.std().item() == pytest.approx(0.02, rel=0.5) and value.abs().max() < 0.1


@pytest.mark.parametrize("model_class", BUILDERS)
def test_device_map(tmp_path, model_class):
    model = BUILDERS[model_class]()
    model.save_pretrained(tmp_path)
    loaded = model_class.from_pretrained(tmp_path, device_map="cpu")
    assert equal_weights(model, loaded)
    with torch.no_grad():
        assert loaded(**tiny_batch(2)) is not None


@pytest.mark.parametrize("model_class", BUILDERS)
def test_half_precision(tmp_path, model_class):
    model = BUILDERS[model_class]()
    model.save_pretrained(tmp_path)
    loaded = model_class.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {value.dtype for value in loaded.parameters()} == {torch.bfloat16}
    batch = tiny_batch(3)
    if model_class is ViChaModel:
        with torch.no_grad():
            observed, expected = loaded(**batch), model(**batch)
        assert observed.image_embeds.dtype == torch.bfloat16
        torch.testing.assert_close(observed.image_embeds.float(), expected.image_embeds, atol=0.08, rtol=0)
        torch.testing.assert_close(observed.text_embeds.float(), expected.text_embeds, atol=0.08, rtol=0)
    else:
        loaded.train()
        # What bfloat16 can follow; the default of 0.995 is refused.
        loaded.config.momentum = 0.9
        loaded.add_training_state()
        fill_queue(loaded, 4)
        output = loaded(**batch)
        output.loss.backward()
        assert output.loss.isfinite()
        assert all(value.grad.isfinite().all() for value in loaded.parameters() if value.grad is not None)


@pytest.mark.parametrize("builder", [tiny_pretraining_model, tiny_retrieval_model])
def test_autocast(builder):
    model, batch = builder().train(), tiny_batch(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**batch)
    output.loss.backward()
    assert output.loss.dtype == torch.float32 and output.loss.isfinite()
    assert all(value.grad.isfinite().all() for value in model.parameters() if value.grad is not None)


@pytest.mark.parametrize("model_class", BUILDERS)
def test_a_fresh_model_has_the_stated_statistics(model_class):
    # Wide enough for a standard deviation to mean something.
    config = tiny_config(
        vision_config={"image_size": 128}, text_config={"vocab_size": 600}, temperature_init=0.11, mim_mode="both"
    )
    torch.manual_seed(0)
    model = model_class(config)
    bare = model if model_class is ViChaModel else model.vicha
    embeddings = bare.vision_model.embeddings
    assert bare.temperature.shape == (1,) and bare.temperature.item() == pytest.approx(0.11)
    for value in (embeddings.position_embeddings, bare.text_model.embeddings.word_embeddings.weight[1:]):
        assert value.std().item() == pytest.approx(0.02, rel=0.05) and abs(value.mean().item()) < 1e-3
    assert embeddings.cls_token.std().item() == pytest.approx(0.02, rel=0.5)
    assert (bare.text_model.embeddings.word_embeddings.weight[0] == 0).all()
    for name, value in model.named_parameters():
        if name.endswith("bias"):
            assert (value == 0).all(), name
        elif "norm" in name.lower():
            assert (value == 1).all(), name
        elif value.dim() == 2 and min(value.shape) >= 16:
            assert value.std().item() == pytest.approx(0.02, rel=0.1), name
    if model_class is ViChaForPreTraining:
        assert (model.mim.mask_token == 0).all()
        assert torch.equal(model.mim.decoder.positions, sincos_positions(32, 16))


def test_nothing_is_warned_about_when_a_head_takes_another_heads_folder(tmp_path, recwarn):
    tiny_pretraining_model().save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ViChaModel.from_pretrained(tmp_path)
