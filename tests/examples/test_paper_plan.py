"""What the paper plan counts without running the model, against what a real step keeps."""

import pytest
import torch
from kept_memory import bytes_kept
from script_modules import load_script
from tiny_models import tiny_pretraining_model
from torch import nn


@pytest.fixture(scope="module")
def plan():
    return load_script("examples/benchmarks/paper_plan.py")


def test_stored_bytes_are_those_of_a_plain_network(plan):
    network = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    with plan.StoredBytes(network) as stored:
        network(torch.randn(5, 8)).sum()
    # Each layer's input; the activation's is the first layer's output.
    assert stored.total == 4 * 5 * (8 + 16 + 16)


def test_what_is_computed_again_is_not_counted_and_hides_nothing(plan):
    torch.manual_seed(0)
    model = tiny_pretraining_model()
    model.train()
    layer = model.vicha.vision_model.layers[0]
    states = torch.randn(8, 17, model.config.vision_config.hidden_size, requires_grad=True)
    with plan.StoredBytes(model) as stored:
        layer(states)
    allocated, output = bytes_kept(lambda: layer(states))
    # The layer's input was there before, and nothing in it keeps its output.
    assert stored.total - states.nbytes == allocated - output.nbytes
