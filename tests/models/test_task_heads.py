"""What every task head does alike: trains with a teacher, loads from pretraining, saves, and answers each sample alone."""

import logging

import pytest
import torch
from head_checks import HEADS, head_config, inference_inputs, predict, step_inputs, tiny_head
from transformers import AutoModel, AutoModelForVisualQuestionAnswering

from vicha_hf import ViChaForPreTraining, ViChaForVQA, ViChaModel


every_head = pytest.mark.parametrize("name", HEADS)
WITH_TEACHER = [name for name in HEADS if name != "text-assignment"]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A pretraining folder with the training state in it, and its model."""
    torch.manual_seed(3)
    model = ViChaForPreTraining(head_config())
    model.add_training_state()
    folder = tmp_path_factory.mktemp("pretrained")
    model.save_pretrained(folder)
    return folder, model


@every_head
@pytest.mark.parametrize("concepts", [True, False])
def test_a_step_moves_every_parameter(name, concepts):
    model = tiny_head(name, spread=False).train()
    model.add_training_state()
    trainable = {key: value for key, value in model.named_parameters() if value.requires_grad}
    before = {key: value.detach().clone() for key, value in trainable.items()}
    loss = model(**step_inputs(name, concepts=concepts)).loss
    loss.backward()
    assert loss.isfinite()
    # A parameter without gradient would make data-parallel training wait for ever.
    assert not [key for key, value in trainable.items() if value.grad is None]
    torch.optim.SGD(trainable.values(), lr=1.0).step()
    still = {key for key, value in trainable.items() if torch.equal(value, before[key])}
    exempt = ("key.bias", "k_proj.bias")
    assert not [key for key in still if not key.endswith(exempt) and (concepts or ".concept_" not in key)]


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_teacher_follows_first_and_alpha_counts(name):
    model = tiny_head(name, momentum=0.5).train()
    model.add_training_state()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if not key.startswith("training_state"):
                parameter.add_(0.02 * torch.randn_like(parameter))
    parameter = "vicha.text_model.encoder.layer.2.crossattention.self.key.weight"
    start = model.training_state.teacher.get_parameter(parameter).clone()
    inputs = step_inputs(name)
    if name == "grounding":
        inputs |= {"negative_image_indices": torch.tensor([1, 2, 0]), "negative_text_indices": torch.tensor([2, 0, 1])}
    losses = []
    for alpha in (0.0, 1.0, None):
        losses.append(model(**inputs, distillation_alpha=alpha, update_teacher=not losses).loss.item())
    followed = model.training_state.teacher.get_parameter(parameter)
    torch.testing.assert_close(followed, 0.5 * start + 0.5 * model.get_parameter(parameter).detach())
    assert abs(losses[0] - losses[1]) > 1e-4
    if name != "grounding":  # whose queue changes with every step
        expected = 0.6 * losses[0] + 0.4 * losses[1]
        assert losses[2] == pytest.approx(expected, rel=1e-5)


@every_head
def test_saved_folder_holds_no_teacher_and_gives_the_same(name, tmp_path):
    model = tiny_head(name).train()
    model.add_training_state()
    model(**step_inputs(name)).loss.backward()
    model.eval().save_pretrained(tmp_path)
    loaded, info = HEADS[name].from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert loaded.training_state is None
    assert not [key for key in loaded.state_dict() if key.startswith("training_state")]
    inputs = inference_inputs(name)
    torch.testing.assert_close(predict(name, loaded.eval(), inputs), predict(name, model, inputs))


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_training_state_is_saved_on_request(name, tmp_path):
    model = tiny_head(name).train()
    model.add_training_state()
    model(**step_inputs(name))
    model.save_pretrained(tmp_path, training_state=True)
    loaded = HEADS[name].from_pretrained(tmp_path, training_state=True)
    saved = model.training_state.state_dict()
    assert saved.keys() == loaded.training_state.state_dict().keys()
    for key, value in loaded.training_state.state_dict().items():
        assert torch.equal(value, saved[key]), key


@every_head
def test_starts_from_a_pretraining_folder(name, pretrained, caplog):
    folder, source = pretrained
    logging.getLogger("transformers").propagate = True
    logging.getLogger("vicha_hf").propagate = True
    with caplog.at_level(logging.WARNING):
        model = HEADS[name].from_pretrained(folder, training_state=True)
    assert "corrupted" not in caplog.text  # transformers' word for tied weights that are both new
    weights, text = dict(model.named_parameters()), source.vicha.text_model
    for key, value in source.vicha.named_parameters():
        if f"vicha.{key}" in weights:
            assert torch.equal(weights[f"vicha.{key}"], value), key
    if name in ("entailment", "reasoning"):
        assert f"{name}_classifier.dense.weight" in caplog.text
    if name in ("reasoning", "text-assignment"):
        for twin, layer in zip(model.image_pair_encoder.twins, text.encoder.layer[2:], strict=True):
            own = dict(layer.named_parameters())
            for key, value in twin.named_parameters():
                assert torch.equal(value, own[key]), key
    if name == "vqa":
        decoder = model.answer_decoder
        assert torch.equal(decoder.embeddings.word_embeddings.weight, text.embeddings.word_embeddings.weight)
        assert decoder.embeddings.word_embeddings.weight is model.mlm_head.decoder.weight
        assert torch.equal(model.mlm_head.transform.dense.weight, source.mlm_head.transform.dense.weight)
        for ours, layer in zip(decoder.encoder.layer, text.encoder.layer[2:], strict=True):
            assert torch.equal(ours.crossattention.self.query.weight, layer.crossattention.self.query.weight)
            assert torch.equal(ours.output.dense.weight, layer.output.dense.weight)
        assert "crossattention.self.key.weight" in caplog.text  # of other width than the vision encoder's
    if name != "text-assignment":
        for key, value in model.training_state.teacher.named_parameters():
            assert torch.equal(value, weights[key]), key


@every_head
def test_starts_from_the_folder_of_any_other_task(name, tmp_path):
    """What two tasks share is taken over; a classifier of other classes is not."""
    source = tiny_head(name)
    source.save_pretrained(tmp_path)
    for other, head in HEADS.items():
        model, info = head.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["unexpected_keys"] and not info["mismatched_keys"]
        weights = dict(source.named_parameters())
        assert all(torch.equal(value, weights[key]) for key, value in model.named_parameters() if key in weights)
        assert bool(info["missing_keys"]) == (other != name)


@every_head
def test_base_model_loads_from_any_folder(name, tmp_path):
    model = tiny_head(name)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is ViChaModel
    for key, value in model.vicha.named_parameters():
        assert torch.equal(loaded.get_parameter(key), value), key


def test_question_answering_loads_by_its_auto_class(tmp_path):
    tiny_head("vqa").save_pretrained(tmp_path)
    assert type(AutoModelForVisualQuestionAnswering.from_pretrained(tmp_path)) is ViChaForVQA


@every_head
def test_every_folder_carries_the_code_of_every_head(name, tmp_path):
    tiny_head(name).save_pretrained(tmp_path)
    for head in HEADS.values():
        assert (tmp_path / f"{head.__module__.rsplit('.', 1)[1]}.py").is_file()


@every_head
def test_eager_and_sdpa_agree(name):
    inputs = inference_inputs(name)
    results = [predict(name, tiny_head(name, attn_implementation=backend), inputs) for backend in ("eager", "sdpa")]
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in HEADS if name != "text-assignment"])
def test_a_sample_does_not_depend_on_its_batch(name):
    model, batch = tiny_head(name), inference_inputs(name, batch_size=4)
    together = predict(name, model, batch)
    lengths = batch["attention_mask"].sum(dim=1)
    assert lengths.min() < lengths.max()
    for row in range(4):
        alone = {key: _row(value, row) for key, value in batch.items()}
        alone["input_ids"] = alone["input_ids"][:, : lengths[row]]
        alone["attention_mask"] = alone["attention_mask"][:, : lengths[row]]
        torch.testing.assert_close(predict(name, model, alone)[0], together[row], rtol=1e-4, atol=1e-5)


def _row(value, row):
    return tuple(_row(part, row) for part in value) if isinstance(value, tuple) else value[row : row + 1]


@every_head
def test_rows_that_do_not_belong_together_are_an_error(name):
    model, inputs = tiny_head(name), inference_inputs(name)
    inputs["input_ids"], inputs["attention_mask"] = inputs["input_ids"][:2], inputs["attention_mask"][:2]
    with pytest.raises(ValueError, match="`input_ids` has 2 rows"):
        predict(name, model, inputs)


@every_head
def test_tokens_can_be_added(name):
    model = tiny_head(name)
    model.resize_token_embeddings(model.config.text_config.vocab_size + 3)
    model.train()
    assert model(**step_inputs(name)).loss.isfinite()
    if name == "vqa":
        assert model.mlm_head.decoder.weight is model.answer_decoder.embeddings.word_embeddings.weight
        assert len(model.mlm_head.decoder.bias) == model.config.text_config.vocab_size


@every_head
def test_gradient_checkpointing_changes_no_gradient(name):
    gradients = []
    for checkpointing in (False, True):
        model = tiny_head(name).train()
        model.add_training_state()
        if checkpointing:
            model.activation_checkpointing_enable()
        torch.manual_seed(0)
        model(**step_inputs(name)).loss.backward()
        gradients.append({key: value.grad for key, value in model.named_parameters() if value.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for key, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], value, msg=key)
