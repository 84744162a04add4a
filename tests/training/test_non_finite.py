"""Losses and gradients that are not finite: named, stopped at or skipped, and told apart from the overflows of fp16."""

import json
import logging

import pytest
import torch
from killed_runs import make_corpus
from stand_in import Samples, StandIn, collate, stand_in_arguments, stand_in_loop

from vicha_hf.data.annotations import read_image_text_records
from vicha_hf.data.datasets_pretraining import PretrainingDataset
from vicha_hf.training.checkpoints import PROGRESS_FILE, list_checkpoints
from vicha_hf.training.non_finite import NonFiniteLossError
from vicha_hf.training.run_log import MACHINE_FIELDS, read_log


class NamedSamples(Samples):
    def describe_sample(self, index):
        return f"images/{index}.png"


class InfiniteGradient(StandIn):
    """The derivative of sqrt at 0 is infinite while its value is not."""

    def forward(self, inputs, image_ids):
        return {"loss": (self.temperature * 0).sqrt().sum() + self.encoder(inputs).mean()}


class InfiniteOnce(StandIn):
    """An infinite loss in the third step, whose batch also reaches the queue."""

    def forward(self, inputs, image_ids, distillation_alpha=None, update_teacher=True):
        if self.teacher_updates == 2 and len(self.alphas) == 2:
            inputs = inputs * float("inf")
        return super().forward(inputs, image_ids, distillation_alpha, update_teacher)


def weights(loop):
    return {name: tensor.clone() for name, tensor in loop.unwrapped_model.state_dict().items()}


def reproducible_log(folder):
    return [
        {name: value for name, value in record.items() if name not in MACHINE_FIELDS} for record in read_log(folder)
    ]


def test_the_message_names_step_loss_and_samples(tmp_path):
    loop = stand_in_loop(stand_in_arguments(tmp_path), dataset=NamedSamples(bad_index=13))
    with pytest.raises(NonFiniteLossError) as error:
        loop.run()
    message = str(error.value)
    batches = loop.order.batches(0, 0)
    step = next(number for number, batch in enumerate(batches, start=1) if 13 in batch)
    assert f"step {step}: itc_loss is not finite" in message
    assert "itc_loss=nan" in message
    assert f"dataset indices {batches[step - 1]}" in message and "1013" in message
    # Of the batch only the bad one is to blame.
    assert "inputs of 13 is not finite" in message and message.count("images/") == 1
    assert "13 is images/13.png" in message
    # The log ends before it, at the same count.
    assert len(read_log(tmp_path)) == step - 1


@pytest.mark.parametrize("captions", ["one", "all"])
def test_the_datasets_name_image_and_record(tmp_path, captions):
    make_corpus(tmp_path)
    records = json.loads((tmp_path / "train.json").read_text())
    records[0]["caption"] = ["a dog", "two dogs"]
    (tmp_path / "train.json").write_text(json.dumps(records))
    annotations = read_image_text_records(str(tmp_path / "train.json"))
    dataset = PretrainingDataset(annotations, transform=None, captions=captions)
    named = dataset.describe_sample(3)
    expected = 3 if captions == "one" else 2
    assert f"{expected}.png" in named and "train.json" in named


def test_only_the_forward_pass_that_failed_is_named(tmp_path):
    arguments = stand_in_arguments(tmp_path, per_device_batch_size=2, gradient_accumulation_steps=2)
    loop = stand_in_loop(arguments, dataset=NamedSamples(bad_index=13))
    with pytest.raises(NonFiniteLossError) as error:
        loop.run()
    batches = loop.order.batches(0, 0)
    failed = next(number for number, batch in enumerate(batches) if 13 in batch)
    assert str(batches[failed]) in str(error.value) and str(batches[failed ^ 1]) not in str(error.value)


