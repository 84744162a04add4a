"""What transformers' own tests of models ask of every head, in short: see docs/transformers_tests.md for the long form."""

import inspect
import typing

import pytest
import torch
from safetensors.torch import save_file
from test_head_calls import CALLS, build, inputs_of
from tiny_models import gradients

from vicha_hf import SimlaModel, ViChaModel


BARE = {"vicha": ViChaModel, "simla": SimlaModel}
RECORD = {"output_hidden_states": True, "output_attentions": True}
# Of its inputs a head in training mode needs labels.
LABELLED = ("entailment", "reasoning")


def training_inputs(family, name):
    inputs = inputs_of(family, name)
    return inputs | ({"labels": torch.tensor([0, 1, 0, 1])} if name in LABELLED else {})


def bare(family):
    return build(family, "retrieval").base_model


@pytest.mark.parametrize(("family", "name"), CALLS)
def test_recorded_outputs_take_part_in_the_loss(family, name):
    model = build(family, name).train()
    output = model(**training_inputs(family, name), **RECORD)
    for tensor in (output.hidden_states[0], output.attentions[0], output.cross_attentions[-1]):
        tensor.retain_grad()
    output.loss.backward()
    for tensor in (output.hidden_states[0], output.attentions[0], output.cross_attentions[-1]):
        assert tensor.grad.abs().sum() > 0


def test_the_comparison_of_the_bare_model_goes_through_the_recorded_text():
    output = bare("vicha")(**inputs_of("vicha", "retrieval"), **RECORD)
    recorded = output.hidden_states[0], output.attentions[0]
    for tensor in recorded:
        tensor.retain_grad()
    output.logits_per_image.sum().backward()
    assert all(tensor.grad.abs().sum() > 0 for tensor in recorded)


@pytest.mark.parametrize("family", BARE)
def test_the_bare_model_records_every_text_layer(family):
    model, inputs = bare(family), inputs_of(family, "retrieval")
    with torch.no_grad():
        output, plain = model(**inputs, **RECORD), model(**inputs)
        texts = model.get_text_features(inputs["input_ids"], inputs["attention_mask"], **RECORD)
    assert len(output.attentions) == 4 and len(output.hidden_states) == 5
    torch.testing.assert_close(output.hidden_states[-1], plain.last_hidden_state, atol=1e-5, rtol=1e-4)
    if family == "vicha":
        for whole, alone in zip(output.hidden_states, texts.hidden_states, strict=False):
            assert torch.equal(whole, alone)


@pytest.mark.parametrize(("family", "name"), CALLS)
def test_single_layers_on_request(family, name):
    model, inputs = build(family, name), inputs_of(family, name)
    with torch.no_grad():
        every = model(**inputs, output_hidden_states=True).hidden_states
        some = model(**inputs, output_hidden_states=[0, 2, -1]).hidden_states
        last = model(**inputs, output_hidden_states=-1).hidden_states
    kept = {0, 2, len(every) - 1}
    assert len(some) == len(every) == len(last) and last[0] is None
    assert torch.equal(last[-1], every[-1])
    for number, (one, whole) in enumerate(zip(some, every, strict=True)):
        assert one is None if number not in kept else torch.equal(one, whole)


@pytest.mark.parametrize("family", BARE)
def test_single_layers_of_features_count_the_layers_that_run(family):
    model, inputs = bare(family), inputs_of(family, "retrieval")
    texts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    for features, given in (
        (model.get_text_features, texts),
        (model.get_image_features, {"pixel_values": inputs["pixel_values"]}),
    ):
        with torch.no_grad():
            every = features(**given, output_hidden_states=True).hidden_states
            last = features(**given, output_hidden_states=[-1]).hidden_states
        assert [state is None for state in last] == [True] * (len(every) - 1) + [False]
        assert torch.equal(last[-1], every[-1])


@pytest.mark.parametrize(("family", "name"), CALLS)
def test_the_configuration_asks_for_recorded_outputs_too(family, name):
    model, inputs = build(family, name, "eager"), inputs_of(family, name)
    model.config.output_attentions = model.config.output_hidden_states = True
    with torch.no_grad():
        asked, refused = model(**inputs), model(**inputs, output_attentions=False, output_hidden_states=False)
    assert asked.hidden_states and asked.attentions and asked.cross_attentions
    assert refused.hidden_states is None and refused.attentions is None and refused.cross_attentions is None


