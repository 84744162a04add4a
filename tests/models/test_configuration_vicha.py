"""Configurations: defaults, round trips, and errors that say what to do."""

import json
import re

import pytest
from huggingface_hub.errors import StrictDataclassError
from tiny_models import TEXT, VISION, tiny_config
from transformers import AutoConfig

from vicha_hf import ViChaConfig, ViChaTextConfig, ViChaVisionConfig
from vicha_hf.models.configuration_vicha import ALBEF_REFERENCE_QUIRKS, VICHA_REFERENCE_QUIRKS


COUNTS = {
    "vision_config": (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_channels",
        "patch_size",
    ),
    "text_config": (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
        "max_position_embeddings",
    ),
    None: ("projection_dim", "mim_decoder_hidden_size", "mim_decoder_layers", "mim_decoder_heads"),
}
IMPOSSIBLE = [
    *(
        (f"{part}.{field}", {part: {field: 0}}, "0", "1 or more") if part else (field, {field: 0}, "0", "1 or more")
        for part, fields in COUNTS.items()
        for field in fields
    ),
    ("vision_config.num_attention_heads", {"vision_config": {"num_attention_heads": 5}}, "5", "divide"),
    ("vision_config.image_size", {"vision_config": {"image_size": 7}}, "7", "at least one patch"),
    ("text_config.num_attention_heads", {"text_config": {"num_attention_heads": 5}}, "5", "divide"),
    ("text_config.fusion_layer", {"text_config": {"fusion_layer": 4}}, "4", "between 1 and .* 3"),
    ("text_config.fusion_layer", {"text_config": {"fusion_layer": 0}}, "0", "between 1 and .* 3"),
    ("text_config.pad_token_id", {"text_config": {"pad_token_id": -1}}, "-1", "tokenizer"),
    ("text_config.cls_token_id", {"text_config": {"cls_token_id": 101}}, "101", "tokenizer"),
    ("text_config.sep_token_id", {"text_config": {"sep_token_id": 102}}, "102", "tokenizer"),
    ("text_config.mask_token_id", {"text_config": {"mask_token_id": 103}}, "103", "tokenizer"),
    ("text_config.encoder_hidden_size", {"text_config": {"encoder_hidden_size": 24}}, "24", "leave it unset"),
    ("itc_weight", {"itc_weight": -1.0}, "-1.0", "0 switches it off"),
    ("itm_weight", {"itm_weight": -1.0}, "-1.0", "0 switches it off"),
    ("mlm_weight", {"mlm_weight": -0.5}, "-0.5", "0 switches it off"),
    ("hierarchical_itc_weight", {"hierarchical_itc_weight": -1}, "-1", "0 switches it off"),
    ("mim_weight", {"mim_weight": -1.0}, "-1.0", "0 switches it off"),
    ("mim_mask_ratio", {"mim_mask_ratio": 75.0}, "75.0", "between 0 and 1"),
    ("mim_mask_ratio", {"mim_mask_ratio": 0.99}, "0.99", "at least one must stay"),
    ("mim_mask_ratio", {"mim_mask_ratio": 1.0}, "1.0", "between 0 and 1"),
    ("mim_fraction", {"mim_fraction": 0.0}, "0.0", "above 0"),
    ("mim_fraction", {"mim_fraction": 1.5}, "1.5", "above 0"),
    ("mlm_probability", {"mlm_probability": 15.0}, "15.0", "between 0 and 1"),
    ("mlm_probability", {"mlm_probability": 0.0}, "0.0", "between 0 and 1"),
    ("patch_dropout", {"patch_dropout": 1.0}, "1.0", "16 patches .* one patch must stay"),
    ("patch_dropout", {"patch_dropout": -0.1}, "-0.1", "at least 0"),
    ("patch_dropout", {"patch_dropout": 0.99}, "0.99", "one patch must stay"),
    ("momentum", {"momentum": 1.5}, "1.5", "between 0 and 1"),
    ("distillation_alpha", {"distillation_alpha": -0.1}, "-0.1", "between 0 and 1"),
    ("temperature_init", {"temperature_init": 0.0}, "0.0", "positive"),
    ("queue_size", {"queue_size": -1}, "-1", "0 for no queue"),
    ("queue_warmup_batches", {"queue_warmup_batches": -1}, "-1", "0 for none"),
    ("num_concept_layers", {"num_concept_layers": 3}, "3", "0 uses the embeddings only"),
    ("num_concept_layers", {"num_concept_layers": -1}, "-1", "0 uses the embeddings only"),
    ("hierarchical_itc_levels", {"hierarchical_itc_levels": 3}, "3", "choose 1 to 2"),
    ("hierarchical_itc_levels", {"hierarchical_itc_levels": 0}, "0", "hierarchical_itc_weight=0"),
    ("hierarchical_itc_level_weights", {"hierarchical_itc_level_weights": [1.0]}, "[1.0]", "one weight for each"),
    ("mim_mode", {"mim_mode": "cross"}, "'cross'", "crossmodal"),
    ("mim_mode", {"mim_mode": "crossmodal", "vision_config": {"hidden_size": 16}}, "'crossmodal'", "unimodal"),
    ("mim_decoder_hidden_size", {"mim_mode": "both", "mim_decoder_hidden_size": 16}, "16", "must equal"),
    ("mim_decoder_hidden_size", {"mim_decoder_hidden_size": 30}, "30", "multiple of"),
    ("mim_decoder_hidden_size", {"mim_decoder_hidden_size": 10, "mim_decoder_heads": 5}, "10", "and of 4"),
    ("reference_quirks", {"reference_quirks": ["hitc_diagonal"]}, "hitc_diagonal", "hitc_local_diagonal"),
]