def test_all_samples_are_named_where_none_is_to_blame(tmp_path):
    loop = stand_in_loop(stand_in_arguments(tmp_path), model_class=InfiniteOnce, dataset=NamedSamples())
    with pytest.raises(NonFiniteLossError) as error:
        loop.run()
    assert all(f"{index} is images/{index}.png" in str(error.value) for index in loop.order.batches(0, 0)[2])


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path):
    loop = stand_in_loop(stand_in_arguments(tmp_path), model_class=InfiniteGradient)
    before = weights(loop)
    with pytest.raises(NonFiniteLossError, match=r"step 1: the norm of the gradient is (nan|inf), though every loss"):
        loop.run()
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(loop).items())


def test_a_skipped_step_leaves_weights_and_queue_alone_and_is_counted(tmp_path, caplog):
    arguments = stand_in_arguments(tmp_path, on_non_finite_loss="skip")
    loop = stand_in_loop(arguments, dataset=NamedSamples(bad_index=13))
    batches = [batch for epoch in range(2) for batch in loop.order.batches(epoch, 0)]
    bad_steps = [number for number, batch in enumerate(batches, start=1) if 13 in batch]
    assert len(bad_steps) == 2
    states = {}

    def after_step(report, original=loop._after_step):
        states[loop.progress.step] = (weights(loop), report)
        original(report)

    loop._after_step = after_step
    with caplog.at_level(logging.WARNING):
        assert loop.run().step == 10
    moved = {"encoder.0.weight", "encoder.3.bias", "temperature", "queue"}
    for step, (after, report) in states.items():
        assert report.skipped == (step in bad_steps)
        before = states[step - 1][0] if step > 1 else None
        for name in moved if before is not None else ():
            assert torch.equal(before[name], after[name]) == report.skipped, (step, name)
        assert all(tensor.isfinite().all() for tensor in after.values())
    records = read_log(tmp_path)
    assert [record["skipped_steps"] for record in records] == [
        sum(bad <= record["step"] for bad in bad_steps) for record in records
    ]
    assert all(("loss" in record) == (record["step"] not in bad_steps) for record in records)
    assert json.loads((tmp_path / "metrics.json").read_text())["skipped_steps"] == 2
    assert caplog.text.count("Skipped: step") == 2 and "13 is images/13.png" in caplog.text
    progress = json.loads((list_checkpoints(tmp_path)[-1] / PROGRESS_FILE).read_text())["progress"]
    assert progress["skipped_steps"] == 2


def test_a_window_averages_the_steps_that_were_taken(tmp_path):
    stand_in_loop(
        stand_in_arguments(tmp_path, on_non_finite_loss="skip", logging_steps=5), dataset=Samples(bad_index=13)
    ).run()
    records = read_log(tmp_path)
    assert [record["step"] for record in records] == [5, 10]
    assert all(record["loss"] == record["loss"] for record in records)


def test_skipping_resumes_exactly(tmp_path):
    runs = {}
    for name, steps in (("whole", [10]), ("cut", [3, 7, 10])):
        for limit in steps:
            arguments = stand_in_arguments(
                tmp_path / name,
                on_non_finite_loss="skip",
                max_steps=limit,
                resume_from_checkpoint="latest",
                lr_schedule="published",
                warmup_steps=0,
            )
            runs[name] = stand_in_loop(arguments, dataset=Samples(bad_index=13))
            runs[name].run()
    for name, tensor in weights(runs["whole"]).items():
        assert torch.equal(tensor, weights(runs["cut"])[name]), name
    assert reproducible_log(tmp_path / "cut") == reproducible_log(tmp_path / "whole")


def test_skipping_does_not_go_on_for_ever(tmp_path):
    arguments = stand_in_arguments(tmp_path, on_non_finite_loss="skip", max_consecutive_skips=3)
    loop = stand_in_loop(arguments, model_class=InfiniteGradient)
    with pytest.raises(NonFiniteLossError, match=r"step 4: .* step 4 in a row; max_consecutive_skips=3"):
        loop.run()


