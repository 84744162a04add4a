"""The momentum teacher against a loop over parameters."""

import torch
from torch import nn

from vicha_hf.models.feature_queue import FeatureQueue
from vicha_hf.models.teacher import TrainingState


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("table", torch.ones(2))


def online_modules():
    torch.manual_seed(0)
    encoder, head = Encoder(), nn.Linear(3, 4)
    head.weight = encoder.layer.weight
    return {"encoder": encoder, "head": head}


@torch.no_grad()
def move(online, seed):
    torch.manual_seed(seed)
    for module in online.values():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))
    online["encoder"].table.add_(1)


def test_teacher_starts_as_a_copy_and_follows_as_a_moving_average():
    online = online_modules()
    state = TrainingState(online)
    expected = {name: value.clone() for name, value in nn.ModuleDict(online).state_dict().items()}
    assert all(torch.equal(value, expected[name]) for name, value in state.teacher.state_dict().items())
    for seed, momentum in enumerate((0.9, 0.5, 0.995, 1.0, 0.0)):
        move(online, seed)
        state.update_teacher(online, momentum)
        for name, value in nn.ModuleDict(online).state_dict().items():
            if not name.endswith("table"):
                expected[name] = momentum * expected[name] + (1 - momentum) * value
        observed = state.teacher.state_dict()
        for name, value in expected.items():
            torch.testing.assert_close(observed[name], value)
    # The last momentum was 0, so that the weights are the online ones; buffers never follow.
    assert torch.equal(state.teacher["encoder"].layer.weight, online["encoder"].layer.weight)
    assert (state.teacher["encoder"].table == 1).all() and (online["encoder"].table == 6).all()


def test_weights_tied_online_are_tied_in_the_teacher():
    online = online_modules()
    teacher = TrainingState(online).teacher
    assert teacher["head"].weight is teacher["encoder"].layer.weight
    assert teacher["head"].weight is not online["head"].weight


def test_teacher_is_always_in_evaluation_mode_and_without_gradient():
    online = online_modules()
    for module in online.values():
        module.train()
    state = TrainingState(online, FeatureQueue(2, 4))
    owner = nn.Module()
    owner.state, owner.layer = state, online["encoder"]
    for mode in (True, False, True):
        owner.train(mode)
        assert owner.layer.training is mode
        assert not any(module.training for module in state.modules())
    assert not any(parameter.requires_grad for parameter in state.parameters())
    assert all(parameter.requires_grad for parameter in online["encoder"].parameters())


def test_an_update_does_not_change_the_online_model_or_its_gradients():
    online = online_modules()
    online["encoder"].layer(torch.ones(1, 3)).sum().backward()
    state = TrainingState(online)
    assert all(parameter.grad is None for parameter in state.parameters())
    before = {name: value.clone() for name, value in nn.ModuleDict(online).state_dict().items()}
    gradient = online["encoder"].layer.weight.grad.clone()
    state.update_teacher(online, 0.5)
    for name, value in nn.ModuleDict(online).state_dict().items():
        assert torch.equal(value, before[name])
    assert torch.equal(online["encoder"].layer.weight.grad, gradient)
