import dataclasses
import json
import shutil

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from stand_in import Samples, WithoutRandomness, evaluate, stand_in_arguments, stand_in_loop

from vicha_hf.training import checkpoints
from vicha_hf.training.checkpoint_manifest import DamagedCheckpointError, write_manifest
from vicha_hf.training.checkpoints import find_checkpoint, list_checkpoints
from vicha_hf.training.loop import TrainingLoop
from vicha_hf.training.non_finite import NonFiniteLossError
from vicha_hf.training.run_clock import RunClock
from vicha_hf.training.run_log import MACHINE_FIELDS, read_log


class Killed(Exception):
    pass


class KilledInEpoch(Samples):
    """Dies when it is asked for the `after`-th sample."""

    def __init__(self, after):
        super().__init__()
        self.left = after

    def __getitem__(self, index):
        self.left -= 1
        if self.left < 0:
            raise Killed
        return super().__getitem__(index)


def state(loop):
    tensors = {f"model.{name}": tensor for name, tensor in loop.unwrapped_model.state_dict().items()}
    for index, entry in loop.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in entry.items()}
    return {name: tensor.clone() for name, tensor in tensors.items()}


def log(folder):
    return [
        {name: value for name, value in record.items() if name not in MACHINE_FIELDS} for record in read_log(folder)
    ]


def assert_same_run(left, left_loop, right, right_loop):
    expected, actual = state(left_loop), state(right_loop)
    assert expected.keys() == actual.keys()
    different = [name for name in expected if not torch.equal(expected[name], actual[name])]
    assert not different
    assert log(left) == log(right)


SETTINGS = {
    "plain": {"checkpoint_steps": 2},
    "log window open": {"checkpoint_steps": 2, "logging_steps": 3},
    "accumulating": {"checkpoint_steps": 2, "per_device_batch_size": 2, "gradient_accumulation_steps": 2},
    "published schedule": {"checkpoint_steps": 2, "lr_schedule": "published", "warmup_steps": 0},
    "after each epoch": {},
}


@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("samples", [14, 30], ids=["first epoch", "second epoch"])
def test_a_run_killed_in_an_epoch_continues_bit_for_bit(tmp_path, changes, samples):
    evaluation = {"evaluate": evaluate, "primary_metric": "r_mean"}
    whole = stand_in_loop(stand_in_arguments(tmp_path / "whole", **changes), **evaluation)
    expected = whole.run()
    with pytest.raises(Killed):
        stand_in_loop(
            stand_in_arguments(tmp_path / "cut", **changes), dataset=KilledInEpoch(after=samples), **evaluation
        ).run()
    arguments = stand_in_arguments(tmp_path / "cut", resume_from_checkpoint="latest", **changes)
    resumed = stand_in_loop(arguments, **evaluation)
    # Whatever happened in this process before must not matter.
    torch.manual_seed(12345)
    actual = resumed.run()
    assert_same_run(tmp_path / "whole", whole, tmp_path / "cut", resumed)
    assert (actual.metrics, actual.best_metric, actual.best_step) == (
        expected.metrics,
        expected.best_metric,
        expected.best_step,
    )


def test_a_run_killed_while_saving_continues_from_the_checkpoint_before(tmp_path, monkeypatch):
    whole = stand_in_loop(stand_in_arguments(tmp_path / "whole", checkpoint_steps=2))
    whole.run()
    cut = stand_in_loop(stand_in_arguments(tmp_path / "cut", checkpoint_steps=2))
    save_state = cut.accelerator.save_state

    def save_half(folder):
        save_state(folder)
        if "00000004" in folder:
            raise Killed

    monkeypatch.setattr(cut.accelerator, "save_state", save_half)
    with pytest.raises(Killed):
        cut.run()
    assert [path.name for path in list_checkpoints(tmp_path / "cut")] == ["checkpoint-00000002"]
    assert any("unfinished" in path.name for path in (tmp_path / "cut").iterdir())
    resumed = stand_in_loop(stand_in_arguments(tmp_path / "cut", checkpoint_steps=2, resume_from_checkpoint="latest"))
    resumed.run()
    assert_same_run(tmp_path / "whole", whole, tmp_path / "cut", resumed)
    assert not any("unfinished" in path.name for path in (tmp_path / "cut").iterdir())


