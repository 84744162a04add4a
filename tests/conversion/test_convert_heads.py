"""Published checkpoints of the task heads become models of that head, every tensor in its place."""

from pathlib import Path

import pytest
import torch

from vicha_hf import (
    ViChaForGrounding,
    ViChaForTextAssignment,
    ViChaForVisualEntailment,
    ViChaForVisualReasoning,
    ViChaForVQA,
)
from vicha_hf.conversion import convert_checkpoint
from vicha_hf.conversion.convert import CheckpointError


GOLDEN = Path(__file__).parents[1] / "golden" / "data"
CASES = {
    "vicha_vqa": ("vqa", ViChaForVQA),
    "vicha_ve": ("entailment", ViChaForVisualEntailment),
    "vicha_nlvr": ("reasoning", ViChaForVisualReasoning),
    "vicha_nlvr_pretrain": ("text-assignment", ViChaForTextAssignment),
    "vicha_grounding": ("grounding", ViChaForGrounding),
}
every_case = pytest.mark.parametrize("case", CASES)


def path_of(case):
    return GOLDEN / case / "original.pth"


def changed(case, tmp_path, change):
    checkpoint = torch.load(path_of(case), weights_only=True)
    change(checkpoint["model"])
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    return tmp_path / "checkpoint.pth"


@every_case
def test_the_head_is_recognised_and_saved(case, tmp_path):
    head, model_class = CASES[case]
    model = convert_checkpoint(path_of(case), head="grounding" if head == "grounding" else None)
    assert type(model) is model_class and model.training_state is None
    model.save_pretrained(tmp_path)
    loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for name, value in model.named_parameters():
        assert torch.equal(loaded.get_parameter(name), value), name


def test_doubled_layers_are_counted_once():
    for case in ("vicha_nlvr", "vicha_nlvr_pretrain"):
        model = convert_checkpoint(path_of(case))
        text = model.config.text_config
        assert (text.num_hidden_layers, text.fusion_layer) == (8, 4)
        assert len(model.vicha.text_model.encoder.layer) == 8 and len(model.image_pair_encoder.twins) == 4


def test_twins_that_do_not_share_their_keys_are_refused(tmp_path):
    def change(tensors):
        name = "text_encoder.encoder.layer.5.crossattention.self.key.weight"
        tensors[name] = tensors[name] + 1.0

    with pytest.raises(CheckpointError, match=r"crossattention\.self\.key\.weight.*different values"):
        convert_checkpoint(changed("vicha_nlvr", tmp_path, change))


@pytest.mark.parametrize(
    ("case", "key"),
    [
        ("vicha_vqa", "text_decoder.bert.encoder.layer.1.crossattention.self.value.bias"),
        ("vicha_ve", "cls_head.2.bias"),
        ("vicha_nlvr", "text_encoder.encoder.layer.7.attention.self.query.weight"),
        ("vicha_nlvr_pretrain", "ta_head.bias"),
    ],
)
def test_a_missing_or_unknown_key_is_named(case, key, tmp_path):
    path = changed(case, tmp_path, lambda tensors: tensors.pop(key))
    with pytest.raises(CheckpointError, match="missing"):
        convert_checkpoint(path)
    path = changed(case, tmp_path, lambda tensors: tensors.update({f"{key}.more": torch.zeros(2)}))
    with pytest.raises(CheckpointError, match="more"):
        convert_checkpoint(path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"momentun": 0.9}, "`momentun=0.9` is not possible: ViChaConfig has no such field; did you mean momentum"),
        (
            {"text_config": {"num_heads": 4}},
            "`text_config.num_heads=4` is not possible: ViChaTextConfig has no such field",
        ),
    ],
)
def test_a_misspelt_override_is_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(path_of("vicha_ve"), **overrides)


def test_retrieval_and_grounding_must_be_told_apart():
    with pytest.raises(CheckpointError, match="say which"):
        convert_checkpoint(path_of("vicha_grounding"))
    with pytest.raises(CheckpointError, match="not for vqa"):
        convert_checkpoint(path_of("vicha_grounding"), head="vqa")


@every_case
def test_training_state_on_request(case):
    model = convert_checkpoint(path_of(case), head=CASES[case][0], training_state=True)
    assert (model.training_state is None) == (case == "vicha_nlvr_pretrain")
