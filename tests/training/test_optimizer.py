import pytest
import torch
from torch import nn

from vicha_hf.training.optimizer import create_optimizer, parameter_groups


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.embedding = nn.Embedding(6, 4)
        self.decoder = nn.Linear(4, 6)
        self.decoder.weight = self.embedding.weight
        self.wide_bias = nn.ParameterDict({"bias": nn.Parameter(torch.zeros(2, 4))})
        self.cls = nn.Parameter(torch.zeros(1, 1, 4))
        self.temperature = nn.Parameter(torch.tensor(0.07))
        self.teacher = nn.Linear(4, 4).requires_grad_(False)

    def no_weight_decay(self):
        return {"cls", "temperature"}


def names(model, group):
    by_identity = {id(parameter): name for name, parameter in model.named_parameters()}
    return {by_identity[id(parameter)] for parameter in group["params"]}


def test_groups_decay_matrices_only():
    model = Model()
    decayed, not_decayed = parameter_groups(model, 0.02)
    assert (decayed["weight_decay"], not_decayed["weight_decay"]) == (0.02, 0.0)
    assert names(model, decayed) == {"linear.weight", "embedding.weight"}
    assert names(model, not_decayed) == {
        "linear.bias",
        "norm.weight",
        "norm.bias",
        "decoder.bias",
        "wide_bias.bias",
        "cls",
        "temperature",
    }


def test_without_a_list_scalars_and_tokens_are_decayed_as_published():
    model = Model()
    model.no_weight_decay = lambda: set()
    decayed, _ = parameter_groups(model, 0.02)
    assert {"temperature", "cls"} <= names(model, decayed)


def test_every_trainable_parameter_is_in_exactly_one_group():
    model = Model()
    parameters = [parameter for group in parameter_groups(model, 0.02) for parameter in group["params"]]
    expected = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(parameters) == len(expected) == len({id(parameter) for parameter in parameters})


def test_a_tied_parameter_is_exempt_under_either_name():
    model = Model()
    model.no_weight_decay = lambda: {"decoder.weight"}
    decayed, not_decayed = parameter_groups(model, 0.02)
    assert "embedding.weight" in names(model, not_decayed)
    assert "embedding.weight" not in names(model, decayed)


def test_an_unknown_name_is_an_error():
    model = Model()
    model.no_weight_decay = lambda: {"logit_scale"}
    with pytest.raises(ValueError, match="logit_scale"):
        parameter_groups(model, 0.02)


def test_optimizer_takes_other_betas():
    model = nn.Linear(2, 2)
    optimizer = create_optimizer(model, 1e-4, 0.02, torch.device("cpu"), betas=(0.8, 0.95))
    assert optimizer.defaults["betas"] == (0.8, 0.95)


def test_optimizer_uses_the_published_constants():
    optimizer = create_optimizer(Model(), 1e-3, 0.02, torch.device("cpu"))
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    assert optimizer.defaults["eps"] == 1e-8
    assert optimizer.defaults["fused"]


def test_eight_bits_for_large_matrices_only():
    """Bounds, groups and the temperature's rate are those of AdamW; what is small keeps full precision."""
    model = Model()
    model.wide = nn.Linear(64, 64, bias=False)
    model.parameter_bounds = lambda: {"temperature": (0.001, 0.5)}
    optimizer = create_optimizer(model, 10.0, 0.02, torch.device("cpu"), temperature_lr_scale=0.1, kind="adamw_8bit")
    full = create_optimizer(model, 10.0, 0.02, torch.device("cpu"), temperature_lr_scale=0.1)
    for group, other in zip(optimizer.param_groups, full.param_groups, strict=True):
        shared = ("weight_decay", "lr_scale", "bounds", "lr", "betas", "eps")
        assert {name: group[name] for name in shared} == {name: other[name] for name in shared}
        assert [id(each) for each in group["params"]] == [id(each) for each in other["params"]]
    for parameter in model.parameters():
        parameter.grad = -torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    assert model.temperature.item() == 0.5
    assert optimizer.state[model.wide.weight]["state1"].dtype == torch.uint8
    assert optimizer.state[model.linear.weight]["state1"].dtype == torch.float32


def test_eight_bits_descend_as_thirty_two():
    found = []
    for kind in ("adamw", "adamw_8bit"):
        torch.manual_seed(0)
        model = nn.Linear(64, 64)
        inputs, targets = torch.randn(2, 32, 64)
        optimizer = create_optimizer(model, 1e-2, 0.02, torch.device("cpu"), kind=kind)
        for _ in range(30):
            optimizer.zero_grad()
            loss = (model(inputs) - targets).square().mean()
            loss.backward()
            optimizer.step()
        found.append(loss.item())
    assert found[1] == pytest.approx(found[0], rel=0.05) and found[0] < 0.6


def test_the_temperature_can_learn_at_a_rate_of_its_own():
    model = Model()
    groups = {group["lr_scale"]: group for group in parameter_groups(model, 0.02, temperature_lr_scale=0.1)[1:]}
    assert names(model, groups[0.1]) == {"temperature"} and groups[0.1]["weight_decay"] == 0.0
    assert {group["lr_scale"] for group in parameter_groups(model, 0.02)} == {1.0}