def test_an_older_checkpoint_can_be_chosen(tmp_path):
    arguments = stand_in_arguments(tmp_path, checkpoint_steps=3, keep_last_checkpoints=10)
    whole = stand_in_loop(arguments)
    whole.run()
    before = log(tmp_path)
    again = stand_in_loop(
        stand_in_arguments(
            tmp_path,
            checkpoint_steps=3,
            keep_last_checkpoints=10,
            resume_from_checkpoint=str(tmp_path / "checkpoint-00000003"),
        )
    )
    again.run()
    assert log(tmp_path) == before
    assert state(again).keys() == state(whole).keys()
    assert all(torch.equal(tensor, state(again)[name]) for name, tensor in state(whole).items())


def test_a_finished_run_resumes_to_nothing(tmp_path):
    expected = stand_in_loop(stand_in_arguments(tmp_path)).run()
    before = read_log(tmp_path)
    actual = stand_in_loop(stand_in_arguments(tmp_path, resume_from_checkpoint="latest")).run()
    assert actual == expected
    assert read_log(tmp_path) == before


def test_old_checkpoints_are_deleted(tmp_path):
    stand_in_loop(stand_in_arguments(tmp_path, checkpoint_steps=2, keep_last_checkpoints=3)).run()
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "checkpoint-00000006",
        "checkpoint-00000008",
        "checkpoint-00000010",
    ]
    assert not any(path.name.startswith(".") for path in tmp_path.iterdir())


def test_weights_are_safetensors_and_hold_the_training_state(tmp_path):
    loop = stand_in_loop(stand_in_arguments(tmp_path))
    loop.run()
    saved = load_file(list_checkpoints(tmp_path)[-1] / "model.safetensors")
    assert {"queue", "teacher.weight", "teacher_updates"} <= saved.keys()


def test_latest_is_the_last_complete_checkpoint(tmp_path):
    for name, complete in (
        ("checkpoint-00000002", True),
        ("checkpoint-00000010", True),
        ("checkpoint-00000012", False),
        (".checkpoint-00000014.unfinished", True),
    ):
        (tmp_path / name).mkdir()
        if complete:
            (tmp_path / name / checkpoints.PROGRESS_FILE).write_text("{}")
            write_manifest(tmp_path / name)
    assert find_checkpoint(tmp_path, "latest").name == "checkpoint-00000010"
    with pytest.raises(FileNotFoundError, match=r"not a complete checkpoint.*checkpoint-00000010"):
        find_checkpoint(tmp_path, str(tmp_path / "checkpoint-00000012"))


def test_latest_without_checkpoints_starts_anew(tmp_path):
    assert find_checkpoint(tmp_path / "new", "latest") is None
    assert stand_in_loop(stand_in_arguments(tmp_path, resume_from_checkpoint="latest")).run().step == 10


def test_a_new_run_does_not_mix_with_an_old_one(tmp_path):
    stand_in_loop(stand_in_arguments(tmp_path)).run()
    with pytest.raises(FileExistsError, match="--resume_from_checkpoint latest"):
        stand_in_loop(stand_in_arguments(tmp_path)).run()


def test_another_data_order_is_refused(tmp_path):
    stand_in_loop(stand_in_arguments(tmp_path)).run()
    arguments = stand_in_arguments(tmp_path, resume_from_checkpoint="latest", seed=43, per_device_batch_size=2)
    loop = stand_in_loop(arguments, dataset=Samples(size=24))
    with pytest.raises(
        ValueError, match=r"dataset_size was 20 and is 24; seed was 42 and is 43; .*4 x 1 x 1 = 4 and "
    ):
        loop.run()


def flip_bytes(path, count=4000):
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    for position in range(middle, min(len(content), middle + count)):
        content[position] ^= 0xFF
    path.write_bytes(content)