@pytest.mark.parametrize(("family", "name"), CALLS)
def test_tuple_and_named_outputs_are_the_same_every_time(family, name):
    model, inputs = build(family, name), inputs_of(family, name)
    with torch.no_grad():
        named, values = model(**inputs).to_tuple(), model(**inputs, return_dict=False)
    assert len(named) == len(values)
    for one, other in zip(named, values, strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize(("family", "name"), CALLS)
def test_the_signature_names_what_transformers_passes(family, name):
    model = build(family, name)
    for call in (model.forward, model.base_model.get_image_features, model.base_model.get_text_features):
        (named,) = typing.get_args(inspect.signature(call).parameters["kwargs"].annotation)
        assert {"output_attentions", "output_hidden_states"} <= set(named.__annotations__)


@pytest.mark.parametrize(("family", "name"), [call for call in CALLS if call[1] != "text-assignment"])
def test_a_vocabulary_grows_and_shrinks_with_its_teacher(family, name):
    model, inputs = build(family, name).train(), training_inputs(family, name)
    model(**inputs)
    state, queue = model.training_state, model.training_state.queue
    filled = None if queue is None else queue.num_filled.clone()
    old_size = model.config.text_config.vocab_size
    # The teacher is not the model: what it keeps is its own.
    with torch.no_grad():
        for parameter in state.teacher.parameters():
            parameter.add_(1.0)
    before = {key: value.clone() for key, value in state.teacher.named_parameters()}
    model.resize_token_embeddings(old_size + 7)
    online = dict(torch.nn.ModuleDict(model._online_modules()).named_parameters())
    grown = 0
    for key, value in state.teacher.named_parameters():
        assert value.shape == online[key].shape and not value.requires_grad
        assert torch.equal(value[:old_size], before[key][:old_size])
        if value.shape != before[key].shape:
            grown += 1
            assert torch.equal(value[old_size:], online[key][old_size:])
    assert grown > 0
    newest = inputs | {"input_ids": inputs["input_ids"].clone()}
    newest["input_ids"][0, 1] = old_size + 6
    loss = model(**newest).loss
    loss.backward()
    assert loss.isfinite() and model.get_input_embeddings().weight.grad[old_size + 6].abs().sum() > 0
    model.resize_token_embeddings(old_size - 1)
    assert {value.shape for value in state.teacher.parameters()} == {value.shape for value in online_of(model)}
    if queue is not None:
        assert model.training_state.queue is queue and queue.num_filled > filled


def online_of(model):
    return torch.nn.ModuleDict(model._online_modules()).parameters()


@pytest.mark.parametrize(("family", "name"), [call for call in CALLS if call[1] in LABELLED])
def test_without_labels_there_is_no_loss_in_training_mode_either(family, name):
    model = build(family, name).train()
    output = model(**inputs_of(family, name))
    assert output.loss is None and output.logits.shape[0] == 4
    # No loss, no step: the teacher has not come to be.
    assert model.training_state is None


@pytest.mark.parametrize("family", BARE)
def test_given_pairs_without_labels_are_judged(family):
    model, inputs = build(family, "text-assignment"), inputs_of(family, "text-assignment")
    pairs = torch.tensor([[0, 1], [2, 1], [2, 3], [0, 1]])
    with torch.no_grad():
        judged = model(**inputs, pair_indices=pairs)
        labelled = model(**inputs, pair_indices=pairs, labels=torch.tensor([0, 1, 0, 2]))
    assert judged.loss is None and torch.equal(judged.logits, labelled.logits) and labelled.loss.isfinite()
    with pytest.raises(ValueError, match=r"`labels`.* go with `pair_indices`"):
        model(**inputs, labels=torch.tensor([0, 1, 0, 2]))


@pytest.mark.parametrize(("family", "name"), CALLS)
def test_whoever_asks_what_is_missing_is_told(family, name, tmp_path):
    model = build(family, name)
    model.save_pretrained(tmp_path)
    save_file({"tensor": torch.tensor([1, 2])}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    persistent = set(loaded.state_dict())
    own = {key for key, _ in (*loaded.named_parameters(), *loaded.named_buffers()) if key in persistent}
    assert own <= set(info["missing_keys"]) and "tensor" in info["unexpected_keys"]
    with pytest.raises(ValueError, match="does not fit"):
        type(model).from_pretrained(tmp_path)


@pytest.mark.parametrize("family", BARE)
def test_the_first_rows_of_matching_do_not_depend_on_the_negatives(family):
    """A pair's own judgement is the same alone and in a batch; the rows behind are of its hard negatives."""
    model, inputs = build(family, "retrieval"), inputs_of(family, "retrieval")
    with torch.no_grad():
        batch = model(**inputs)
        for row in range(4):
            alone = model(**{key: value[row : row + 1] for key, value in inputs.items()})
            torch.testing.assert_close(alone.itm_logits[0], batch.itm_logits[row], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(
                alone.logits_per_image[0, 0], batch.logits_per_image[row, row], atol=1e-5, rtol=1e-4
            )


@pytest.mark.parametrize(("family", "name"), CALLS)
def test_a_step_without_records_equals_one_with_them(family, name):
    losses, steps = [], []
    for record in ({}, RECORD):
        model = build(family, name).train()
        torch.manual_seed(0)
        loss = model(**training_inputs(family, name), **record).loss
        loss.backward()
        losses.append(loss.detach())
        steps.append(gradients(model))
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
    for key, value in steps[0].items():
        torch.testing.assert_close(steps[1][key], value, atol=1e-4, rtol=1e-3, msg=key)
