"""SIMLA's published checkpoints become SIMLA's models, recognised by their tensors."""

import logging
from pathlib import Path

import pytest
import torch
from tiny_tokenizer import build_tiny_tokenizer
from transformers import AutoProcessor

from vicha_hf import (
    SimlaForGrounding,
    SimlaForPreTraining,
    SimlaForRetrieval,
    SimlaForTextAssignment,
    SimlaForVisualEntailment,
    SimlaForVisualReasoning,
    SimlaForVQA,
    SimlaImageProcessor,
    SimlaProcessor,
)
from vicha_hf.cli import main as vicha_hf_command
from vicha_hf.conversion import convert_checkpoint
from vicha_hf.conversion.convert import CheckpointError
from vicha_hf.models.configuration_simla import SIMLA_REFERENCE_QUIRKS


GOLDEN = Path(__file__).parents[1] / "golden" / "data"
CASES = {
    "simla_pretrain": ("pretraining", SimlaForPreTraining),
    "simla_retrieval": ("retrieval", SimlaForRetrieval),
    "simla_vqa": ("vqa", SimlaForVQA),
    "simla_ve": ("entailment", SimlaForVisualEntailment),
    "simla_nlvr": ("reasoning", SimlaForVisualReasoning),
    "simla_nlvr_pretrain": ("text-assignment", SimlaForTextAssignment),
    "simla_grounding": ("grounding", SimlaForGrounding),
}


def path_of(case):
    return GOLDEN / case / "original.pth"


def convert_changed(case, tmp_path, change, **options):
    checkpoint = torch.load(path_of(case), weights_only=True)
    change(checkpoint["model"])
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    return convert_checkpoint(tmp_path / "checkpoint.pth", **options)


@pytest.mark.parametrize("case", CASES)
def test_family_and_head_are_recognised_and_saved(case, tmp_path):
    head, model_class = CASES[case]
    model = convert_checkpoint(path_of(case), head=head)
    assert type(model) is model_class and model.training_state is None
    assert set(model.config.reference_quirks) == set(SIMLA_REFERENCE_QUIRKS)
    model.save_pretrained(tmp_path)
    loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for name, value in model.named_parameters():
        assert torch.equal(loaded.get_parameter(name), value), name


def test_sizes_are_inferred():
    config = convert_checkpoint(path_of("simla_pretrain")).config
    text = config.text_config
    assert (text.num_hidden_layers, text.first_doubled_layer, text.type_vocab_size) == (12, 6, 0)
    assert (text.vocab_size, text.hidden_size, text.intermediate_size) == (200, 24, 48)
    assert (config.visual_vocab_size, config.mlm_probability, config.queue_size) == (50, 0.3, 16)
    assert config.vision_config.image_size == 64
    for case in ("simla_retrieval", "simla_vqa"):
        config = convert_checkpoint(path_of(case), head=CASES[case][0]).config
        assert config.mim_weight == config.psl_weight == 0
    answering = convert_checkpoint(path_of("simla_vqa"))
    assert answering.config.text_config.first_doubled_layer == 4
    assert len(answering.answer_decoder.encoder.layer) == 4


def test_doubled_layers_are_counted_once_and_found_by_their_shared_keys(tmp_path, caplog):
    for case in ("simla_nlvr", "simla_nlvr_pretrain"):
        model = convert_checkpoint(path_of(case))
        text = model.config.text_config
        assert (text.num_hidden_layers, text.first_doubled_layer, text.type_vocab_size) == (8, 4, 2)
        assert len(model.image_pair_encoder.twins) == 4
    assert not caplog.records

    def share_two_more(tensors):
        for name in list(tensors):
            if ".layer.3.crossattention.self." in name and "query" not in name:
                tensors[name] = tensors[name.replace("layer.3.", "layer.2.")]

    with caplog.at_level(logging.WARNING):
        model = convert_changed("simla_nlvr", tmp_path, share_two_more)
    assert model.config.text_config.first_doubled_layer == 2 and "from 2 on" in caplog.text
    # What the tensors cannot tell for sure can be told.
    model = convert_changed("simla_nlvr", tmp_path, share_two_more, text_config={"first_doubled_layer": 4})
    assert model.config.text_config.num_hidden_layers == 8


def test_the_teachers_own_heads_and_mask_token_are_kept():
    tensors = torch.load(path_of("simla_pretrain"), weights_only=True)["model"]
    model = convert_checkpoint(path_of("simla_pretrain"), training_state=True)
    teacher = model.training_state.teacher
    assert torch.equal(model.mim.mask_token, tensors["visual_encoder.mask_token"])
    assert torch.equal(teacher["mim"].mask_token, tensors["visual_encoder_m.mask_token"])
    assert torch.equal(teacher["mim"].head.weight, tensors["mim_head_m.weight"])
    assert torch.equal(teacher["psl"].head.bias, tensors["concept_head_m.bias"])
    assert torch.equal(model.psl.head.weight, tensors["concept_head.weight"])


@pytest.mark.parametrize("key", ["mim_head.weight", "concept_head.bias", "visual_encoder.mask_token"])
def test_a_missing_key_is_named(key, tmp_path):
    with pytest.raises(CheckpointError, match=r"missing|left over"):
        convert_changed("simla_pretrain", tmp_path, lambda tensors: tensors.pop(key))


def test_the_command_writes_a_folder_with_its_processor(tmp_path):
    build_tiny_tokenizer(tmp_path).save_pretrained(tmp_path / "tokenizer")
    command = ["convert", str(path_of("simla_ve")), str(tmp_path / "out"), "--tokenizer", str(tmp_path / "tokenizer")]
    assert vicha_hf_command(command) == 0
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert type(processor) is SimlaProcessor and not processor.final_sep
    assert type(processor.image_processor) is SimlaImageProcessor
    assert dict(processor.image_processor.size) == {"height": 64, "width": 64}


def test_an_unknown_key_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"left over \['kw_proj.weight'\]"):
        convert_changed("simla_pretrain", tmp_path, lambda tensors: tensors.update({"kw_proj.weight": torch.ones(2)}))
