"""SIMLA's configuration: the paper's defaults, round trips, and errors that say what to do."""

import re

import pytest
from huggingface_hub.errors import StrictDataclassError
from simla_models import simla_config
from transformers import AutoConfig

from vicha_hf import SimlaConfig, SimlaTextConfig, SimlaVisionConfig
from vicha_hf.models.configuration_simla import SIMLA_REFERENCE_QUIRKS


IMPOSSIBLE = [
    ("vision_config.hidden_size", {"vision_config": {"hidden_size": 24}}, "24", "mim_weight=0"),
    ("text_config.first_doubled_layer", {"text_config": {"first_doubled_layer": 4}}, "4", "between 0 and .* 3"),
    ("text_config.unk_token_id", {"text_config": {"unk_token_id": 100}}, "100", "tokenizer"),
    ("text_config.max_position_embeddings", {"text_config": {"max_position_embeddings": 16}}, "16", "17 or more"),
    ("mim_max_masked_patches", {"mim_max_masked_patches": 16}, "16", "at least one stays"),
    ("mim_max_masked_patches", {"mim_max_masked_patches": 1}, "1", "must fit"),
    ("mim_min_block_patches", {"mim_min_block_patches": 0}, "0", "1 or more"),
    ("mim_min_block_aspect", {"mim_min_block_aspect": 1.5}, "1.5", "at most 1"),
    ("visual_vocab_size", {"visual_vocab_size": 0}, "0", "1 or more"),
    ("psl_num_keywords", {"psl_num_keywords": 0}, "0", "1 or more"),
    ("psl_votes_per_head", {"psl_votes_per_head": 0}, "0", "1 or more"),
    ("psl_weight", {"psl_weight": -1.0}, "-1.0", "0 switches it off"),
    ("mim_weight", {"mim_weight": -1.0}, "-1.0", "0 switches it off"),
    ("itc_weight", {"itc_weight": -1.0}, "-1.0", "0 switches it off"),
    ("mlm_probability", {"mlm_probability": 1.5}, "1.5", "between 0 and 1"),
    ("reference_quirks", {"reference_quirks": ["unmasked_concepts"]}, "unmasked_concepts", "psl_any_position"),
]


@pytest.mark.parametrize(("field", "fields", "value", "remedy"), IMPOSSIBLE, ids=lambda part: str(part)[:40])
def test_an_impossible_value_is_named_with_its_remedy(field, fields, value, remedy):
    with pytest.raises(StrictDataclassError) as error:
        simla_config(**fields)
    message = str(error.value)
    assert f"`{field}=" in message and value in message.split("is not possible")[0]
    assert re.search(remedy, message), message


def test_rules_of_objectives_that_are_off_do_not_apply():
    simla_config(mim_weight=0, vision_config={"hidden_size": 24}, mim_max_masked_patches=99)
    simla_config(psl_weight=0, psl_num_keywords=0)


def test_defaults_are_the_papers():
    config = SimlaConfig()
    text = config.text_config
    assert (text.num_text_layers, text.first_cross_attention_layer, text.first_doubled_layer) == (12, 0, 6)
    assert (text.type_vocab_size, text.unk_token_id) == (0, 100)
    assert (config.visual_vocab_size, config.mim_max_masked_patches, config.mim_min_block_patches) == (8192, 75, 16)
    assert (config.mim_min_block_aspect, config.psl_num_keywords, config.psl_votes_per_head) == (0.3, 5, 4)
    assert (config.queue_size, config.momentum, config.distillation_alpha, config.mlm_probability) == (
        65536,
        0.995,
        0.4,
        0.15,
    )
    assert not config.use_concepts and list(config.reference_quirks) == []


@pytest.mark.parametrize("fields", [{}, {"reference_quirks": list(SIMLA_REFERENCE_QUIRKS)}])
def test_json_round_trip(tmp_path, fields):
    config = simla_config(text_config={"first_doubled_layer": 1}, **fields)
    config.save_pretrained(tmp_path)
    for loaded in (SimlaConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is SimlaConfig
        assert type(loaded.vision_config) is SimlaVisionConfig and type(loaded.text_config) is SimlaTextConfig
        assert loaded.to_json_string() == config.to_json_string()
        assert loaded.text_config.first_doubled_layer == 1
