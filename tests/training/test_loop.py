import json
import logging
import math
import os
import signal

import pytest
import torch
from safetensors.torch import load_file
from stand_in import Samples, StandIn, WithoutRandomness, collate, evaluate, stand_in_arguments, stand_in_loop
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vicha_hf.training.checkpoints import list_checkpoints
from vicha_hf.training.run_log import MACHINE_FIELDS, read_log


def reproducible(records):
    return [{name: value for name, value in record.items() if name not in MACHINE_FIELDS} for record in records]


def weights(loop):
    return {name: tensor.clone() for name, tensor in loop.unwrapped_model.state_dict().items()}


def assert_equal_weights(left, right):
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


@pytest.mark.parametrize(
    ("changes", "steps"),
    [({"max_steps": 1}, 1), ({"num_epochs": 1}, 5), ({"num_epochs": 3}, 15), ({"max_steps": 7}, 7)],
    ids=["one step", "one epoch", "many epochs", "inside an epoch"],
)
def test_every_length_of_run_ends_alike(tmp_path, changes, steps):
    loop = stand_in_loop(stand_in_arguments(tmp_path, **changes), evaluate=evaluate, primary_metric="r_mean")
    result = loop.run()
    assert (result.step, result.interrupted) == (steps, False)
    assert list_checkpoints(tmp_path)[-1].name == f"checkpoint-{steps:08d}"
    assert (tmp_path / "model/model.safetensors").is_file()
    assert (tmp_path / "best_model/model.safetensors").is_file()
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["step"] == steps and metrics["r_mean"] == result.metrics["r_mean"]
    assert metrics["train_seconds"] > 0
    records = [record for record in read_log(tmp_path) if "evaluation" not in record]
    assert [record["step"] for record in records] == list(range(1, steps + 1))
    assert records[0]["learning_rate"] == pytest.approx(1e-3)
    assert records[0]["distillation_alpha"] == 0.0


def test_runs_of_every_length_begin_alike(tmp_path):
    logs = []
    for name, changes in (("one", {"max_steps": 1}), ("epoch", {"num_epochs": 1}), ("many", {"num_epochs": 3})):
        stand_in_loop(stand_in_arguments(tmp_path / name, **changes)).run()
        logs.append(reproducible(read_log(tmp_path / name))[0])
    assert logs[0] == logs[1] == logs[2]


def test_a_record_holds_every_loss_and_the_state_of_the_run(tmp_path):
    stand_in_loop(stand_in_arguments(tmp_path, max_steps=2)).run()
    record = read_log(tmp_path)[-1]
    assert set(record) == {
        "step",
        "epoch",
        "loss",
        "itc_loss",
        "mlm_loss",
        "learning_rate",
        "distillation_alpha",
        "grad_norm",
        "temperature",
        "skipped_steps",
        "samples_per_second",
        "eta_seconds",
        "memory_gib",
        "train_seconds",
    }
    assert record["loss"] == pytest.approx(record["itc_loss"] + record["mlm_loss"])


def test_a_record_averages_the_steps_since_the_last_one(tmp_path):
    stand_in_loop(stand_in_arguments(tmp_path / "each")).run()
    stand_in_loop(stand_in_arguments(tmp_path / "third", logging_steps=3)).run()
    each, third = read_log(tmp_path / "each"), read_log(tmp_path / "third")
    assert [record["step"] for record in third] == [3, 6, 9, 10]
    assert third[1]["loss"] == pytest.approx(sum(record["loss"] for record in each[3:6]) / 3)
    assert third[1]["learning_rate"] == each[5]["learning_rate"]


def test_alpha_ramps_over_the_first_epoch(tmp_path):
    loop = stand_in_loop(stand_in_arguments(tmp_path))
    loop.run()
    assert loop.unwrapped_model.alphas == pytest.approx([0.0, 0.08, 0.16, 0.24, 0.32, 0.4, 0.4, 0.4, 0.4, 0.4])


def test_alpha_without_ramp_is_constant(tmp_path):
    loop = stand_in_loop(stand_in_arguments(tmp_path, max_steps=2, ramp_distillation_alpha=False))
    loop.run()
    assert loop.unwrapped_model.alphas == [0.4, 0.4]


class SometimesWithoutTeacher(StandIn):
    def forward(self, inputs, image_ids, distillation_alpha=None, update_teacher=True, use_teacher=True):
        self.used = [*getattr(self, "used", []), use_teacher]
        return super().forward(inputs, image_ids, distillation_alpha, update_teacher)


@pytest.mark.parametrize(("start", "used"), [(0, [True] * 3), (2, [False, False, True]), (None, [False] * 3)])
def test_the_teacher_takes_part_from_a_step_on(tmp_path, start, used):
    arguments = stand_in_arguments(tmp_path, max_steps=3, teacher_start_step=start, gradient_accumulation_steps=2)
    loop = stand_in_loop(arguments, model_class=SometimesWithoutTeacher)
    loop.run()
    assert loop.unwrapped_model.used == [value for value in used for _ in range(2)]
    assert [record["distillation_alpha"] > 0 for record in read_log(tmp_path)][1:] == used[1:]