DAMAGES = {
    "flipped bytes": lambda folder: flip_bytes(folder / "model.safetensors"),
    "cut": lambda folder: (folder / "optimizer.bin").write_bytes((folder / "optimizer.bin").read_bytes()[:100]),
    "empty": lambda folder: (folder / "random_states_0.pkl").write_bytes(b""),
    "gone": lambda folder: (folder / "random_states_0.pkl").unlink(),
    "manifest cut": lambda folder: (folder / "manifest.json").write_text('{"files": {"model'),
    "manifest gone": lambda folder: (folder / "manifest.json").unlink(),
    "progress flipped": lambda folder: flip_bytes(folder / "progress.json", 3),
}


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A run of 10 steps with checkpoints after 6, 8 and 10."""
    folder = tmp_path_factory.mktemp("finished")
    loop = stand_in_loop(stand_in_arguments(folder, checkpoint_steps=2, keep_last_checkpoints=3))
    loop.run()
    return folder, state(loop)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_latest_passes_over_a_damaged_checkpoint_and_says_so(tmp_path, caplog, finished_run, damage):
    finished, weights = finished_run
    folder = shutil.copytree(finished, tmp_path / "run")
    damage(folder / "checkpoint-00000010")
    arguments = stand_in_arguments(
        folder, checkpoint_steps=2, keep_last_checkpoints=3, resume_from_checkpoint="latest"
    )
    resumed = stand_in_loop(arguments)
    with caplog.at_level("INFO"):
        resumed.run()
    assert "checkpoint-00000010 is damaged: " in caplog.text and "checkpoint-00000008 at step 8 of 10" in caplog.text
    assert (folder / "checkpoint-00000010.damaged").is_dir()
    names = [f"checkpoint-{step:08d}" for step in (6, 8, 10)]
    assert [path.name for path in list_checkpoints(folder)] == names
    assert all(torch.equal(value, state(resumed)[name]) for name, value in weights.items())


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path, finished_run):
    folder = shutil.copytree(finished_run[0], tmp_path / "run")
    for name in ("checkpoint-00000006", "checkpoint-00000008", "checkpoint-00000010"):
        flip_bytes(folder / name / "model.safetensors", 1)
    for asked, message in (
        (str(folder / "checkpoint-00000008"), r"checkpoint-00000008 is damaged: model.safetensors holds other bytes"),
        ("latest", r"No checkpoint in .* is whole \(checkpoint-00000010: model.safetensors .*checkpoint-00000006"),
    ):
        loop = stand_in_loop(stand_in_arguments(folder, checkpoint_steps=2, resume_from_checkpoint=asked))
        with pytest.raises(DamagedCheckpointError, match=message):
            loop.run()
    assert len(list_checkpoints(folder)) == 3


def test_other_settings_are_refused_by_name_unless_they_are_allowed(tmp_path, caplog):
    stand_in_loop(stand_in_arguments(tmp_path, max_steps=4, checkpoint_steps=4)).run()
    changed = {"learning_rate": 2e-2, "weight_decay": 0.5, "max_steps": 6, "checkpoint_steps": 4}
    arguments = stand_in_arguments(tmp_path, resume_from_checkpoint="latest", **changed)
    with pytest.raises(ValueError, match=r"learning_rate was 0.01 and is 0.02; weight_decay was 0.02 and is 0.5. Use"):
        stand_in_loop(arguments).run()
    assert len(read_log(tmp_path)) == 4
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(ValueError, match=r"mixed_precision was 'no' and is 'bf16'"):
        stand_in_loop(dataclasses.replace(arguments, mixed_precision="bf16")).run()
    AcceleratorState._reset_state(reset_partial_state=True)
    arguments = dataclasses.replace(arguments, allow_changed_settings=True)
    assert stand_in_loop(arguments).run().step == 6
    assert "Going on with other settings" in caplog.text and "weight_decay was 0.02 and is 0.5" in caplog.text


def test_where_how_often_and_how_fast_may_change(tmp_path):
    stand_in_loop(stand_in_arguments(tmp_path, max_steps=4, checkpoint_steps=4)).run()
    free = {"logging_steps": 2, "checkpoint_steps": 3, "keep_last_checkpoints": 5, "gradient_checkpointing": False}
    arguments = stand_in_arguments(tmp_path, resume_from_checkpoint="latest", on_non_finite_loss="skip", **free)
    assert stand_in_loop(arguments).run().step == 10


class Described(Samples):
    """Has a fingerprint, as the package's datasets have."""

    def __init__(self, mark):
        super().__init__()
        self.mark = mark

    def fingerprint(self):
        return self.mark


