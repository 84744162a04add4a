from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import yaml

from vicha_hf import ViChaConfig
from vicha_hf.arguments import parse_arguments
from vicha_hf.training.arguments import TrainingArguments
from vicha_hf.training.pretraining import DataArguments, ModelArguments, PretrainingArguments
from vicha_hf.training.schedule import PublishedSchedule, WarmupCosineSchedule


CONFIGS = Path(__file__).parents[2] / "examples/configs/vicha"


def parse_config(name, *overrides):
    needed = ["--config", str(CONFIGS / name), "--output_dir", "out", "--data.train", "train.json"]
    return parse_arguments(PretrainingArguments, [*needed, *overrides])


def vicha_config(model: ModelArguments, **text_config):
    return ViChaConfig(vision_config=model.vision_config, text_config=model.text_config | text_config, **model.config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_epochs": 0}, r"num_epochs=0 .*at least 1"),
        ({"max_steps": 0}, r"max_steps=0 .*null"),
        ({"warmup_steps": -1}, r"warmup_steps=-1 .*negative"),
        ({"learning_rate": 0.0}, r"learning_rate=0.0 .*above 0"),
        ({"min_learning_rate": 1.0}, r"min_learning_rate=1.0 .*learning_rate=0.0001"),
        ({"max_grad_norm": 0.0}, r"max_grad_norm=0.0 .*null"),
        ({"lr_schedule": "published", "warmup_steps": 150}, r"warmup_steps=150.*lr_schedule=cosine"),
        ({"output_dir": ""}, r"output_dir='' .*folder"),
        ({"gradient_caching": True}, r"gradient_caching=True .*gradient_accumulation_steps to 2 or more"),
        ({"teacher_start_step": -1}, r"teacher_start_step=-1 .*negative"),
        (
            {"teacher_start_step": 5, "gradient_caching": True, "gradient_accumulation_steps": 2},
            r"teacher_start_step=5 .*gradient_caching",
        ),
    ],
)
def test_an_impossible_value_names_field_value_and_remedy(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainingArguments(**{"output_dir": "out", **changes})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelArguments(from_pretrained="a", text_config={"x": 1}), r"model.text_config=.*from_pretrained"),
        (lambda: ModelArguments(config={"vision_config": {}}), r"give these fields as model.vision_config"),
        (lambda: DataArguments(train=[]), r"data.train=\[\] .*at least one"),
        (lambda: DataArguments(train="a", crop_scale=(0.9, 0.2)), r"data.crop_scale=.*smallest, largest"),
        (lambda: DataArguments(train="a", concept_fraction=0.0), r"data.concept_fraction=0.0"),
        (lambda: DataArguments(train="a", concept_dropout=1.0), r"data.concept_dropout=1.0"),
        (lambda: DataArguments(train="a", max_text_length=2), r"data.max_text_length=2 .*\[SEP\]"),
    ],
)
def test_an_impossible_model_or_corpus_names_field_value_and_remedy(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_without_bitsandbytes_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr("vicha_hf.training.arguments.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'optimizer=\'adamw_8bit\' .*pip install "vicha_hf\[8bit\]"'):
        TrainingArguments(output_dir="out", optimizer="adamw_8bit")


def test_adapters_from_the_command_line():
    model = parse_config("tiny.yaml", "--model.freeze=[vision_model]", "--model.lora.r=4")[0].model
    assert (model.freeze, model.lora.r, model.lora.alpha) == (["vision_model"], 4, 32.0)
    resolved = parse_config("tiny.yaml", "--model.lora.target_modules=[query]")[1]
    assert yaml.safe_load(resolved)["model"]["lora"]["target_modules"] == ["query"]
    assert parse_config("tiny.yaml")[0].model.lora is None


def test_defaults_are_the_papers():
    arguments = TrainingArguments(output_dir="out")
    assert (arguments.learning_rate, arguments.min_learning_rate, arguments.warmup_learning_rate) == (1e-4, 1e-5, 1e-5)
    assert (arguments.weight_decay, arguments.num_epochs, arguments.per_device_batch_size) == (0.02, 11, 32)
    assert (arguments.warmup_steps, arguments.max_grad_norm) == (2000, None)


def test_total_steps_and_schedules():
    arguments = TrainingArguments(output_dir="out", num_epochs=3)
    assert (arguments.total_steps(7), isinstance(arguments.learning_rate_schedule(7), WarmupCosineSchedule)) == (
        21,
        True,
    )
    arguments = TrainingArguments(output_dir="out", num_epochs=3, max_steps=5, lr_schedule="published")
    assert (arguments.total_steps(7), isinstance(arguments.learning_rate_schedule(7), PublishedSchedule)) == (5, True)


@pytest.mark.parametrize("lr_schedule", ["cosine", "published"])
def test_max_steps_decides_where_it_is_given(lr_schedule):
    """Beyond the epochs too, and the learning rate falls until the end."""
    arguments = TrainingArguments(
        output_dir="out", num_epochs=2, max_steps=50, warmup_steps=0, learning_rate=1e-3, lr_schedule=lr_schedule
    )
    assert arguments.total_steps(7) == 50
    schedule = arguments.learning_rate_schedule(7)
    rates = [schedule(step) for step in range(50)]
    assert rates == sorted(rates, reverse=True) and rates[-1] < rates[20] < rates[0]


def test_the_command_line_overrides_the_yaml():
    arguments, _ = parse_config(
        "tiny.yaml",
        "--learning_rate=2e-4",
        "--max_steps=7",
        "--model.config.queue_size=64",
        "--model.vision_config.image_size=32",
        "--data.train=[a.json, {path: org/name, split: train}]",
        "--data.validation=null",
        "--trackers=[]",
    )
    assert (arguments.learning_rate, arguments.max_steps, arguments.trackers) == (2e-4, 7, [])
    assert arguments.model.config["queue_size"] == 64
    assert arguments.model.config["projection_dim"] == 256
    assert arguments.model.vision_config["image_size"] == 32
    assert arguments.model.vision_config["patch_size"] == 16
    assert arguments.data.train == ["a.json", {"path": "org/name", "split": "train"}]
    assert arguments.data.validation is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--learning_rate=fast", "learning_rate"),
        ("--lr_schedule=linear", "lr_schedule"),
        ("--learning_rat=1e-3", "learning_rat"),
        ("--learning_rate=-1", "learning_rate=-1.0 is not possible"),
        ("--model.config.vision_config={}", "model.vision_config"),
        ("--data.on_bad_record=ignore", "on_bad_record"),
        ("--model.lora.r=0", "model.lora.r=0 is not possible: it must be at least 1. (all options"),
        ("--data.crop_scale=0.5", "data.crop_scale='[0.5]' is not possible: give a list of 2 values or null"),
        ("--model.lora.r=x", "model.lora.r='x' is not possible: give a whole number"),
        ("--model={lora: {dropout: x}}", "model.lora.dropout='x' is not possible: give a number"),
        ("--model={lora: {rr: 4}}", "unknown option model.lora.rr; did you mean model.lora.r?"),
    ],
)
def test_a_wrong_option_is_explained(override, message, capsys):
    with pytest.raises(SystemExit):
        parse_config("tiny.yaml", override)
    assert message in capsys.readouterr().err