class DrawsNegatives(StandIn):
    def forward(self, inputs, image_ids, distillation_alpha=None, update_teacher=True, negative_hardness=1.0):
        self.hardness = [*getattr(self, "hardness", []), negative_hardness]
        return super().forward(inputs, image_ids, distillation_alpha, update_teacher)


def test_negatives_become_harder(tmp_path):
    loop = stand_in_loop(stand_in_arguments(tmp_path, max_steps=6, hard_negative_steps=4), model_class=DrawsNegatives)
    loop.run()
    assert loop.unwrapped_model.hardness == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    with pytest.raises(ValueError, match=r"hard_negative_steps=4 .*StandIn draws no negatives"):
        stand_in_loop(stand_in_arguments(tmp_path / "other", hard_negative_steps=4))


def test_a_model_that_always_needs_its_teacher_cannot_wait_for_it(tmp_path):
    with pytest.raises(ValueError, match=r"teacher_start_step=2 .*StandIn needs its teacher"):
        stand_in_loop(stand_in_arguments(tmp_path, teacher_start_step=2))


def test_the_precision_of_matrix_products_is_that_of_the_run(tmp_path):
    def observe(model, accelerator):
        return evaluate(model, accelerator) | {"is_medium": float(torch.get_float32_matmul_precision() == "medium")}

    arguments = stand_in_arguments(tmp_path, max_steps=1, float32_matmul_precision="medium")
    result = stand_in_loop(arguments, evaluate=observe, primary_metric="r_mean").run()
    assert result.metrics["is_medium"] == 1.0
    assert torch.get_float32_matmul_precision() == "highest"


def test_accumulated_batches_equal_one_big_batch(tmp_path):
    arguments = stand_in_arguments(tmp_path / "whole", per_device_batch_size=8, max_grad_norm=0.05)
    whole = stand_in_loop(arguments, model_class=WithoutRandomness)
    whole.run()
    arguments = stand_in_arguments(
        tmp_path / "parts", per_device_batch_size=2, gradient_accumulation_steps=4, max_grad_norm=0.05
    )
    parts = stand_in_loop(arguments, model_class=WithoutRandomness)
    parts.run()
    assert parts.total_steps == whole.total_steps == 4
    for name, tensor in weights(whole).items():
        assert torch.allclose(tensor, weights(parts)[name], rtol=1e-5, atol=1e-7), name
    assert [record["loss"] for record in read_log(tmp_path / "parts")] == pytest.approx(
        [record["loss"] for record in read_log(tmp_path / "whole")], rel=1e-5
    )


def test_the_teacher_moves_once_per_optimiser_step(tmp_path):
    arguments = stand_in_arguments(tmp_path, per_device_batch_size=2, gradient_accumulation_steps=2)
    loop = stand_in_loop(arguments)
    assert loop.run().step == 10
    assert loop.unwrapped_model.teacher_updates.item() == 10


def test_gradients_are_clipped(tmp_path, monkeypatch):
    stand_in_loop(stand_in_arguments(tmp_path, max_steps=1)).run()
    free = read_log(tmp_path)[0]["grad_norm"]

    seen = []

    arguments = stand_in_arguments(tmp_path / "clipped", max_steps=1, max_grad_norm=free / 10)
    loop = stand_in_loop(arguments)
    step = loop.optimizer.step

    def watched_step():
        gradients = [p.grad for p in loop.model.parameters() if p.grad is not None]
        seen.append(torch.stack([gradient.norm() for gradient in gradients]).norm().item())
        step()

    monkeypatch.setattr(loop.optimizer, "step", watched_step)
    loop.run()
    assert read_log(tmp_path / "clipped")[0]["grad_norm"] == pytest.approx(free)
    assert seen == [pytest.approx(free / 10, rel=1e-3)]


def test_evaluation_leaves_training_as_it_is(tmp_path):
    alone = stand_in_loop(stand_in_arguments(tmp_path / "alone"))
    alone.run()
    watched = stand_in_loop(
        stand_in_arguments(tmp_path / "watched", evaluation_steps=1), evaluate=evaluate, primary_metric="r_mean"
    )
    watched.run()
    assert_equal_weights(weights(alone), weights(watched))


def test_the_best_evaluation_is_kept(tmp_path):
    scores = iter([1.0, 3.0, 2.0])
    seen = []

    def scripted(model, accelerator):
        assert not model.training and not torch.is_grad_enabled()
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"r_mean": next(scores)}

    loop = stand_in_loop(stand_in_arguments(tmp_path, num_epochs=3), evaluate=scripted, primary_metric="r_mean")
    result = loop.run()
    assert (result.best_metric, result.best_step) == (3.0, 10)
    assert_equal_weights(load_file(tmp_path / "best_model/model.safetensors"), seen[1])
    assert_equal_weights(load_file(tmp_path / "model/model.safetensors"), seen[2])