def test_other_data_of_equal_length_are_refused(tmp_path):
    stand_in_loop(stand_in_arguments(tmp_path, max_steps=4, checkpoint_steps=4), dataset=Described("a")).run()
    arguments = stand_in_arguments(tmp_path, resume_from_checkpoint="latest")
    with pytest.raises(ValueError, match="fingerprint of the training data was 'a' and is 'b'"):
        stand_in_loop(arguments, dataset=Described("b")).run()
    assert stand_in_loop(arguments, dataset=Described("a")).run().step == 10


def test_the_same_samples_in_other_forward_passes_go_on(tmp_path):
    """Nothing is drawn and nothing depends on the batch: the continued run is the unbroken one."""
    # The learning rate does not depend on the length of the run.
    fixed = {"lr_schedule": "published", "warmup_steps": 0, "checkpoint_steps": 4}
    whole = stand_in_loop(stand_in_arguments(tmp_path / "whole", **fixed), model_class=WithoutRandomness)
    whole.run()
    first = stand_in_arguments(tmp_path / "cut", max_steps=4, **fixed)
    stand_in_loop(first, model_class=WithoutRandomness).run()
    second = {"resume_from_checkpoint": "latest", "per_device_batch_size": 2, "gradient_accumulation_steps": 2}
    resumed = stand_in_loop(stand_in_arguments(tmp_path / "cut", **fixed, **second), model_class=WithoutRandomness)
    assert resumed.run().step == 10
    for name, tensor in whole.unwrapped_model.state_dict().items():
        torch.testing.assert_close(resumed.unwrapped_model.state_dict()[name], tensor, rtol=1e-5, atol=1e-7)


def test_weights_that_are_not_finite_are_no_start_and_no_result(tmp_path):
    class Broken(WithoutRandomness):
        def __init__(self):
            super().__init__()
            with torch.no_grad():
                self.encoder[0].bias[1] = float("nan")

    with pytest.raises(NonFiniteLossError, match=r"start from are no use: weights .*\(encoder.0.bias\)"):
        stand_in_loop(stand_in_arguments(tmp_path / "start"), model_class=Broken).run()

    class BreaksAtLast(TrainingLoop):
        def _after_step(self, report):
            if self.progress.step == 10:
                with torch.no_grad():
                    self.unwrapped_model.encoder[0].weight[0, 0] = float("inf")
            super()._after_step(report)

    loop = stand_in_loop(stand_in_arguments(tmp_path / "end", checkpoint_steps=4), loop_class=BreaksAtLast)
    with pytest.raises(NonFiniteLossError, match=r"Step 10 was not saved: .*\(encoder.0.weight\)"):
        loop.run()
    assert [path.name for path in list_checkpoints(tmp_path / "end")] == ["checkpoint-00000004", "checkpoint-00000008"]
    assert not (tmp_path / "end/model").exists()
    with pytest.raises(NonFiniteLossError, match="model was not written"):
        loop.writer.write_model(tmp_path / "end/model")
    assert not (tmp_path / "end/model").exists()


def test_progress_is_readable(tmp_path):
    stand_in_loop(stand_in_arguments(tmp_path)).run()
    content = json.loads((list_checkpoints(tmp_path)[-1] / checkpoints.PROGRESS_FILE).read_text())
    assert content["progress"]["step"] == 10
    assert content["data_order"]["dataset_size"] == 20


def test_training_time_adds_up_over_interruptions(tmp_path, monkeypatch):
    monkeypatch.setattr(RunClock, "seconds_since_start", lambda clock: 100.0)
    stand_in_loop(stand_in_arguments(tmp_path, checkpoint_steps=4, max_steps=4)).run()
    arguments = stand_in_arguments(tmp_path, checkpoint_steps=4, resume_from_checkpoint="latest")
    assert stand_in_loop(arguments).run().train_seconds == 200.0
