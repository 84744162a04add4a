import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from colour_images import write_colour_images
from datasets import Dataset
from safetensors.torch import load_file
from tiny_tokenizer import build_tiny_tokenizer
from transformers import AutoModelForPreTraining, AutoProcessor

from vicha_hf import ViChaForPreTraining
from vicha_hf.training import optimizer_step
from vicha_hf.training.checkpoints import PROGRESS_FILE, list_checkpoints
from vicha_hf.training.run_log import MACHINE_FIELDS, read_log


ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("fresh_accelerate")
LOSSES = {"loss", "itc_loss", "hierarchical_itc_loss", "itm_loss", "mlm_loss", "mim_loss"}
SMALL_MODEL = [
    "--model.vision_config={hidden_size: 32, intermediate_size: 64, num_hidden_layers: 3, num_attention_heads: 2, image_size: 32}",
    "--model.text_config={hidden_size: 32, intermediate_size: 64, num_hidden_layers: 4, num_attention_heads: 2, fusion_layer: 2}",
    "--model.config.projection_dim=16",
    "--model.config.mim_decoder_hidden_size=32",
    "--model.config.queue_size=12",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """12 plain images with a caption and concepts each, as JSON and as JSONL, and a tokenizer."""
    root = tmp_path_factory.mktemp("corpus")
    records = [
        {"image": f"{index}.png", "caption": f"a {colour} dog on the grass", "concepts": [colour, "dog", "grass"]}
        for index, colour in enumerate(write_colour_images(root, 12))
    ]
    (root / "train.json").write_text(json.dumps(records))
    (root / "validation.jsonl").write_text("\n".join(json.dumps(record) for record in records[:4]))
    build_tiny_tokenizer(root).save_pretrained(root / "tokenizer")
    return root


def options(corpus, output_dir, *overrides):
    return [
        f"--config={ROOT / 'examples/configs/vicha/tiny.yaml'}",
        f"--output_dir={output_dir}",
        f"--data.train={corpus / 'train.json'}",
        f"--data.validation={corpus / 'validation.jsonl'}",
        f"--data.tokenizer={corpus / 'tokenizer'}",
        "--per_device_batch_size=4",
        "--max_steps=4",
        "--logging_steps=1",
        "--checkpoint_steps=2",
        "--evaluation_steps=null",
        # The papers' step, with the teacher from the start.
        "--teacher_start_step=0",
        "--float32_matmul_precision=highest",
        "--mixed_precision=null",
        "--model.config.distillation_alpha=0.4",
        *SMALL_MODEL,
        *overrides,
    ]


@pytest.fixture(scope="module")
def pretrain(script):
    return script("pretrain")


def reproducible_log(folder):
    return [
        {name: value for name, value in record.items() if name not in MACHINE_FIELDS} for record in read_log(folder)
    ]


def launch(arguments, *launcher, **environment):
    completed = subprocess.run(
        [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            *launcher,
            str(ROOT / "examples/pretrain.py"),
            *arguments,
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert completed.returncode == 0, completed.stderr[-4000:]
    return completed


@pytest.fixture
def double_precision(monkeypatch):
    """Models, and the images that they are given, in float64."""
    forward, cache = ViChaForPreTraining.forward, optimizer_step.cache_contrast

    def doubled(batch):
        return {
            name: value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
            for name, value in batch.items()
        }

    # The loop reads the names of its arguments.
    wrapped = functools.wraps(forward)(lambda self, **batch: forward(self, **doubled(batch)))
    monkeypatch.setattr(ViChaForPreTraining, "forward", wrapped)
    monkeypatch.setattr(
        optimizer_step, "cache_contrast", lambda model, batches: cache(model, [doubled(batch) for batch in batches])
    )
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_cached_micro_batches_contrast_as_one_batch(corpus, pretrain, tmp_path, double_precision):
    """
    What draws at random per forward pass is off: the contrasts are left, and dropout of none. In float32 rounding errors
    grow from step to step, most visibly in the mean similarity of pairs, which is nearly 0.
    """
    contrast = [
        # Muon makes every direction of a gradient equally long, those of rounding errors too.
        "--optimizer=adamw",
        # There is no matching head to re-rank with.
        "--data.validation=null",
        "--model.text_config.hidden_dropout_prob=0",
        "--model.text_config.attention_probs_dropout_prob=0",
        *(f"--model.config.{name}_weight=0" for name in ("hierarchical_itc", "itm", "mlm", "mim")),
    ]
    parts = [*contrast, "--per_device_batch_size=2", "--gradient_accumulation_steps=2"]
    pretrain(options(corpus, tmp_path / "whole", *contrast))
    pretrain(options(corpus, tmp_path / "cached", *parts, "--gradient_caching=true"))
    uninterrupted = reproducible_log(tmp_path / "cached")
    shutil.rmtree(list_checkpoints(tmp_path / "cached")[-1])
    pretrain(
        options(corpus, tmp_path / "cached", *parts, "--gradient_caching=true", "--resume_from_checkpoint=latest")
    )
    whole, cached = (reproducible_log(tmp_path / name) for name in ("whole", "cached"))
    assert cached == uninterrupted
    for record, other in zip(whole, cached, strict=True):
        assert other.keys() == record.keys() >= {"itc_loss", "grad_norm"}
        # How hard the hardest negative of a process's batch is depends on its size.
        for name in record.keys() - {"hardest_negative_similarity", "contrast_accuracy"}:
            assert other[name] == pytest.approx(record[name], rel=1e-6), (record["step"], name)


@pytest.mark.parametrize(
    "chosen",
    [
        ["--model.lora.r=4", "--model.lora.dropout=0.1", "--model.freeze=[concept_model]"],
        ["--optimizer=adamw_8bit"],
        ["--optimizer=muon", "--model.vision_config.stem=convolutional"],
        # Checkpoints of the recipes for one's own images kept one of a queue's empty buffers.
        ["--model.config.queue_size=0", "--teacher_start_step=null"],
    ],
    ids=["adapters", "8 bit", "muon", "no queue"],
)
def test_options_resume_as_if_never_stopped(corpus, pretrain, tmp_path, chosen):
    large = "--model.text_config.intermediate_size=128"
    given = [*chosen, large, "--learning_rate=1e-2", "--warmup_learning_rate=1e-2"]
    pretrain(options(corpus, tmp_path, *given))
    log, weights = reproducible_log(tmp_path), load_file(tmp_path / "model/model.safetensors")
    state = load_file(tmp_path / "checkpoint-00000004/model.safetensors")
    shutil.rmtree(tmp_path / "checkpoint-00000004")
    pretrain(options(corpus, tmp_path, *given, "--resume_from_checkpoint=latest"))
    assert reproducible_log(tmp_path) == log
    for before, path in ((weights, "model"), (state, "checkpoint-00000004")):
        after = load_file(tmp_path / path / "model.safetensors")
        assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    _, info = AutoModelForPreTraining.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not any("lora" in name for name in weights)
    if "--optimizer=adamw_8bit" in chosen:
        moments = torch.load(tmp_path / "checkpoint-00000004/optimizer.bin", weights_only=True)["state"]
        kinds = {each["__bnb_optimizer_quant_state__"]["state1"].dtype for each in moments.values()}
        assert kinds == {torch.uint8, torch.float32}


def test_a_run_writes_everything_and_resuming_changes_nothing(corpus, pretrain, tmp_path):
    result = pretrain(options(corpus, tmp_path))
    assert (result.step, result.interrupted) == (4, False)
    log = reproducible_log(tmp_path)
    training = [record for record in log if "evaluation" not in record]
    assert [record["step"] for record in training] == [1, 2, 3, 4]
    assert training[0].keys() >= LOSSES
    assert training[0]["learning_rate"] == pytest.approx(1e-5)
    # Three steps make an epoch: the ramp ends with it.
    assert [record["distillation_alpha"] for record in training] == pytest.approx([0, 0.4 / 3, 0.8 / 3, 0.4])
    assert [record["step"] for record in log if "evaluation" in record] == [3, 4]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["num_images"] == 4 and metrics["step"] == 4 and "r_mean" in metrics
    assert (tmp_path / "config.yaml").is_file() and any((tmp_path / "tracking").rglob("events*"))

    final = load_file(tmp_path / "model/model.safetensors")
    assert not any("training_state" in name for name in final)
    checkpoint = tmp_path / "checkpoint-00000002"
    assert any("training_state.queue" in name for name in load_file(checkpoint / "model.safetensors"))

    # The checkpoint is a folder for `from_pretrained` itself.
    model, info = AutoModelForPreTraining.from_pretrained(checkpoint, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and model.training_state is None
    saved = load_file(checkpoint / "model.safetensors")
    assert all(torch.equal(value, saved.get(name, value)) for name, value in model.state_dict().items())
    assert AutoProcessor.from_pretrained(checkpoint).max_text_length == 25

    # Nobody goes on with other settings or data without a word.
    records = json.loads((corpus / "train.json").read_text())
    records[1]["caption"] = "a dog that was not there"
    (tmp_path / "other.json").write_text(json.dumps(records))
    changed = [
        f"--data.train={tmp_path / 'other.json'}",
        f"--data.image_root={corpus}",
        "--data.crop_scale=[0.5, 1.0]",
    ]
    changed += ["--model.config.itm_weight=0.25"]
    with pytest.raises(ValueError, match="belongs to a run with other settings") as error:
        pretrain(options(corpus, tmp_path, *changed, "--resume_from_checkpoint=latest"))
    for name in ("data.crop_scale", "fingerprint of the training data", "model.config.itm_weight"):
        assert f"{name} was " in str(error.value)
    assert str(error.value).count(" was ") == 3 and reproducible_log(tmp_path) == log

    # In the middle of the first epoch, in a new run of the script.
    again = pretrain(options(corpus, tmp_path, f"--resume_from_checkpoint={checkpoint}"))
    assert again.metrics == result.metrics
    assert reproducible_log(tmp_path) == log
    resumed = load_file(tmp_path / "model/model.safetensors")
    assert final.keys() == resumed.keys()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in final.items())


def test_the_final_folder_loads_and_can_be_pretrained_further_on_a_dataset(corpus, pretrain, tmp_path):
    pretrain(options(corpus, tmp_path / "first", "--max_steps=1", "--data.validation=null"))
    model = AutoModelForPreTraining.from_pretrained(tmp_path / "first/model")
    assert model.training_state is None
    processor = AutoProcessor.from_pretrained(tmp_path / "first/model")
    assert processor.max_text_length == 25
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}

    records = json.loads((corpus / "train.json").read_text())
    Dataset.from_list(records).save_to_disk(tmp_path / "dataset")
    source = {"path": str(tmp_path / "dataset")}
    data = [f"--data.train={source}", f"--data.image_root={corpus}", "--trackers=[]", "--num_workers=0"]
    rates = ["--learning_rate=1e-2", "--warmup_steps=0", "--per_device_batch_size=4", "--max_steps=2"]
    pretrain(
        [f"--output_dir={tmp_path / 'second'}", f"--model.from_pretrained={tmp_path / 'first/model'}", *data, *rates]
    )
    after = AutoModelForPreTraining.from_pretrained(tmp_path / "second/model")
    moved = {name for name, parameter in after.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == before.keys()


def test_a_tokenizer_that_does_not_fit_the_model_is_an_error(corpus, pretrain, tmp_path):
    with pytest.raises(ValueError, match=r"text_config.cls_token_id=1 .*this one has 2"):
        pretrain(options(corpus, tmp_path, "--model.text_config.cls_token_id=1"))


def test_an_evaluation_that_could_not_re_rank_is_refused_before_the_first_step(corpus, pretrain, tmp_path):
    with pytest.raises(ValueError, match=r"model\.config\.itm_weight=0.* no head to re-rank with"):
        pretrain(options(corpus, tmp_path, "--model.config.itm_weight=0", "--data.validation=nowhere.json"))
    assert not (tmp_path / "log.jsonl").exists()


def test_accelerate_launch_gives_the_same_run(corpus, pretrain, tmp_path):
    overrides = ["--max_steps=2", "--data.validation=null", "--trackers=[]"]
    pretrain(options(corpus, tmp_path / "here", *overrides))
    config = ROOT / "examples/accelerate_configs/cpu.yaml"
    completed = launch(options(corpus, tmp_path / "launched", *overrides), "--config_file", str(config))
    assert reproducible_log(tmp_path / "launched") == reproducible_log(tmp_path / "here")
    for name in ("loss", "itc", "hierarchical_itc", "itm", "mlm", "mim", "lr", "alpha"):
        assert f"{name}=" in completed.stderr


def test_two_processes_pretrain_together(corpus, tmp_path):
    arguments = options(corpus, tmp_path, "--per_device_batch_size=2", "--max_steps=2")
    launcher = ["--multi_gpu", "--num_processes=2", "--main_process_port=0"]
    launch(arguments, *launcher, ACCELERATE_USE_CPU="true")
    progress = json.loads((list_checkpoints(tmp_path)[-1] / PROGRESS_FILE).read_text())
    assert progress["data_order"]["num_processes"] == 2
    records = [record for record in read_log(tmp_path) if "evaluation" not in record]
    assert [record["step"] for record in records] == [1, 2]
    assert records[0].keys() >= LOSSES
    assert (tmp_path / "model/model.safetensors").is_file()


def test_two_processes_with_every_option_beyond_the_papers(corpus, tmp_path):
    arguments = options(
        corpus,
        tmp_path,
        "--per_device_batch_size=2",
        "--max_steps=2",
        "--gradient_accumulation_steps=2",
        "--gradient_caching=true",
        "--model.lora.r=4",
        "--model.freeze=[concept_model]",
        "--model.config.patch_dropout=0.5",
        "--optimizer=adamw_8bit",
    )
    launch(arguments, "--multi_gpu", "--num_processes=2", "--main_process_port=0", ACCELERATE_USE_CPU="true")
    records = [record for record in read_log(tmp_path) if "evaluation" not in record]
    assert [record["step"] for record in records] == [1, 2] and records[0].keys() >= LOSSES
    # One optimiser step takes in two micro-batches of two processes, once.
    state = load_file(list_checkpoints(tmp_path)[-1] / "model.safetensors")
    assert (state["training_state.queue.num_batches"].item(), state["training_state.queue.num_filled"].item()) == (
        2,
        12,
    )
    # The teacher follows the weights that the adapters make, and has none of its own.
    adapters = [name for name in state if ".lora_A." in name]
    assert adapters and not any(name.startswith("training_state.teacher") for name in adapters)
