"""Folders whose weights do not find their places are refused, at every door that loads one."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from simla_models import simla_model
from tiny_models import tiny_config, tiny_pretraining_model
from transformers import AutoModel, AutoModelForPreTraining
from transformers.utils import logging

from vicha_hf import (
    SimlaForPreTraining,
    SimlaModel,
    ViChaForGrounding,
    ViChaForPreTraining,
    ViChaForRetrieval,
    ViChaForVisualReasoning,
    ViChaForVQA,
    ViChaModel,
)
from vicha_hf.families import HEADS, load_finetuned


BARE = {"vicha": ViChaModel, "simla": SimlaModel}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A pretraining folder of each family, and a fine-tuned one of question answering."""
    root = tmp_path_factory.mktemp("folders")
    tiny_pretraining_model().save_pretrained(root / "vicha")
    simla_model(SimlaForPreTraining).save_pretrained(root / "simla")
    ViChaForVQA(tiny_config()).save_pretrained(root / "vqa")
    return root


def changed(source, target, change=dict, **config_fields):
    """A copy whose weights went through `change`, with other fields of the text configuration."""
    shutil.copytree(source, target)
    path = target / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    config = json.loads((target / "config.json").read_text())
    config["text_config"] |= config_fields
    (target / "config.json").write_text(json.dumps(config))
    return target


def without(part):
    return lambda weights: {name: value for name, value in weights.items() if part not in name}


@pytest.mark.parametrize("family", HEADS)
@pytest.mark.parametrize("part", ["vision_model.layers.1.", "text_model.encoder.layer.1."])
def test_every_head_refuses_a_folder_that_lacks_a_layer(folders, tmp_path, family, part):
    broken = changed(folders / family, tmp_path / "broken", without(part))
    for head in (*HEADS[family].values(), BARE[family], AutoModel, AutoModelForPreTraining):
        with pytest.raises(ValueError, match=rf"broken does not fit (?i:{family})\w+: missing {part}"):
            head.from_pretrained(broken)


@pytest.mark.parametrize("family", HEADS)
def test_every_head_refuses_a_folder_with_more_layers_than_its_configuration(folders, tmp_path, family):
    broken = changed(folders / family, tmp_path / "broken", num_hidden_layers=3)
    for head in (*HEADS[family].values(), BARE[family]):
        with pytest.raises(ValueError, match=r"left over .*text_model.encoder.layer.3."):
            head.from_pretrained(broken)


def test_a_folder_of_other_names_is_refused(folders, tmp_path):
    renamed = changed(
        folders / "vicha",
        tmp_path / "renamed",
        lambda weights: {f"net.{name}": value for name, value in weights.items()},
    )
    with pytest.raises(ValueError, match=r"does not fit ViChaForVQA: missing .* and \d+ more"):
        ViChaForVQA.from_pretrained(renamed)
    # Another family's weights have other names too.
    with pytest.raises(ValueError, match="does not fit ViChaForRetrieval: missing"):
        ViChaForRetrieval.from_pretrained(folders / "simla", config=tiny_config())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_removed_with_a_message(folders, tmp_path, caplog, prefix):
    wrapped = changed(
        folders / "vicha",
        tmp_path / "wrapped",
        lambda weights: {prefix + name: value for name, value in weights.items()},
    )
    logger = logging.get_logger("vicha_hf.models.pretrained_encoders")
    logger.addHandler(caplog.handler)
    try:
        model, info = ViChaForPreTraining.from_pretrained(wrapped, output_loading_info=True)
    finally:
        logger.removeHandler(caplog.handler)
    assert f"the prefix {prefix!r} was removed" in caplog.text
    assert not info["missing_keys"] and not info["unexpected_keys"]
    plain = ViChaForPreTraining.from_pretrained(folders / "vicha").state_dict()
    assert all(torch.equal(value, plain[name]) for name, value in model.state_dict().items())


def test_a_head_that_is_there_in_part_is_refused(folders, tmp_path):
    broken = changed(folders / "vqa", tmp_path / "decoder", without("answer_decoder.encoder.layer.0."))
    with pytest.raises(ValueError, match=r"does not fit ViChaForVQA: missing answer_decoder.encoder.layer.0"):
        ViChaForVQA.from_pretrained(broken)
    # Another head has no use for it.
    ViChaForGrounding.from_pretrained(broken)


def test_evaluation_refuses_what_training_refuses(folders, tmp_path):
    with pytest.raises(ValueError, match=r"does not fit ViChaForVQA: .*left over vicha.text_model.encoder.layer.3"):
        load_finetuned("vqa", str(changed(folders / "vqa", tmp_path / "short", num_hidden_layers=3)))
    assert not load_finetuned("vqa", str(folders / "vqa")).training


def test_concepts_may_be_left_out_and_come_anew_but_not_in_part(folders, tmp_path):
    left_out = ViChaForRetrieval.from_pretrained(folders / "vicha", use_concepts=False)
    assert left_out.vicha.concept_model is None
    broken = changed(folders / "vicha", tmp_path / "broken", without("concept_model.encoder.layer.0.output"))
    with pytest.raises(ValueError, match=r"missing concept_model.encoder.layer.0.output"):
        ViChaForVisualReasoning.from_pretrained(broken)


def test_a_model_without_a_folder_needs_no_weights():
    model = ViChaForRetrieval.from_pretrained(None, config=tiny_config(), state_dict={})
    assert all(value.isfinite().all() for value in model.parameters())
