"""Full disks, folders that cannot be written to, and runs that die between any two steps of a save."""

import errno
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from stand_in import evaluate, stand_in_arguments, stand_in_loop

from vicha_hf.training import checkpoints
from vicha_hf.training.checkpoints import list_checkpoints
from vicha_hf.training.run_log import RunLog, read_log
from vicha_hf.whole_files import (
    OutputFolderError,
    append_line,
    complete_folder,
    readable_size,
    tidy_up,
    write_whole_file,
    write_whole_lines,
)


class Killed(BaseException):
    """Nothing of the program may run after it."""


def fill(disk, leaving):
    free = shutil.disk_usage(disk).free
    (disk / "filling").write_bytes(b"0" * (free - leaving))
    assert shutil.disk_usage(disk).free == leaving


def weights(loop):
    return {name: tensor.clone() for name, tensor in loop.unwrapped_model.state_dict().items()}


def run_until_full(folder, monkeypatch, cause):
    """Two steps with a checkpoint; the next save goes wrong. Returns the error."""
    arguments = stand_in_arguments(folder, checkpoint_steps=2, keep_last_checkpoints=3)
    loop = stand_in_loop(arguments)
    save = checkpoints.save_checkpoint

    def save_on_full_disk(accelerator, model, output_dir, progress, *others):
        if progress.step == 4:
            cause(accelerator)
        return save(accelerator, model, output_dir, progress, *others)

    monkeypatch.setattr("vicha_hf.training.loop.save_checkpoint", save_on_full_disk)
    with pytest.raises(OutputFolderError) as error:
        loop.run()
    monkeypatch.setattr("vicha_hf.training.loop.save_checkpoint", save)
    return str(error.value)


def assert_continues_exactly(folder, elsewhere):
    assert [path.name for path in list_checkpoints(folder)] == ["checkpoint-00000002"]
    assert not list(folder.glob(".*"))
    resumed = stand_in_loop(stand_in_arguments(folder, checkpoint_steps=2, resume_from_checkpoint="latest"))
    resumed.run()
    whole = stand_in_loop(stand_in_arguments(elsewhere, checkpoint_steps=2))
    whole.run()
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(resumed)[name]), name


def test_a_disk_too_full_is_noticed_before_anything_is_written(small_disk, tmp_path, monkeypatch):
    run = small_disk / "run"
    message = run_until_full(run, monkeypatch, lambda accelerator: fill(small_disk, 8192))
    needed = readable_size(checkpoints.size_of(run / "checkpoint-00000002"))
    assert f"checkpoint-00000004 could not be written to {run}: the disk is too full" in message
    assert f"about {needed} are needed, 8 KiB are free" in message
    assert "--resume_from_checkpoint latest" in message
    (small_disk / "filling").unlink()
    assert_continues_exactly(run, tmp_path / "whole")


# Pages of 4 KiB: it is full within the weights, the optimiser, the random states, and the position.
@pytest.mark.parametrize("leaving", [0, 4096, 12288, 28672])
def test_a_disk_that_fills_up_during_the_save(small_disk, tmp_path, monkeypatch, leaving):
    def cause(accelerator):
        fill(small_disk, leaving)
        # Another program was quicker than the look at the free space.
        monkeypatch.setattr(checkpoints, "checkpoint_size", lambda *_: 0)

    run = small_disk / "run"
    message = run_until_full(run, monkeypatch, cause)
    assert re.search(rf"checkpoint-00000004.* could not be written to {run}|progress.json could not be", message)
    assert "are free" in message and "intact" in message
    (small_disk / "filling").unlink()
    assert_continues_exactly(run, tmp_path / "whole")


@pytest.mark.parametrize("kind", [OSError, Exception])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_every_error_of_writing_is_explained(tmp_path, monkeypatch, number, kind):
    def cause(accelerator):
        def fail(folder):
            (Path(folder) / "model.safetensors").write_bytes(b"half")
            if kind is Exception:
                # As tokenizers says it, of the tokenizer beside the weights.
                raise Exception(f"{os.strerror(number)} (os error {number})")
            raise OSError(number, os.strerror(number), str(Path(folder) / "optimizer.bin"))

        monkeypatch.setattr(accelerator, "save_state", fail)

    message = run_until_full(tmp_path / "cut", monkeypatch, cause)
    assert os.strerror(number) in message
    assert re.search(r"There about [\d.]+ KiB are needed, [\d.]+ GiB are free", message)
    assert_continues_exactly(tmp_path / "cut", tmp_path / "whole")


def test_other_errors_of_a_save_stay_what_they_are(tmp_path, monkeypatch):
    loop = stand_in_loop(stand_in_arguments(tmp_path))

    def fail(folder):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(loop.accelerator, "save_state", fail)
    with pytest.raises(RuntimeError, match=r"^out of memory$"):
        loop.run()