@pytest.mark.parametrize(("field", "fields", "value", "remedy"), IMPOSSIBLE, ids=lambda part: str(part)[:40])
def test_an_impossible_value_is_named_with_its_remedy(field, fields, value, remedy):
    with pytest.raises(StrictDataclassError) as error:
        tiny_config(**fields)
    message = str(error.value)
    assert f"`{field}=" in message and value in message.split("is not possible")[0]
    assert re.search(remedy, message), message


def test_a_wrong_type_is_named():
    with pytest.raises(StrictDataclassError, match="queue_size"):
        tiny_config(queue_size="many")


def test_rules_of_objectives_that_are_off_do_not_apply():
    tiny_config(hierarchical_itc_weight=0, hierarchical_itc_levels=99)
    tiny_config(mim_weight=0, mim_mode="none", mim_decoder_hidden_size=30)


def test_defaults_are_the_papers():
    config = ViChaConfig()
    vision, text = config.vision_config, config.text_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads) == (768, 12, 12)
    assert (vision.image_size, vision.patch_size, vision.num_patches) == (256, 16, 256)
    assert (text.hidden_size, text.num_hidden_layers, text.fusion_layer, text.vocab_size) == (768, 12, 6, 30522)
    assert (text.pad_token_id, text.cls_token_id, text.sep_token_id, text.mask_token_id) == (0, 101, 102, 103)
    assert (config.projection_dim, config.temperature_init, config.queue_size, config.momentum) == (
        256,
        0.07,
        65536,
        0.995,
    )
    assert (config.num_concept_layers, config.hierarchical_itc_levels, config.hierarchical_itc_weight) == (2, 5, 0.1)
    assert (config.mim_mode, config.mim_mask_ratio, config.mim_decoder_layers) == ("unimodal", 0.75, 2)
    assert (config.distillation_alpha, config.mlm_probability, list(config.reference_quirks)) == (0.4, 0.15, [])
    assert set(ALBEF_REFERENCE_QUIRKS) < set(VICHA_REFERENCE_QUIRKS)


def test_pixels_beyond_the_last_patch_are_unused():
    vision = ViChaVisionConfig(image_size=380, patch_size=16)
    assert (vision.grid_size, vision.num_patches) == (23, 529)


def test_parts_are_given_as_dicts_or_objects():
    from_dicts = ViChaConfig(vision_config=VISION, text_config=TEXT, hierarchical_itc_levels=2)
    from_objects = ViChaConfig(
        vision_config=ViChaVisionConfig(**VISION), text_config=ViChaTextConfig(**TEXT), hierarchical_itc_levels=2
    )
    assert from_dicts.to_dict() == from_objects.to_dict()
    assert from_dicts.text_config.encoder_hidden_size == VISION["hidden_size"]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"reference_quirks": list(VICHA_REFERENCE_QUIRKS)},
        {"reference_quirks": VICHA_REFERENCE_QUIRKS},
        {"hierarchical_itc_level_weights": [0.5, 2.0], "mim_mode": "both", "use_concepts": False},
        {"vision_config": {"hidden_size": 16, "layer_norm_eps": 1e-5}},
    ],
)
def test_json_round_trip(tmp_path, fields):
    config = tiny_config(**fields)
    config.save_pretrained(tmp_path)
    for loaded in (ViChaConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is ViChaConfig
        assert type(loaded.vision_config) is ViChaVisionConfig and type(loaded.text_config) is ViChaTextConfig
        assert json.loads(loaded.to_json_string()) == json.loads(config.to_json_string())
        for name, value in config.to_dict().items():
            if isinstance(value, (list, tuple)):
                assert list(getattr(loaded, name)) == list(value), name
    assert ViChaConfig(**json.loads((tmp_path / "config.json").read_text())).mim_mode == config.mim_mode


def test_a_field_that_is_overridden_while_loading_is_validated(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    assert ViChaConfig.from_pretrained(tmp_path, momentum=0.9).momentum == 0.9
    with pytest.raises(StrictDataclassError, match="momentum=9"):
        ViChaConfig.from_pretrained(tmp_path, momentum=9.0)
