"""
transformers' own model tests over every head of both families; `make test-upstream` fetches them and runs this file.

The source archive holds `tests/test_modeling_common.py` and none of the folders beside it. Two mixins of these folders,
for generation and for exporters, are therefore empty here.
"""

import sys
import types
import unittest

from head_checks import HEADS, head_config, step_inputs
from simla_models import SIMLA_HEADS, simla_batch, simla_config
from tiny_models import tiny_batch, tiny_config

from vicha_hf import (
    SimlaForPreTraining,
    SimlaForRetrieval,
    SimlaModel,
    ViChaForPreTraining,
    ViChaForRetrieval,
    ViChaModel,
)


for _module, _mixin in (
    ("exporters.test_export", "ExportTesterMixin"),
    ("generation.test_utils", "GenerationTesterMixin"),
):
    _stub = types.ModuleType(f"tests.{_module}")
    setattr(_stub, _mixin, type(_mixin, (), {}))
    sys.modules[_stub.__name__] = _stub

from tests.test_modeling_common import ModelTesterMixin  # noqa: E402


BATCH_SIZE = 3

# Beginning of a test's name -> why it does not apply to a model of an image and a text.
NOT_APPLICABLE = {
    "test_eager_matches_sdpa_inference": "feeds `pixel_values` alone; tests/models compares the backends on whole batches",
    "test_model_forward_default_config_values": "takes the default token ids, which lie above the vocabulary of a tiny text",
    "test_num_layers_is_small": "a rule for the size of transformers' own test models: fusion needs four layers",
}


class HeadInputs:
    """A head's configuration and inputs, as the mixin asks for them."""

    batch_size = BATCH_SIZE
    is_training = True
    num_masks = 0

    def __init__(self, parent: unittest.TestCase, make_config, make_inputs):
        self.parent, self.make_config, self.make_inputs = parent, make_config, make_inputs
        config = make_config()
        self.seq_length = make_inputs()["input_ids"].shape[1]
        self.hidden_size = config.text_config.hidden_size
        self.num_hidden_layers = config.text_config.num_hidden_layers
        self.num_attention_heads = config.text_config.num_attention_heads
        self.vocab_size = config.text_config.vocab_size

    def get_config(self):
        return self.make_config()

    def prepare_config_and_inputs(self):
        return self.make_config(), self.make_inputs()

    def prepare_config_and_inputs_for_common(self):
        return self.prepare_config_and_inputs()


class HeadTests(ModelTesterMixin):
    """The mixin's tests for one head."""

    make_config = make_inputs = None
    _is_composite = True
    has_attentions = True

    def setUp(self):
        for beginning, reason in NOT_APPLICABLE.items():
            if self._testMethodName.startswith(beginning):
                self.skipTest(reason)
        self.model_tester = HeadInputs(self, type(self).make_config, type(self).make_inputs)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        # The inputs of a head hold its labels already.
        return dict(inputs_dict)


def _add(model_class: type, make_config, make_inputs) -> None:
    members = {
        "all_model_classes": (model_class,),
        "make_config": staticmethod(make_config),
        "make_inputs": staticmethod(make_inputs),
    }
    name = f"Test{model_class.__name__}"
    globals()[name] = type(name, (HeadTests, unittest.TestCase), members)


def _simla_inputs(task: str):
    inputs = step_inputs(task, BATCH_SIZE, concepts=False)
    return {name: value for name, value in inputs.items() if not name.startswith("concept")}


for _class in (ViChaModel, ViChaForPreTraining, ViChaForRetrieval):
    _add(_class, tiny_config, lambda: tiny_batch(BATCH_SIZE))
for _task, _class in HEADS.items():
    _add(_class, head_config, lambda task=_task: step_inputs(task, BATCH_SIZE))
for _class in (SimlaModel, SimlaForRetrieval):
    _add(_class, simla_config, lambda: tiny_batch(BATCH_SIZE, concepts=False))
_add(SimlaForPreTraining, simla_config, lambda: simla_batch(BATCH_SIZE))
for _task, _class in SIMLA_HEADS.items():
    _add(_class, simla_config, lambda task=_task: _simla_inputs(task))
