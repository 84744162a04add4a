"""The fine-tuning scripts and the evaluation take SIMLA by its folder, with no word about the family."""

import json

import pytest
from test_finetune_scripts import SCRIPTS, options
from tiny_model_folder import write_simla_folder
from transformers import AutoProcessor

from vicha_hf import SimlaProcessor
from vicha_hf.families import HEADS, load_finetuned


pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simla")
    write_simla_folder(folder, text_config={"max_position_embeddings": 40})
    return folder


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_task_is_trained_from_a_simla_folder(name, task_files, pretrained, script, tmp_path):
    task, _, primary = SCRIPTS[name]
    overrides = [f"--model.from_pretrained={pretrained}", "--max_steps=2"]
    result = script(name)(options(task_files, name, tmp_path, *overrides))
    assert result.step == 2
    if primary is not None:
        assert primary in json.loads((tmp_path / "metrics.json").read_text())
    assert type(load_finetuned(task, tmp_path / "model")) is HEADS["simla"][task]
    assert type(AutoProcessor.from_pretrained(tmp_path / "model")) is SimlaProcessor


def test_larger_images_have_more_patches_than_the_text_encoder_has_positions(task_files, pretrained, script, tmp_path):
    """As 384 pixels have: the recipes of the paper."""
    overrides = [f"--model.from_pretrained={pretrained}", "--model.image_size=64", "--max_steps=1"]
    script("finetune_entailment")(options(task_files, "finetune_entailment", tmp_path, *overrides))
    assert load_finetuned("entailment", tmp_path / "model").config.vision_config.image_size == 64