def test_deepspeed_cannot_skip(tmp_path, monkeypatch):
    loop = stand_in_loop(stand_in_arguments(tmp_path))
    monkeypatch.setattr(type(loop.accelerator), "distributed_type", "DEEPSPEED")
    with pytest.raises(ValueError, match="on_non_finite_loss='skip' is not possible with DeepSpeed"):
        type(loop)(
            StandIn(),
            stand_in_arguments(tmp_path, on_non_finite_loss="skip"),
            Samples(),
            collate,
            loop.accelerator,
        )


class Overflowing(StandIn):
    """Loss and gradient are finite, but not once they are scaled by `limit` or more."""

    limit = 1e3

    def forward(self, inputs, image_ids, distillation_alpha=None, update_teacher=True):
        output = super().forward(inputs, image_ids, distillation_alpha, update_teacher)
        output["loss"].register_hook(lambda scale: scale.masked_fill(scale >= self.limit, float("inf")))
        return output


def with_loss_scaling(loop):
    """What Accelerate sets up for fp16 on a GPU, for a CPU, with the computation itself in fp32."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    accelerator, optimizer = loop.accelerator, loop.optimizer
    accelerator.scaler = optimizer.scaler = scaler
    accelerator.native_amp = True
    accelerator.state._mixed_precision = "fp16"
    # Again, now that there is a scaler, as its constructor does.
    type(optimizer).__init__(optimizer, optimizer.optimizer, device_placement=False, scaler=scaler)
    return loop


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_overflows_of_the_loss_scaling_are_its_own_business(tmp_path, policy):
    loop = stand_in_loop(stand_in_arguments(tmp_path, on_non_finite_loss=policy), model_class=Overflowing)
    start = weights(loop)
    assert with_loss_scaling(loop).run().step == 10
    records = read_log(tmp_path)
    # 2^16 is too much, and so is every scale down to 2^10: seven overflows.
    assert [record["loss_scale"] for record in records[:8]] == [2.0**power for power in (15, 14, 13, 12, 11, 10, 9, 9)]
    assert [("grad_norm" in record) for record in records] == [False] * 7 + [True] * 3
    assert all(record["skipped_steps"] == 0 for record in records)
    assert not torch.equal(start["encoder.0.weight"], weights(loop)["encoder.0.weight"])


def test_what_is_infinite_at_every_loss_scale_is_not_the_scaling(tmp_path):
    class AlwaysInfinite(Overflowing):
        limit = 0.0

    loop = stand_in_loop(stand_in_arguments(tmp_path, num_epochs=9), model_class=AlwaysInfinite)
    with pytest.raises(NonFiniteLossError, match="step 17: the norm of the gradient"):
        with_loss_scaling(loop).run()


def test_a_nan_loss_under_loss_scaling_can_be_skipped(tmp_path):
    loop = stand_in_loop(stand_in_arguments(tmp_path, on_non_finite_loss="skip"), dataset=Samples(bad_index=13))
    with_loss_scaling(loop).run()
    assert loop.progress.skipped_steps == 2
    assert all(tensor.isfinite().all() for tensor in weights(loop).values())


def test_one_read_per_step(tmp_path, monkeypatch):
    """On a GPU each of these makes the processor wait for the device."""
    reads = []

    class Watched(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function in (torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.__bool__, torch.Tensor.__float__):
                reads.append(function.__name__)
            return function(*args, **(kwargs or {}))

    class Quiet(Samples):
        def __getitem__(self, index):
            with torch._C.DisableTorchFunction():
                return super().__getitem__(index)

    loop = stand_in_loop(stand_in_arguments(tmp_path, max_steps=4, logging_steps=4), dataset=Quiet())
    # On a CPU, AdamW reads numbers of its own.
    monkeypatch.setattr(loop.optimizer, "step", lambda: None)
    step = loop.optimizer_step.take

    def watched_step(*args):
        with Watched():
            return step(*args)

    monkeypatch.setattr(loop.optimizer_step, "take", watched_step)
    loop.run()
    assert reads == ["tolist"] * 4