def test_an_option_overrides_the_yaml_wherever_it_stands(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("max_steps: 480\nper_device_batch_size: 8\nseed: 3\n")
    second.write_text("seed: 4\n")
    required = ["--output_dir=run", "--data.train=a.json", "--data.tokenizer=t"]
    words = ["--max_steps", "20", *required, "--config", str(first), "--seed=5", "--config", str(second)]
    arguments, _ = parse_arguments(PretrainingArguments, words)
    assert (arguments.max_steps, arguments.per_device_batch_size, arguments.seed) == (20, 8, 5)
    arguments, _ = parse_arguments(PretrainingArguments, [word for word in words if word != "--seed=5"])
    assert arguments.seed == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rat: 1.0e-3", "unknown option learning_rat; did you mean learning_rate?"),
        ("data: {crop_scal: null}", "unknown option data.crop_scal; did you mean data.crop_scale?"),
        ("model: {visionconfig: 4}", "unknown option model.visionconfig; did you mean model.vision_config?"),
        ("model: {lora: {rank: 4}}", "unknown option model.lora.rank; did you mean model.lora.r?"),
    ],
)
def test_a_misspelt_name_in_a_file_is_named_with_the_file(tmp_path, content, message, capsys):
    file = tmp_path / "typo.yaml"
    file.write_text(content)
    with pytest.raises(SystemExit):
        parse_arguments(PretrainingArguments, [f"--config={file}"])
    assert f"{file}: {message}" in capsys.readouterr().err


