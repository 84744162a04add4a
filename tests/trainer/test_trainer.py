"""transformers' Trainer with defaults only, every head: train, evaluate, keep the best model, go on exactly."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from simla_models import simla_config
from tiny_models import tiny_config
from tiny_task_files import write_task_files
from trainer_cases import build, data_of, trainer_of

from vicha_hf.cli import main
from vicha_hf.data.datasets_pretraining import PretrainingDataset
from vicha_hf.data.transforms import EvaluationTransform
from vicha_hf.families import HEADS
from vicha_hf.training.trainer_callback import TrainingStateCallback
from vicha_hf.visual_tokens.storage import VisualTokenStore


CASES = [(family, task) for family, heads in HEADS.items() for task in heads]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_task_files(tmp_path_factory.mktemp("tasks"))


def config_of(family, task):
    # Dropout, so that going on exactly is worth a test.
    text = {"hidden_dropout_prob": 0.1}
    if family == "vicha":
        return tiny_config(text_config=text)
    # The tokens of SIMLA's reconstruction come from a tokenizer of its own.
    return simla_config(text_config=text, mim_weight=0.0)


@pytest.mark.parametrize(("family", "task"), CASES)
def test_every_head_trains_and_keeps_its_best_model(files, tmp_path, family, task):
    model = build(family, task, config_of(family, task))
    dataset, collator = data_of(files, family, task, tmp_path)
    seen = []

    def compute_metrics(prediction):
        seen.append(prediction.predictions)
        return {"parts": len(prediction.predictions)}

    trainer = trainer_of(
        model,
        dataset,
        collator,
        tmp_path / "out",
        max_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
    )
    trainer.compute_metrics = compute_metrics
    trainer.train()
    losses = [record["eval_loss"] for record in trainer.state.log_history if "eval_loss" in record]
    assert len(losses) == 2 and np.isfinite(losses).all() and trainer.state.best_metric == min(losses)
    # Nothing of a model that is judged is drawn at random.
    assert trainer.evaluate()["eval_loss"] == trainer.evaluate()["eval_loss"]
    arrays = seen[-1] if isinstance(seen[-1], tuple) else (seen[-1],)
    assert arrays and all(isinstance(array, np.ndarray) for array in arrays)


def test_simla_reconstructs_stored_visual_tokens(files, tmp_path):
    model = build("simla", "pretraining", simla_config())
    plain, collator = data_of(files, "simla", "pretraining", tmp_path)
    with pytest.raises(ValueError, match=r"store them with `vicha-hf visual-tokens` and give them to the dataset"):
        trainer_of(model, plain, collator, tmp_path / "out", max_steps=1).train()
    data = ["--data", str(files / "retrieval.json"), "--image-size", "32"]
    sizes = ["--vocab-size", str(model.config.visual_vocab_size), "--patch-size", "8"]
    assert main(["visual-tokenizer", *data, *sizes, "--output", str(tmp_path / "tokenizer")]) == 0
    tokens = tmp_path / "tokens.safetensors"
    assert main(["visual-tokens", *data, "--tokenizer", str(tmp_path / "tokenizer"), "--output", str(tokens)]) == 0
    dataset = PretrainingDataset(
        plain.annotations,
        EvaluationTransform((32, 32)),
        use_concepts=False,
        stored_visual_tokens=VisualTokenStore(tokens),
    )
    trainer = trainer_of(model, dataset, collator, tmp_path / "out", max_steps=2)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] == trainer.evaluate()["eval_loss"]


def whole_and_interrupted(files, folder, family, task, tokenizer_folder=None, **arguments):
    """
    The model of four steps, and that of two and two more in a new Trainer, from a new model. Processes that train together
    each need a `tokenizer_folder` of their own: it is written anew.
    """
    models = []
    for name, steps in (("whole", (4,)), ("cut", (2, 4))):
        for number, count in enumerate(steps):
            model = build(family, task, config_of(family, task))
            dataset, collator = data_of(files, family, task, tokenizer_folder or folder)
            trainer = trainer_of(
                model,
                dataset,
                collator,
                folder / name,
                [TrainingStateCallback()],
                max_steps=count,
                save_steps=2,
                lr_scheduler_type="constant",
                learning_rate=1e-3,
                **arguments,
            )
            trainer.train(resume_from_checkpoint=number > 0)
        models.append(trainer.model)
    return models


@pytest.mark.parametrize(("family", "task"), [("vicha", "pretraining"), ("simla", "vqa")])
def test_training_goes_on_exactly(files, tmp_path, family, task):
    whole, cut = whole_and_interrupted(files, tmp_path, family, task)
    expected, observed = whole.state_dict(), cut.state_dict()
    assert any("teacher" in name for name in expected) and expected.keys() == observed.keys()
    different = [name for name, value in expected.items() if not torch.equal(value, observed[name])]
    assert not different
    # The folder for inference has neither.
    assert not any("training_state" in name for name in load_file(tmp_path / "cut/checkpoint-4/model.safetensors"))


def test_two_processes_go_on_exactly(files, tmp_path):
    completed = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
            *(str(Path(__file__).with_name("two_process_worker.py")), str(files), str(tmp_path)),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert completed.returncode == 0, completed.stderr[-4000:]
    reports = [json.loads((tmp_path / f"report_{rank}.json").read_text()) for rank in range(2)]
    assert reports == [{"processes": 2, "different": [], "teacher": True}] * 2


def test_a_checkpoint_without_teacher_is_refused(files, tmp_path):
    dataset, collator = data_of(files, "vicha", "retrieval", tmp_path)
    model = build("vicha", "retrieval", config_of("vicha", "retrieval"))
    trainer_of(model, dataset, collator, tmp_path / "out", max_steps=1, save_steps=1).train()
    trainer = trainer_of(
        model, dataset, collator, tmp_path / "out", [TrainingStateCallback()], max_steps=2, save_steps=1
    )
    with pytest.raises(FileNotFoundError, match=r"checkpoint-1 has no training_state.safetensors"):
        trainer.train(resume_from_checkpoint=True)
