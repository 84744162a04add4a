"""Every fine-tuning script from a pretraining folder to a folder that loads, at toy size."""

import json
import logging
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from tiny_task_files import NUM_IMAGES
from transformers import AutoProcessor

from vicha_hf.arguments import parse_arguments
from vicha_hf.data.raw_records import AnnotationError
from vicha_hf.families import HEADS, load_finetuned
from vicha_hf.training.finetuning import FinetuningArguments
from vicha_hf.training.run_log import MACHINE_FIELDS, read_log


CONFIGS = Path(__file__).parents[2] / "examples/configs/vicha"
# Script, task, data, primary metric.
SCRIPTS = {
    "finetune_retrieval": ("retrieval", "retrieval.json", "r_mean"),
    "finetune_vqa": ("vqa", "vqa.json", "accuracy"),
    "finetune_entailment": ("entailment", "entailment.json", "accuracy"),
    "finetune_reasoning": ("reasoning", "reasoning.json", "accuracy"),
    "finetune_grounding": ("grounding", "grounding.json", "accuracy"),
    "pretrain_text_assignment": ("text-assignment", "retrieval.json", None),
}

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def options(task_files, name, output_dir, *overrides):
    task, data, primary = SCRIPTS[name]
    answers = ["--data.answer_list=null"] if task == "vqa" else []
    validation = [] if primary is None else [f"--data.validation={task_files / data}"]
    return [
        f"--config={CONFIGS / task.replace('-', '_')}_tiny.yaml",
        "--num_epochs=2",
        f"--output_dir={output_dir}",
        f"--data.train={task_files / data}",
        *validation,
        *answers,
        f"--model.from_pretrained={task_files / 'pretrained'}",
        "--per_device_batch_size=4",
        "--learning_rate=1e-2",
        "--warmup_steps=0",
        "--max_steps=4",
        "--logging_steps=1",
        "--checkpoint_steps=2",
        "--trackers=[]",
        *overrides,
    ]


def reproducible_log(folder):
    return [
        {name: value for name, value in record.items() if name not in MACHINE_FIELDS} for record in read_log(folder)
    ]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_run_writes_everything_and_resuming_changes_nothing(name, task_files, script, tmp_path, caplog, monkeypatch):
    task, _, primary = SCRIPTS[name]
    main = script(name)
    for logger in ("modeling_utils", "distributed.tensor_parallel"):
        monkeypatch.setattr(logging.getLogger(f"transformers.{logger}"), "handlers", [caplog.handler])
    monkeypatch.setattr(logging.getLogger("vicha_hf.training.launch_block"), "handlers", [caplog.handler])
    caplog.set_level(logging.INFO, "vicha_hf.training.launch_block")
    result = main(options(task_files, name, tmp_path))
    assert "with concepts; " in caplog.text and "cut by the length" in caplog.text
    # What the pretrained folder lacks is in order, and takes one line rather than transformers' table.
    assert "LOAD REPORT" not in caplog.text and "not sharded" not in caplog.text
    assert (result.step, result.interrupted) == (4, False)
    log, final = reproducible_log(tmp_path), load_file(tmp_path / "model/model.safetensors")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    if primary is not None:
        assert metrics["primary_metric"] == primary and metrics[primary] == result.metrics[primary]
        assert (tmp_path / "best_model/model.safetensors").is_file()
        assert json.loads((tmp_path / "predictions.json").read_text())

    card = ModelCard.load(tmp_path / "model/README.md")
    assert card.data.model_name == tmp_path.name
    shown_task = {"grounding": "Visual grounding", "retrieval": "Image-text retrieval"}.get(task)
    assert all(result.task_name == shown_task for result in card.data.eval_results or () if shown_task)
    assert card.data.library_name == "transformers" and card.data.license == "unknown"
    shown = {result.metric_name: result.metric_value for result in card.data.eval_results or ()}
    assert shown.get(primary) == (None if primary is None else round(metrics[primary], 2))
    assert "| licence of the training data | not stated; `--data_license TEXT`" in card.text
    assert "| steps | 4 |" in card.text and (tmp_path / "model/training_loss.svg").is_file()

    if primary is not None:
        # The best model has a card of its own evaluation.
        card = ModelCard.load(tmp_path / "best_model/README.md")
        evaluation = json.loads((tmp_path / "best_model/evaluation.json").read_text())
        shown = {result.metric_name: result.metric_value for result in card.data.eval_results}
        assert shown[primary] == round(evaluation[primary], 2)
        assert f"| steps | {evaluation['step']} |" in card.text and str(tmp_path / "best_model") in card.text

    # Teacher and queue train beside the model but never reach its folder; every weight that can learn has moved.
    assert not any("training_state" in key for key in final)
    model = load_finetuned(task, tmp_path / "model")
    assert type(model) is HEADS["vicha"][task]
    start = load_file(task_files / "pretrained/model.safetensors")
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    still = {key for key in final.keys() & start.keys() if torch.equal(final[key], start[key])}
    assert still == frozen & final.keys()
    assert AutoProcessor.from_pretrained(tmp_path / "model").image_processor.size == {"height": 32, "width": 32}

    again = main(options(task_files, name, tmp_path, f"--resume_from_checkpoint={tmp_path / 'checkpoint-00000002'}"))
    assert again.metrics == result.metrics
    assert reproducible_log(tmp_path) == log
    resumed = load_file(tmp_path / "model/model.safetensors")
    assert all(torch.equal(tensor, resumed[key]) for key, tensor in final.items())