def test_the_resolved_yaml_gives_the_same_arguments(tmp_path):
    arguments, resolved = parse_config("tiny.yaml", "--max_steps=7", "--model.config.queue_size=64")
    (tmp_path / "config.yaml").write_text(resolved)
    again, _ = parse_arguments(PretrainingArguments, ["--config", str(tmp_path / "config.yaml")])
    assert again == arguments
    # Nothing is left to a default that a later version may change.
    assert {field.name for field in fields(PretrainingArguments)} <= yaml.safe_load(resolved).keys()


def test_every_field_is_documented_in_the_help(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(PretrainingArguments, ["--help"])
    help_text = capsys.readouterr().out
    sections = {"": TrainingArguments, "model.": ModelArguments, "data.": DataArguments}
    for prefix, arguments_class in sections.items():
        for field in fields(arguments_class):
            assert f"--{prefix}{field.name} " in help_text
            assert f"        {field.name}: " in arguments_class.__doc__


@pytest.mark.parametrize(
    "name", ["albef_base", "albef_tiny", "base", "own_small", "own_small_pretrained", "small", "tiny"]
)
def test_every_pretraining_config_is_possible(name):
    arguments, _ = parse_config(f"{name}.yaml")
    vicha_config(arguments.model)


@pytest.mark.parametrize("path", sorted(CONFIGS.parent.glob("*/*.yaml")), ids=lambda path: path.stem)
def test_no_config_knows_a_topology(path):
    content = yaml.safe_load(path.read_text())
    assert not {"num_processes", "deepspeed", "output_dir"} & content.keys()
    # "auto" asks the device.
    assert content.get("mixed_precision", "auto") == "auto"


def test_base_is_the_papers_recipe():
    arguments, _ = parse_config("base.yaml")
    assert (arguments.num_epochs, arguments.per_device_batch_size, arguments.lr_schedule) == (11, 32, "published")
    assert (arguments.learning_rate, arguments.min_learning_rate, arguments.warmup_learning_rate) == (1e-4, 1e-5, 1e-5)
    assert (arguments.warmup_steps, arguments.weight_decay, arguments.max_grad_norm) == (2000, 0.02, None)
    data = arguments.data
    assert (data.max_text_length, data.max_concept_length, data.concept_fraction) == (25, 55, 0.3)
    assert (data.crop_scale, data.hflip, data.randaugment) == ((0.2, 1.0), True, True)
    config = vicha_config(arguments.model)
    assert config.to_dict() == ViChaConfig(vision_config={"image_size": 256}).to_dict()


@pytest.mark.parametrize("name", ["albef_base.yaml", "albef_tiny.yaml"])
def test_albef_is_vicha_without_its_three_additions(name):
    albef = vicha_config(parse_config(name)[0].model)
    assert (albef.use_concepts, albef.hierarchical_itc_weight, albef.mim_weight) == (False, 0, 0)
    vicha = vicha_config(parse_config(name.removeprefix("albef_"))[0].model)
    assert albef.vision_config.to_dict() == vicha.vision_config.to_dict()
    assert albef.text_config.to_dict() == vicha.text_config.to_dict()


def test_tiny_has_every_objective_on():
    config = vicha_config(parse_config("tiny.yaml")[0].model)
    assert config.use_concepts and config.queue_size > 0 and config.distillation_alpha > 0
    weights = ("itc_weight", "itm_weight", "mlm_weight", "mim_weight", "hierarchical_itc_weight")
    assert all(getattr(config, name) > 0 for name in weights)


def test_other_scripts_can_add_their_own_arguments():
    @dataclass(kw_only=True)
    class FinetuningArguments(TrainingArguments):
        """Of a test.

        Args:
            task: What to learn.
        """

        task: str
        num_epochs: int = 5

    arguments, _ = parse_arguments(FinetuningArguments, ["--output_dir=out", "--task=vqa"])
    assert (arguments.task, arguments.num_epochs, arguments.learning_rate) == ("vqa", 5, 1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name",
    ["learning_rate", "weight_decay", "min_learning_rate", "temperature_lr_scale", "max_grad_norm", "adam_beta1"],
)
def test_numbers_that_are_not_finite_are_refused(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name}={value} is not possible: it must be finite"):
        TrainingArguments(output_dir=str(tmp_path), **{name: value})
