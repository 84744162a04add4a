"""FSDP2 gives a model a class of its own, made of the model's: Python allows that for every head."""

import pytest
from torch import nn
from torch.distributed.fsdp import FSDPModule

import vicha_hf


MODELS = [
    value
    for value in vars(vicha_hf).values()
    if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__.startswith("vicha_hf.")
]


@pytest.mark.parametrize("model_class", MODELS)
def test_fsdp2_can_change_the_class(model_class):
    model = model_class.__new__(model_class)
    nn.Module.__init__(model)
    model.__class__ = type(f"FSDP{model_class.__name__}", (FSDPModule, model_class), {})
    assert isinstance(model, FSDPModule)


def test_every_head_is_tried():
    assert len(MODELS) == 16
