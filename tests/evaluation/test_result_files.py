"""Results are whole or untouched, and whether they can be written is known before the evaluation."""

import json
import os
import shutil

import pytest
from tiny_model_folder import write_gallery, write_model_folder

from vicha_hf.cli import main
from vicha_hf.evaluation import task_evaluation
from vicha_hf.evaluation.task_result import ResultFiles, TaskResult
from vicha_hf.folder_lock import FolderInUseError, locked_folder
from vicha_hf.whole_files import OutputFolderError, write_whole_files


OLD, NEW = TaskResult({"accuracy": 50.0}, ["old"] * 1000), TaskResult({"accuracy": 60.0}, ["new"] * 1000)


@pytest.mark.parametrize("leaving", [0, 4096, 8192])
def test_a_full_disk_leaves_earlier_results_as_they_were(small_disk, leaving):
    files = ResultFiles(small_disk / "results", small_disk / "metrics.json")
    files.write(OLD, task="vqa")
    before = {path: path.read_bytes() for path in small_disk.rglob("*.json")}
    (small_disk / "filling").write_bytes(b"0" * (shutil.disk_usage(small_disk).free - leaving))
    with pytest.raises(OutputFolderError, match=r"could not be written to .* What was saved before is intact"):
        files.write(NEW, task="vqa")
    (small_disk / "filling").unlink()
    assert {path: path.read_bytes() for path in small_disk.rglob("*") if path.is_file()} == before
    files.write(NEW, task="vqa")
    assert json.loads((small_disk / "results" / "metrics.json").read_text()) == {"accuracy": 60.0, "task": "vqa"}
    assert json.loads((small_disk / "results" / "predictions.json").read_text()) == NEW.predictions


def test_no_file_is_replaced_before_all_are_written(tmp_path, monkeypatch):
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    write_whole_files(dict.fromkeys(paths, "old"))
    synced = []

    def fail_the_second_time(descriptor):
        synced.append(descriptor)
        if len(synced) == 2:
            raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", fail_the_second_time)
    with pytest.raises(OutputFolderError, match=r"b\.json could not be written"):
        write_whole_files(dict.fromkeys(paths, "new"))
    assert [path.read_text() for path in paths] == ["old", "old"]
    assert sorted(tmp_path.iterdir()) == paths


def test_a_folder_in_use_is_refused_before_the_evaluation(tmp_path, capsys, monkeypatch):
    write_model_folder(tmp_path / "model")
    monkeypatch.setattr(task_evaluation, "evaluate_task", lambda *arguments, **options: pytest.fail("it began"))
    command = ["evaluate", str(tmp_path / "model"), str(write_gallery(tmp_path)), "--output-dir", str(tmp_path)]
    with locked_folder(tmp_path):
        assert main(command) == 1
    assert "is in use by another run" in capsys.readouterr().err.splitlines()[-1]
    files = ResultFiles(tmp_path / "results")
    with pytest.raises(FolderInUseError):
        ResultFiles(tmp_path / "results")
    files.write(TaskResult({"accuracy": 1.0}, []))
    ResultFiles(tmp_path / "results").write(TaskResult({"accuracy": 2.0}, []))


def test_what_cannot_be_written_is_refused_before_the_evaluation(tmp_path, capsys, monkeypatch):
    write_model_folder(tmp_path / "model")
    annotations = write_gallery(tmp_path)
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "taken" / "metrics.json").mkdir(parents=True)

    def evaluated(*arguments, **options):
        raise AssertionError("the evaluation began")

    monkeypatch.setattr(task_evaluation, "evaluate_task", evaluated)
    command = ["evaluate", str(tmp_path / "model"), str(annotations)]
    for options, named in (
        (["--output-dir", str(tmp_path / "file" / "results")], "file/results"),
        (["--output-dir", str(tmp_path / "taken")], "taken/metrics.json is a folder"),
        (["--json", str(tmp_path / "taken")], "taken is a folder"),
        (["--json", "/proc/metrics.json"], "/proc/metrics.json cannot be written"),
    ):
        assert main([*command, *options]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("vicha-hf evaluate: ") and named in error