def test_a_full_disk_does_not_hurt_the_log(small_disk):
    log = small_disk / "log.jsonl"
    log.write_text('{"step": 1}\n')
    fill(small_disk, 0)
    with pytest.raises(OutputFolderError, match=r"log.jsonl could not be written .* No space left .* 0 B are free"):
        append_line(log, "x" * 5000)
    with pytest.raises(OutputFolderError, match=r"log.jsonl could not be written"):
        write_whole_file(log, "y" * 5000)
    assert read_log(small_disk) == [{"step": 1}]


def test_a_folder_that_cannot_be_written_to_is_found_at_the_beginning(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    loop = stand_in_loop(stand_in_arguments(small_disk / "run"))
    with pytest.raises(OutputFolderError, match=r"output_dir='.*run' cannot be written to \(Read-only .* free"):
        loop.run()
    assert loop.progress.step == 0


def test_an_existing_read_only_folder_is_found_at_the_beginning(small_disk):
    stand_in_loop(stand_in_arguments(small_disk, max_steps=2, lr_schedule="published", warmup_steps=0)).run()
    before = sorted(small_disk.rglob("*"))
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    loop = stand_in_loop(stand_in_arguments(small_disk, resume_from_checkpoint="latest"))
    with pytest.raises(OutputFolderError, match="choose another --output_dir"):
        loop.run()
    assert loop.progress.step == 0 and sorted(small_disk.rglob("*")) == before


def test_a_file_in_the_place_of_the_folder_is_found_at_the_beginning(tmp_path):
    (tmp_path / "file").touch()
    for place in ("file", "file/run"):
        loop = stand_in_loop(stand_in_arguments(tmp_path / place))
        with pytest.raises(OutputFolderError, match="cannot be written to"):
            loop.run()
        assert loop.progress.step == 0


def test_little_space_is_announced(small_disk, caplog):
    fill(small_disk, 64_000 // 4096 * 4096)
    stand_in_loop(stand_in_arguments(small_disk / "run", max_steps=1, keep_last_checkpoints=40)).run()
    assert "free; 41 more checkpoints will need about" in caplog.text


@pytest.mark.parametrize("count", range(4))
def test_a_kill_between_any_two_renames_keeps_the_old_folder_or_the_new(tmp_path, monkeypatch, count):
    folder = tmp_path / "best_model"
    folder.mkdir()
    (folder / "weights").write_text("old")
    steps = []

    def killing(function):
        def call(*arguments, **options):
            if len(steps) == count:
                raise Killed
            steps.append(function)
            return function(*arguments, **options)

        return call

    # The clearing of old leftovers; the two renames; the deletion of what was replaced.
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killing(Path.rename))
        patch.setattr("vicha_hf.whole_files.shutil.rmtree", killing(shutil.rmtree))
        try:
            with complete_folder(folder, Accelerator(cpu=True)) as unfinished:
                (unfinished / "weights").write_text("new")
        except Killed:
            pass
    tidy_up(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["best_model"]
    assert (folder / "weights").read_text() == ("old" if len(steps) < 4 else "new")


def test_of_two_that_write_one_file_at_once_the_last_has_it_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"

    def lines():
        yield "first\n" * 1000
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 1)
            write_whole_lines(path, ["second\n"] * 10)
            write_whole_file(tmp_path / "b", "second")
        yield "first\n"

    write_whole_lines(path, lines())
    assert path.read_text() == "first\n" * 1001
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.jsonl", "b"]


def test_what_a_killed_run_left_is_tidied_up(tmp_path):
    for name in (".checkpoint-00000004.unfinished", ".checkpoint-00000002.deleted", ".model.replaced", "model"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / ".log.jsonl.unfinished").touch()
    (tmp_path / ".hidden").touch()
    tidy_up(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "model"]


def test_a_kill_while_the_log_is_rewritten_loses_no_record(tmp_path, monkeypatch):
    for step in range(1, 4):
        append_line(tmp_path / "log.jsonl", json.dumps({"step": step}))
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')

    def die(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", die)
        with pytest.raises(Killed):
            RunLog(Accelerator(cpu=True), tmp_path, 2)
    assert [record["step"] for record in read_log(tmp_path)] == [1, 2, 3]
    RunLog(Accelerator(cpu=True), tmp_path, 2)
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


def scripted(scores):
    """An evaluation that knows beforehand what comes out at which step."""

    def evaluate(model, accelerator):
        return {"r_mean": scores[int(model.teacher_updates)]}

    return evaluate


def best(folder):
    note = json.loads((folder / "best_model/evaluation.json").read_text())
    return note["step"], note["best_metric"]


def test_a_best_model_younger_than_the_checkpoint_stays(tmp_path, monkeypatch):
    scores = {2: 1.0, 4: 5.0, 6: 3.0, 8: 5.0, 10: 2.0}
    settings = {"evaluation_steps": 2, "checkpoint_steps": 3}
    evaluation = {"evaluate": scripted(scores), "primary_metric": "r_mean"}
    whole = stand_in_loop(stand_in_arguments(tmp_path / "whole", **settings), **evaluation).run()
    # Of equal ones the earlier.
    assert (whole.best_step, whole.best_metric) == (4, 5.0) == best(tmp_path / "whole")
    loop = stand_in_loop(stand_in_arguments(tmp_path / "cut", **settings), **evaluation)

    def die(report, original=loop._after_step):
        original(report)
        if loop.progress.step == 5:
            raise Killed

    monkeypatch.setattr(loop, "_after_step", die)
    with pytest.raises(Killed):
        loop.run()
    # The checkpoint is of step 3, the best model of step 4.
    assert best(tmp_path / "cut") == (4, 5.0)
    arguments = stand_in_arguments(tmp_path / "cut", resume_from_checkpoint="latest", **settings)
    resumed = stand_in_loop(arguments, **evaluation).run()
    assert (resumed.best_step, resumed.best_metric, resumed.metrics) == (4, 5.0, whole.metrics)
    expected, actual = (load_file(tmp_path / run / "best_model/model.safetensors") for run in ("whole", "cut"))
    assert all(torch.equal(tensor, actual[name]) for name, tensor in expected.items())


def test_a_best_model_younger_than_the_checkpoint_ends_no_run_early(tmp_path, monkeypatch):
    # Compared with the best of step 6, which the killed run leaves, those of steps 2 and 4 would be no better.
    scores = {2: 1.0, 4: 2.0, 6: 3.0, 8: 1.0, 10: 1.0}
    settings = {"evaluation_steps": 2, "checkpoint_steps": 1, "early_stopping_evaluations": 2}
    evaluation = {"evaluate": scripted(scores), "primary_metric": "r_mean"}
    stand_in_loop(stand_in_arguments(tmp_path / "whole", **settings), **evaluation).run()
    arguments = stand_in_arguments(tmp_path / "cut", **settings | {"checkpoint_steps": 7})
    loop = stand_in_loop(arguments, **evaluation)

    def die(report, original=loop._after_step):
        original(report)
        if loop.progress.step == 1:
            loop._save_checkpoint()
        if loop.progress.step == 6:
            raise Killed

    monkeypatch.setattr(loop, "_after_step", die)
    with pytest.raises(Killed):
        loop.run()
    assert best(tmp_path / "cut") == (6, 3.0)
    arguments = stand_in_arguments(tmp_path / "cut", **settings, resume_from_checkpoint="latest")
    resumed = stand_in_loop(arguments, **evaluation).run()
    assert (resumed.step, resumed.best_step, resumed.best_metric) == (10, 6, 3.0)
    for folder in list_checkpoints(tmp_path / "whole"):
        expected, actual = (
            json.loads((tmp_path / run / folder.name / "progress.json").read_text())["progress"]
            for run in ("whole", "cut")
        )
        assert actual | {"train_seconds": 0} == expected | {"train_seconds": 0}


def test_metrics_name_the_best_model_that_is_there(tmp_path):
    # From an earlier checkpoint the run takes another course, which never gets as good.
    settings = {"evaluation_steps": 2, "checkpoint_steps": 2, "keep_last_checkpoints": 9}
    first = {2: 1.0, 4: 5.0, 6: 3.0, 8: 4.0, 10: 2.0}
    stand_in_loop(stand_in_arguments(tmp_path, **settings), evaluate=scripted(first), primary_metric="r_mean").run()
    arguments = stand_in_arguments(tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-00000002"), **settings)
    second = dict.fromkeys(first, 0.5)
    stand_in_loop(arguments, evaluate=scripted(second), primary_metric="r_mean").run()
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["best_step"], metrics["best_metric"]) == best(tmp_path) == (4, 5.0)


def test_a_best_model_that_was_deleted_is_made_anew(tmp_path):
    settings = {"evaluate": evaluate, "primary_metric": "r_mean"}
    stand_in_loop(stand_in_arguments(tmp_path, max_steps=5, lr_schedule="published", warmup_steps=0), **settings).run()
    shutil.rmtree(tmp_path / "best_model")
    arguments = stand_in_arguments(tmp_path, resume_from_checkpoint="latest", lr_schedule="published", warmup_steps=0)
    assert stand_in_loop(arguments, **settings).run().best_step == 10
    assert best(tmp_path)[0] == 10


def test_an_evaluation_without_a_result_is_never_the_best(tmp_path):
    scores = {2: float("nan"), 4: 1.0, 6: float("nan"), 8: 2.0, 10: float("nan")}
    loop = stand_in_loop(
        stand_in_arguments(tmp_path, evaluation_steps=2), evaluate=scripted(scores), primary_metric="r_mean"
    )
    assert loop.run().best_step == 8