@pytest.mark.parametrize("method", ["itm", "itc"])
def test_the_better_heat_map_of_the_validation_is_saved_with_the_model(
    method, task_files, script, tmp_path, monkeypatch
):
    main = script("finetune_grounding")
    monkeypatch.setitem(main.__globals__, "choose_grounding_method", lambda metrics: method)
    result = main(options(task_files, "finetune_grounding", tmp_path, "--max_steps=1"))
    assert result.metrics["accuracy"] == result.metrics[f"accuracy_{method}"]
    for folder in ("model", "best_model"):
        config = json.loads((tmp_path / folder / "config.json").read_text())
        assert (config["grounding_method"], config["grounding_layer"]) == (method, result.metrics[f"layer_{method}"])


def test_a_layer_chosen_for_the_other_method_is_forgotten(task_files, script, tmp_path):
    main = script("finetune_grounding")
    chosen = ("--model.config.grounding_method=itc", "--model.config.grounding_layer=0")
    for method, layer in (("itc", 0), ("itm", None)):
        arguments = (f"--data.method={method}", "--data.every_layer=false", "--max_steps=1")
        main(options(task_files, "finetune_grounding", tmp_path / method, *arguments, *chosen))
        config = json.loads((tmp_path / method / "model/config.json").read_text())
        assert (config["grounding_method"], config["grounding_layer"]) == (method, layer)


def test_every_evaluation_tries_the_layer_that_was_given(task_files, script, tmp_path, monkeypatch):
    """What one evaluation chooses changes nothing for the next, so that a resumed run sees what the whole one saw."""
    main, tried = script("finetune_grounding"), []
    evaluate, chosen = main.__globals__["evaluate_grounding"], iter(["itc", "itm"])

    def remember(*args, **kwargs):
        tried.append(kwargs["layers"])
        return evaluate(*args, **kwargs)

    monkeypatch.setitem(main.__globals__, "evaluate_grounding", remember)
    monkeypatch.setitem(main.__globals__, "choose_grounding_method", lambda metrics: next(chosen))
    given = ("--model.config.grounding_method=itm", "--model.config.grounding_layer=3", "--data.every_layer=false")
    main(options(task_files, "finetune_grounding", tmp_path, *given, "--max_steps=2", "--evaluation_steps=1"))
    assert tried == [{"itm": 3}, {"itm": 3}]
    config = json.loads((tmp_path / "model/config.json").read_text())
    assert (config["grounding_method"], config["grounding_layer"]) == ("itm", 3)


def test_a_tied_head_that_the_folder_has_is_not_called_new(task_files, script, tmp_path, caplog, monkeypatch):
    logger = logging.getLogger("vicha_hf.training.finetuning")
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    caplog.set_level(logging.INFO, logger.name)
    script("finetune_vqa")(options(task_files, "finetune_vqa", tmp_path, "--max_steps=1"))
    (told,) = {message for message in caplog.messages if "starts them" in message}
    assert told.endswith("has no answer_decoder: fine-tuning for vqa starts them.")


# Learning rate, its end, epochs, batch per GPU and image size of ViCHA, then of SIMLA: the recipes of the papers.
RECIPES = {
    "retrieval_flickr30k": (1e-5, 1e-6, 10, (16, 380), (32, 384)),
    "retrieval_coco": (1e-5, 1e-6, 5, (16, 380), (32, 384)),
    "grounding_refcoco_plus": (1e-5, 1e-6, 5, (16, 380), (32, 384)),
    "vqa_v2": (2e-5, 1e-6, 8, (16, 384), (32, 384)),
    "entailment_snli_ve": (2e-5, 1e-6, 5, (16, 380), (32, 384)),
    "reasoning_nlvr2": (2e-5, 1e-6, 10, (8, 384), (8, 384)),
    "text_assignment": (2e-5, 1e-5, 1, (32, None), (64, None)),
}
CANDIDATES = {"retrieval_flickr30k": 128, "retrieval_coco": 256, "vqa_v2": 128}


