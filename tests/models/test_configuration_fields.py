"""Unknown fields and numbers that are not finite are refused wherever a configuration is read, transformers' own are not."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassError
from simla_models import simla_config
from tiny_models import tiny_config
from transformers import AutoConfig, AutoModel, BertConfig

from vicha_hf import SimlaConfig, SimlaForRetrieval, ViChaConfig, ViChaForRetrieval, ViChaModel, ViChaTextConfig


FAMILIES = {"vicha": tiny_config, "simla": simla_config}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"projection_dimm": 256},
            r"`projection_dimm=256` is not possible: ViChaConfig .*did you mean projection_dim\?",
        ),
        ({"itm_wieght": 2.0}, r"did you mean itm_weight\?"),
        ({"text_config": {"hiden_size": 3}}, r"`text_config.hiden_size=3` .* did you mean text_config.hidden_size\?"),
        ({"vision_config": {"image_sise": 3}}, r"`vision_config.image_sise=3` .*vision_config.image_size\?"),
        ({"hidden_size": 32}, r"`hidden_size=32` is not possible"),
        ({"zzz": 1}, r"it has .*concept.*"),
    ],
)
def test_a_misspelt_field_is_named_with_the_nearest(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        ViChaConfig(**given)
    tiny_config().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    for name, value in given.items():
        content[name] = content[name] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(content))
    for read in (ViChaConfig.from_pretrained, AutoConfig.from_pretrained, ViChaModel.from_pretrained):
        with pytest.raises(ValueError, match=message):
            read(tmp_path)


def test_a_misspelt_override_of_a_folder_is_named(tmp_path):
    ViChaForRetrieval(tiny_config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="did you mean momentum"):
        AutoConfig.from_pretrained(tmp_path, momentun=0.9)
    with pytest.raises(ValueError, match=r"did you mean text_config.hidden_dropout_prob"):
        AutoConfig.from_pretrained(tmp_path, text_config={"hidden_dropout": 0.9})
    with pytest.raises(TypeError, match="momentun"):
        ViChaForRetrieval.from_pretrained(tmp_path, momentun=0.9)
    # What a loader passes on to every configuration.
    assert AutoConfig.from_pretrained(tmp_path, device_map="cpu", use_auth=None).projection_dim == 16


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_writes_and_takes_is_known(tmp_path, family):
    config = FAMILIES[family](output_attentions=False, num_labels=3, torch_dtype="float32", name_or_path="x")
    model = AutoModel.from_config(config)
    model.config.custom_pipelines = {"zero-shot": {"impl": "file.py"}}
    model.config.quantization_config = None
    model.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text()) | {"_note": 1, "transformers_version": "4.0.0"}
    (tmp_path / "config.json").write_text(json.dumps(content))
    loaded = AutoConfig.from_pretrained(tmp_path, attn_implementation="eager", dtype="bfloat16")
    assert type(loaded) is {"vicha": ViChaConfig, "simla": SimlaConfig}[family]
    assert loaded.projection_dim == config.projection_dim


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "given",
    [
        lambda value: {"itm_weight": value},
        lambda value: {"temperature_init": value},
        lambda value: {"hierarchical_itc_level_weights": [1.0, value]},
        lambda value: {"text_config": {"layer_norm_eps": value}},
        lambda value: {"vision_config": {"initializer_range": value}},
    ],
)
def test_numbers_that_are_not_finite_are_refused(value, given):
    name = next(iter(given(value)))
    with pytest.raises((StrictDataclassError, ValueError), match=rf"{name}.*(finite|possible)"):
        tiny_config(**given(value))


def test_a_part_is_checked_alone_too():
    with pytest.raises(ValueError, match=r"did you mean text_config.vocab_size"):
        ViChaTextConfig(vocabsize=3)


@pytest.mark.parametrize("other", ["vicha", "simla", "bert"])
def test_a_folder_of_another_family_is_named_as_that(tmp_path, other):
    model_class = ViChaForRetrieval if other != "vicha" else SimlaForRetrieval
    config = FAMILIES[other]() if other in FAMILIES else BertConfig()
    config.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=f"`?model_type='{other}'`? is not possible: .* load the folder with an Auto class"
    ):
        model_class.from_pretrained(tmp_path)