def test_validation_ends_a_run_that_learns_nothing_more(tmp_path):
    def scripted(scores):
        return lambda model, accelerator: {"r_mean": next(scores)}

    arguments = stand_in_arguments(tmp_path / "run", num_epochs=5, early_stopping_evaluations=2)
    loop = stand_in_loop(arguments, evaluate=scripted(iter([1.0, 3.0, 2.0, 3.0, 9.0])), primary_metric="r_mean")
    steps = loop.steps_per_epoch
    result = loop.run()
    # An equal one is no better one.
    assert (result.step, result.best_step, result.interrupted) == (4 * steps, 2 * steps, False)
    assert (tmp_path / "run/model/model.safetensors").is_file()
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert (metrics["step"], metrics["best_step"]) == (4 * steps, 2 * steps)
    again = stand_in_arguments(
        tmp_path / "run", num_epochs=5, early_stopping_evaluations=2, resume_from_checkpoint="latest"
    )
    resumed = stand_in_loop(again, evaluate=scripted(iter([])), primary_metric="r_mean").run()
    assert (resumed.step, resumed.interrupted) == (4 * steps, False)
    with pytest.raises(ValueError, match="early_stopping_evaluations=2"):
        stand_in_loop(stand_in_arguments(tmp_path / "other", early_stopping_evaluations=2))


def test_a_missing_primary_metric_is_an_error(tmp_path):
    loop = stand_in_loop(stand_in_arguments(tmp_path), evaluate=lambda *_: {"r1": 1.0}, primary_metric="r_mean")
    with pytest.raises(KeyError, match="r_mean"):
        loop.run()


def test_sigterm_saves_and_stops(tmp_path):
    class Terminated(Samples):
        def __getitem__(self, index):
            if self.epoch == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__getitem__(index)

    whole = stand_in_loop(stand_in_arguments(tmp_path / "whole"))
    whole.run()
    before = signal.getsignal(signal.SIGTERM)
    result = stand_in_loop(stand_in_arguments(tmp_path / "cut"), dataset=Terminated()).run()
    assert (result.step, result.interrupted) == (6, True)
    assert signal.getsignal(signal.SIGTERM) == before
    assert not (tmp_path / "cut/model").exists()
    arguments = stand_in_arguments(tmp_path / "cut", resume_from_checkpoint="latest")
    resumed = stand_in_loop(arguments)
    assert not resumed.run().interrupted
    assert_equal_weights(weights(whole), weights(resumed))


def test_bf16_keeps_losses_finite_and_weights_in_fp32(tmp_path):
    loop = stand_in_loop(stand_in_arguments(tmp_path, max_steps=2, mixed_precision="bf16"))
    loop.run()
    assert all(tensor.dtype != torch.bfloat16 for tensor in weights(loop).values())
    assert all(math.isfinite(record["loss"]) for record in read_log(tmp_path))


def test_workers_do_not_change_the_run(tmp_path):
    alone = stand_in_loop(stand_in_arguments(tmp_path / "alone"))
    alone.run()
    helped = stand_in_loop(stand_in_arguments(tmp_path / "helped", num_workers=2))
    helped.run()
    assert_equal_weights(weights(alone), weights(helped))


def test_a_small_dataset_is_announced(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        stand_in_loop(stand_in_arguments(tmp_path), dataset=Samples(size=3)).run()
    assert "samples are repeated" in caplog.text


def test_tensorboard_gets_the_losses(tmp_path):
    stand_in_loop(stand_in_arguments(tmp_path, max_steps=1, trackers=["tensorboard"])).run()
    events = EventAccumulator(str(tmp_path / "tracking/vicha_hf"))
    events.Reload()
    assert {"train/loss", "train/itc_loss", "train/learning_rate"} <= set(events.Tags()["scalars"])


@pytest.mark.parametrize(("name", "hint"), [("imags_ids", r" \(it takes 'image_ids'\)"), ("captions", "")])
def test_a_name_that_the_model_does_not_take_is_an_error(tmp_path, name, hint):
    class Swallowing(StandIn):
        def forward(self, inputs, image_ids=None, distillation_alpha=None, update_teacher=True, **kwargs):
            return super().forward(inputs, image_ids, distillation_alpha, update_teacher)

    def misspelt(samples):
        batch = collate(samples)
        return {"inputs": batch["inputs"], name: batch["image_ids"]}

    loop = stand_in_loop(stand_in_arguments(tmp_path), model_class=Swallowing, collator=misspelt)
    with pytest.raises(TypeError, match=rf"the batch holds '{name}', .* of Swallowing does not take{hint}: rename"):
        loop.run()