def read_recipe(config, script, family="vicha"):
    task = "vqa" if config == "easy_vqa" else config.split("_")[0]
    main = script("pretrain_text_assignment" if task == "text" else f"finetune_{task}")
    classes = [value for value in main.__globals__.values() if isinstance(value, type)]
    # The script's own arguments, or the shared ones.
    own = max(
        (value for value in classes if issubclass(value, FinetuningArguments)), key=lambda value: len(value.__mro__)
    )
    return parse_arguments(
        own, [f"--config={CONFIGS.parent / family / config}.yaml", "--output_dir=out", "--data.train=train.json"]
    )[0]


@pytest.mark.parametrize("config", ["easy_vqa", "retrieval_tiny", "vqa_tiny", "text_assignment_tiny"])
def test_every_recipe_is_understood_by_its_script(config, script):
    read_recipe(config, script)


@pytest.mark.parametrize("family", ["vicha", "simla"])
@pytest.mark.parametrize("config", RECIPES)
def test_the_papers_recipes(config, family, script):
    arguments = read_recipe(config, script, family)
    *shared, vicha, simla = RECIPES[config]
    assert [arguments.learning_rate, arguments.min_learning_rate, arguments.num_epochs] == shared
    own = (arguments.per_device_batch_size, arguments.model.image_size)
    assert own == (simla if family == "simla" else vicha)
    assert arguments.lr_schedule == "published" and arguments.weight_decay == 0.02
    assert arguments.warmup_learning_rate == 1e-5 and arguments.warmup_steps == (400 if config == "vqa_v2" else 100)
    assert arguments.ramp_distillation_alpha == (config != "entailment_snli_ve")
    data = arguments.data
    crop = {"grounding_refcoco_plus": None, "text_assignment": (0.2, 1.0)}.get(config, (0.5, 1.0))
    assert data.crop_scale == crop and data.randaugment and data.hflip
    if config in CANDIDATES:
        assert data.rerank_k == CANDIDATES[config]
    # Of captions SIMLA keeps more tokens; questions are cut at 25 by both. Null is the folder's limit: 25 by default.
    longest = {"vqa_v2": 25}.get(config, 30 if family == "simla" and config.startswith("retrieval") else None)
    assert data.max_text_length == longest


def test_the_answers_stand_beside_the_model_and_the_predictions_are_the_servers(task_files, script, tmp_path):
    script("finetune_vqa")(options(task_files, "finetune_vqa", tmp_path, "--max_steps=1"))
    # 8 of the 12 images are not red.
    assert json.loads((tmp_path / "model/answer_list.json").read_text()) == ["white tree", "red"]
    predictions = json.loads((tmp_path / "predictions.json").read_text())
    assert [entry["question_id"] for entry in predictions] == list(range(100, 100 + NUM_IMAGES))
    assert all(entry.keys() == {"question_id", "answer"} for entry in predictions)


def test_reasoning_takes_over_what_text_assignment_learned(task_files, script, tmp_path):
    first = tmp_path / "assignment"
    script("pretrain_text_assignment")(options(task_files, "pretrain_text_assignment", first, "--max_steps=2"))
    learned = load_file(first / "model/model.safetensors")
    # A step too small to see leaves what was loaded. Muon's has a rate of its own.
    still = [
        "--max_steps=1",
        "--optimizer=adamw",
        "--learning_rate=1e-12",
        "--min_learning_rate=0",
        "--warmup_learning_rate=0",
    ]
    start = [f"--model.from_pretrained={first / 'model'}"]
    script("finetune_reasoning")(options(task_files, "finetune_reasoning", tmp_path / "second", *start, *still))
    loaded = load_file(tmp_path / "second/model/model.safetensors")
    shared = {name for name in loaded if name.startswith(("vicha.", "image_pair_encoder."))}
    assert any(name.startswith("image_pair_encoder.") for name in shared)
    assert all(torch.allclose(loaded[name], learned[name], atol=1e-8) for name in shared)


def test_larger_images_interpolate_the_positions_of_the_folder(task_files, script, tmp_path):
    script("finetune_entailment")(
        options(task_files, "finetune_entailment", tmp_path, "--model.image_size=48", "--max_steps=1")
    )
    model = load_finetuned("entailment", tmp_path / "model")
    assert model.config.vision_config.image_size == 48
    assert AutoProcessor.from_pretrained(tmp_path / "model").image_processor.size == {"height": 48, "width": 48}


@pytest.mark.parametrize("name", ["finetune_vqa", "finetune_grounding"])
def test_frozen_images_and_adapters_in_the_text(name, task_files, script, tmp_path):
    script(name)(options(task_files, name, tmp_path, "--model.freeze=[vision_model]", "--model.lora.r=4"))
    start, final = (load_file(path / "model.safetensors") for path in (task_files / "pretrained", tmp_path / "model"))
    load_finetuned(SCRIPTS[name][0], tmp_path / "model")
    moved = {key for key in start.keys() & final.keys() if not torch.equal(start[key], final[key])}
    layer = "vicha.text_model.encoder.layer.0.attention.self"
    assert not any(".vision_model." in key for key in moved)
    assert f"{layer}.query.weight" in moved and not {f"{layer}.key.weight", f"{layer}.query.bias"} & moved


