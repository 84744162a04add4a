"""Every head as one graph: `torch.compile(fullgraph=True)` gives what the model gives, in evaluation and in training."""

import copy
import shutil

import pytest
import torch
from head_checks import HEADS, head_config, step_inputs
from simla_models import SIMLA_HEADS, SimlaForPreTraining, SimlaForRetrieval, simla_batch, simla_config
from tiny_models import assert_same, gradients, spread_weights, tiny_batch

from vicha_hf import ViChaForPreTraining, ViChaForRetrieval


FAMILIES = {
    "vicha": {"pretraining": ViChaForPreTraining, "retrieval": ViChaForRetrieval} | HEADS,
    "simla": {"pretraining": SimlaForPreTraining, "retrieval": SimlaForRetrieval} | SIMLA_HEADS,
}
# Of each kind one layer, and for the hierarchical contrast one more: tracing takes time for each.
VISION, TEXT = {"num_hidden_layers": 2}, {"num_hidden_layers": 2}


def small_head(family, name, **fields):
    torch.manual_seed(0)
    if family == "vicha":
        fields = {"text_config": TEXT | {"fusion_layer": 1}, "hierarchical_itc_levels": 1} | fields
        config = head_config(vision_config=VISION, **fields)
    else:
        config = simla_config(vision_config=VISION, text_config=TEXT, **fields)
    model = FAMILIES[family][name](config)
    spread_weights(model)
    return model.eval()


def inputs_of(family, name, batch_size, seed=0):
    if name == "pretraining" and family == "simla":
        return simla_batch(batch_size, seed=seed)
    if name in ("pretraining", "retrieval"):
        return tiny_batch(batch_size, seed=seed, concepts=family == "vicha")
    return step_inputs(name, batch_size, seed=seed, concepts=family == "vicha")


def as_one_graph(model):
    torch._dynamo.reset()
    return torch.compile(model, fullgraph=True, backend="eager")


def tensors(output) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in output.items() if torch.is_tensor(value)}


def assert_equal_outputs(compiled, model, inputs):
    torch.manual_seed(0)
    expected = model(**inputs)
    torch.manual_seed(0)
    observed = compiled(**inputs)
    assert_same(tensors(observed), tensors(expected))
    return observed, expected


ALL = [(family, name) for family, heads in FAMILIES.items() for name in heads]


@pytest.mark.parametrize(("family", "name"), ALL)
def test_evaluation(family, name):
    """With everything drawn inside, labels and losses included."""
    model, inputs = small_head(family, name), inputs_of(family, name, 4)
    compiled = as_one_graph(model)
    observed, _ = assert_equal_outputs(compiled, model, inputs)
    assert "loss" in observed or name == "grounding"
    if name == "text-assignment":
        drawn = {key: value for key, value in inputs.items() if key not in ("labels", "pair_indices")}
        assert_equal_outputs(compiled, model, drawn)
    if name == "grounding":
        assert_equal_outputs(compiled, model, inputs | {"method": "itc"})
    if name in ("entailment", "reasoning"):
        inputs.pop("labels")
        assert "loss" not in assert_equal_outputs(compiled, model, inputs)[0]


@pytest.mark.parametrize(
    ("family", "name"), [("vicha", "pretraining"), ("simla", "pretraining"), ("vicha", "vqa"), ("simla", "reasoning")]
)
def test_training(family, name):
    """Teacher, queue and gradients over two steps; the second batch of questions has another size."""
    model = small_head(family, name)
    model.add_training_state()
    model.train()
    reference = copy.deepcopy(model)
    compiled = as_one_graph(model)
    for step, size in enumerate((4, 3 if name == "vqa" else 4)):
        observed, expected = assert_equal_outputs(compiled, reference, inputs_of(family, name, size, seed=step))
    observed.loss.backward()
    expected.loss.backward()
    assert_same(gradients(model), gradients(reference))
    assert_same(dict(model.training_state.state_dict()), dict(reference.training_state.state_dict()))


def test_training_without_a_teacher_is_told_before_it_compiles():
    model = small_head("vicha", "entailment").train()
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"add_training_state\(\)"):
        as_one_graph(model)(**inputs_of("vicha", "entailment", 2))


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), [("vicha", "pretraining"), ("simla", "pretraining"), ("vicha", "vqa")])
def test_code_that_inductor_makes(family, name):
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("inductor needs a C++ compiler")
    model, inputs = small_head(family, name), inputs_of(family, name, 4)
    torch._dynamo.reset()
    assert_same(tensors(torch.compile(model, fullgraph=True)(**inputs)), tensors(model(**inputs)), tolerance=1e-4)
