import json

import pytest
import torch
from safetensors.torch import load_file
from stand_in import Samples, evaluate, stand_in_arguments, stand_in_loop

from vicha_hf.training import checkpoints
from vicha_hf.training.checkpoints import find_checkpoint, list_checkpoints
from vicha_hf.training.loop import TrainingLoop
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
    arguments = stand_in_arguments(tmp_path, resume_from_checkpoint="latest", seed=43)
    loop = stand_in_loop(arguments, dataset=Samples(size=24))
    with pytest.raises(ValueError, match=r"dataset_size was 20 and is 24; seed was 42 and is 43"):
        loop.run()


def test_missing_random_states_are_an_error(tmp_path):
    stand_in_loop(stand_in_arguments(tmp_path)).run()
    next(list_checkpoints(tmp_path)[-1].glob("random_states_0*")).unlink()
    with pytest.raises(FileNotFoundError, match="random_states_0"):
        stand_in_loop(stand_in_arguments(tmp_path, resume_from_checkpoint="latest")).run()


def test_progress_is_readable(tmp_path):
    stand_in_loop(stand_in_arguments(tmp_path)).run()
    content = json.loads((list_checkpoints(tmp_path)[-1] / checkpoints.PROGRESS_FILE).read_text())
    assert content["progress"]["step"] == 10
    assert content["data_order"]["dataset_size"] == 20


def test_training_time_adds_up_over_interruptions(tmp_path):
    class Slow(TrainingLoop):
        def _session_seconds(self):
            return 100.0

    stand_in_loop(stand_in_arguments(tmp_path, checkpoint_steps=4, max_steps=4), loop_class=Slow).run()
    arguments = stand_in_arguments(tmp_path, checkpoint_steps=4, resume_from_checkpoint="latest")
    assert stand_in_loop(arguments, loop_class=Slow).run().train_seconds == 200.0