def test_text_only_sees_no_image(task_files, script, tmp_path):
    records = json.loads((task_files / "entailment.json").read_text())
    for record in records:
        record |= {"image": str(task_files / "0.png"), "concepts": ["snow"]}
    (tmp_path / "one_image.json").write_text(json.dumps(records))
    blind = options(task_files, "finetune_entailment", tmp_path / "a", "--data.text_only=true")
    script("finetune_entailment")(blind)
    other = [f"--data.train={tmp_path / 'one_image.json'}", f"--data.validation={tmp_path / 'one_image.json'}"]
    # The images lie in another folder than the annotations.
    other.append("--data.allow_outside_root=true")
    blind = options(task_files, "finetune_entailment", tmp_path / "b", "--data.text_only=true", *other)
    script("finetune_entailment")(blind)
    assert reproducible_log(tmp_path / "a") == reproducible_log(tmp_path / "b")
    seeing = options(task_files, "finetune_entailment", tmp_path / "c", *other)
    script("finetune_entailment")(seeing)
    assert reproducible_log(tmp_path / "c") != reproducible_log(tmp_path / "b")


def test_random_weights_of_any_size(task_files, script, tmp_path):
    sizes = "{hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 2"
    script("finetune_vqa")(
        [
            f"--config={CONFIGS / 'easy_vqa.yaml'}",
            f"--output_dir={tmp_path}",
            f"--data.train={task_files / 'vqa.json'}",
            f"--data.validation={task_files / 'vqa.json'}",
            "--data.answer_list=null",
            f"--data.tokenizer={task_files / 'pretrained'}",
            f"--model.vision_config={sizes}, image_size: 32, patch_size: 8}}",
            f"--model.text_config={sizes}, fusion_layer: 1, max_position_embeddings: 32}}",
            "--per_device_batch_size=4",
            "--max_steps=1",
            "--trackers=[]",
        ]
    )
    model = load_finetuned("vqa", tmp_path / "model")
    assert model.config.text_config.hidden_size == 16 and model.config.text_config.cls_token_id == 2
    assert AutoProcessor.from_pretrained(tmp_path / "model").image_processor.size == {"height": 32, "width": 32}


def bad_record(task_files, task, **fields):
    records = json.loads((task_files / f"{task}.json").read_text())
    records[5] |= fields
    path = task_files / f"bad_{task}.json"
    path.write_text(json.dumps(records))
    return path


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("finetune_retrieval", {"caption": " "}, "caption"),
        ("finetune_vqa", {"answer": []}, "answer"),
        ("finetune_vqa", {"image": None}, "image"),
        ("finetune_entailment", {"label": "perhaps"}, "label"),
        ("finetune_reasoning", {"images": ["0.png"]}, "images"),
        ("finetune_grounding", {"bbox": [4, 4, 0, 20]}, "bbox"),
        ("finetune_grounding", {"boxes": [[5, 5, 20, 20], [30, 10, 40, 20]]}, "boxes"),
        ("pretrain_text_assignment", {"image": "nowhere.png"}, "image"),
    ],
)
def test_a_bad_record_stops_before_training_or_is_skipped_and_counted(
    name, fields, message, task_files, script, tmp_path, caplog
):
    path = bad_record(task_files, SCRIPTS[name][1].removesuffix(".json"), **fields)
    sources = [f"--data.train={path}", *([] if SCRIPTS[name][2] is None else [f"--data.validation={path}"])]
    arguments = options(task_files, name, tmp_path, *sources, "--max_steps=1")
    with pytest.raises(AnnotationError, match=rf"(?s)bad_.*record 5: field '{message}'"):
        script(name)(arguments)
    assert not (tmp_path / "log.jsonl").exists()
    with caplog.at_level(logging.WARNING):
        assert script(name)([*arguments, "--data.on_bad_record=skip"]).step == 1
    assert f"11 of 12 records usable, 1 not\n  1 x field '{message}'" in caplog.text


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("finetune_grounding", ["--data.text_only=true"], "nothing to ground in"),
        ("pretrain_text_assignment", ["--data.validation=x.json"], "no evaluation"),
        ("finetune_vqa", ["--model.text_config.no_such_field=1"], "no such field"),
        ("finetune_vqa", ["--data.max_text_length=100"], "24 text positions"),
    ],
)
def test_impossible_arguments_are_errors(name, overrides, message, task_files, script, tmp_path):
    with pytest.raises(ValueError, match=message):
        script(name)(options(task_files, name, tmp_path, *overrides))
