"""
transformers' own model tests over every head of both families; `make test-upstream` fetches them and runs this file.

The source archive holds `tests/test_modeling_common.py` and none of the folders beside it. Two mixins of these folders,
for generation and for exporters, are therefore empty here.
"""

import sys
import types
import unittest

import torch
from head_checks import HEADS, step_inputs
from simla_models import SIMLA_HEADS, simla_batch, simla_config
from tiny_models import tiny_batch, tiny_config, token_rows

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

from tests import test_modeling_common  # noqa: E402


def _set_large_eps(config) -> None:
    """
    Takes the place of transformers' function of the same purpose, which also sets norms that the configuration has not:
    ours refuses a field that it does not know.
    """
    for part in (config, *(getattr(config, name) for name in config.sub_configs)):
        if hasattr(part, "layer_norm_eps"):
            part.layer_norm_eps = 1.0


test_modeling_common.set_config_for_less_flaky_test = _set_large_eps


BATCH_SIZE = 3

# transformers wants at most two layers, and takes 15 tokens away: the ids of special tokens, 103 at most by default, and all
# of the inputs must still be in the vocabulary then.
NUM_LAYERS, VOCAB_SIZE = 2, 120
LARGEST_ID = VOCAB_SIZE - 16
VISION = {"num_hidden_layers": NUM_LAYERS}
TEXT = {"num_hidden_layers": NUM_LAYERS, "vocab_size": VOCAB_SIZE}
IMAGE_PAIRS = ("VisualReasoning", "TextAssignment")

# Beginning of a test's name -> ends of the names of the classes to which it does not apply, and why.
NOT_APPLICABLE = {
    "test_batching_equivalence": (
        ("PreTraining", "Retrieval"),
        "a pair's hard negatives are other pairs of its batch; tests/models compares what does not depend on them",
    ),
    "test_retain_grad_hidden_states_attentions": (
        ("SimlaModel",),
        "the first output compares image and text; the recorded states are of the fusion, which it does not go through",
    ),
    "test_num_layers_is_small": (IMAGE_PAIRS, "the second of the two layers has a twin for the other image"),
}


class TextFeatureInputs:
    """What `get_text_features` reads and how many layers it runs."""

    def __init__(self, head: "HeadInputs"):
        self.head = head
        self.num_hidden_layers = head.get_config().text_config.num_text_layers

    def prepare_config_and_inputs_for_common(self):
        config, inputs = self.head.prepare_config_and_inputs_for_common()
        return config, {name: inputs[name] for name in ("input_ids", "attention_mask")}


class HeadInputs:
    """A head's configuration and inputs, as the mixin asks for them."""

    batch_size = BATCH_SIZE
    num_masks = 0

    def __init__(self, head: str, make_config, make_inputs):
        self.make_config, self.make_inputs = make_config, make_inputs
        config = make_config()
        # The bare model has no loss.
        self.is_training = not head.endswith("Model")
        self.seq_length = make_inputs()["input_ids"].shape[1]
        self.mask_length = config.vision_config.num_patches
        self.hidden_size = config.text_config.hidden_size
        self.num_hidden_layers = NUM_LAYERS + head.endswith(IMAGE_PAIRS)
        self.num_attention_heads = config.text_config.num_attention_heads
        self.vocab_size = VOCAB_SIZE
        self.vision_config = VISION
        self.text_model_tester = TextFeatureInputs(self)

    def get_config(self):
        return self.make_config()

    def prepare_config_and_inputs(self):
        return self.make_config(), self.make_inputs()

    def prepare_config_and_inputs_for_common(self):
        return self.prepare_config_and_inputs()


class HeadTests(test_modeling_common.ModelTesterMixin):
    """The mixin's tests for one head."""

    make_config = make_inputs = None
    _is_composite = True
    has_attentions = True
    # Question answering writes answers with a `generate` of its own, which starts from images and questions.
    all_generative_model_classes = ()

    def setUp(self):
        head = type(self).__name__
        for beginning, (ends, reason) in NOT_APPLICABLE.items():
            if self._testMethodName.startswith(beginning) and head.endswith(ends):
                self.skipTest(reason)
        self.model_tester = HeadInputs(head, type(self).make_config, type(self).make_inputs)
        # The inputs of inference beside the main one.
        self.additional_model_inputs = [name for name in type(self).make_inputs() if "label" not in name]

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        # The inputs of a head hold its labels already.
        return dict(inputs_dict)


def _vicha_config():
    return tiny_config(VISION, TEXT | {"fusion_layer": 1}, hierarchical_itc_levels=1)


def _simla_config():
    return simla_config(VISION, TEXT)


def _task_inputs(task: str, concepts: bool) -> dict[str, torch.Tensor]:
    """A batch of which each part is a batch: the rows of one sample speak of no other."""
    inputs = step_inputs(task, BATCH_SIZE, concepts=concepts)
    if task == "reasoning" and concepts:
        ids, mask = token_rows([4, 5, 6, 4, 5, 6])
        inputs |= {
            "concept_input_ids": ids.unflatten(0, (-1, 2)),
            "concept_attention_mask": mask.unflatten(0, (-1, 2)),
        }
    if task == "text-assignment":
        inputs["pair_indices"] = torch.arange(BATCH_SIZE)[:, None].expand(-1, 2)
    if task == "vqa":
        # One answer for each question.
        del inputs["answer_counts"]
        ids, mask = token_rows([3, 4, 5])
        inputs |= {"answer_input_ids": ids, "answer_attention_mask": mask}
    return inputs


def _add(model_class: type, make_config, make_inputs) -> None:
    def in_vocabulary():
        inputs = make_inputs()
        ids = {name: value.clamp(max=LARGEST_ID) for name, value in inputs.items() if name.endswith("input_ids")}
        return inputs | ids

    members = {
        "all_model_classes": (model_class,),
        "make_config": staticmethod(make_config),
        "make_inputs": staticmethod(in_vocabulary),
    }
    name = f"Test{model_class.__name__}"
    globals()[name] = type(name, (HeadTests, unittest.TestCase), members)


for _class in (ViChaModel, ViChaForPreTraining, ViChaForRetrieval):
    _add(_class, _vicha_config, lambda: tiny_batch(BATCH_SIZE))
for _class in (SimlaModel, SimlaForRetrieval):
    _add(_class, _simla_config, lambda: tiny_batch(BATCH_SIZE, concepts=False))
_add(SimlaForPreTraining, _simla_config, lambda: simla_batch(BATCH_SIZE))
for _task, _class in HEADS.items():
    _add(_class, _vicha_config, lambda task=_task: _task_inputs(task, concepts=True))
for _task, _class in SIMLA_HEADS.items():
    _add(_class, _simla_config, lambda task=_task: _task_inputs(task, concepts=False))
