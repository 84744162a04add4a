import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from stand_in import WithoutRandomness, stand_in_arguments, stand_in_loop
from two_process_worker import SHARED

from vicha_hf.training.run_log import MACHINE_FIELDS, read_log


def launch_worker(folder):
    launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    completed = subprocess.run(
        [sys.executable, "-m", *launcher, str(Path(__file__).with_name("two_process_worker.py")), str(folder)],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert completed.returncode == 0, completed.stderr[-4000:]
    return [json.loads((folder / f"report_{rank}.json").read_text()) for rank in range(2)]


def reproducible_log(folder):
    return [
        {name: value for name, value in record.items() if name not in MACHINE_FIELDS} for record in read_log(folder)
    ]


def assert_equals_one_process_with_the_whole_batch(folder):
    alone = stand_in_loop(stand_in_arguments(folder / "alone", per_device_batch_size=8), model_class=WithoutRandomness)
    alone.run()
    for rank in range(2):
        together = torch.load(folder / f"plain_{rank}.pt", weights_only=True)
        for name, tensor in alone.unwrapped_model.state_dict().items():
            assert torch.allclose(tensor, together[name], rtol=1e-5, atol=1e-7), name
    losses = [[record["loss"] for record in read_log(run)] for run in (folder / "alone", folder / "plain")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def assert_one_process_goes_on_where_two_stopped(folder):
    runs = []
    for name, options in (("shared", {"resume_from_checkpoint": "latest"}), ("unbroken", {})):
        arguments = stand_in_arguments(folder / name, per_device_batch_size=8, **SHARED, **options)
        runs.append(stand_in_loop(arguments, model_class=WithoutRandomness))
        assert runs[-1].run().step == 4
    for name, tensor in runs[1].unwrapped_model.state_dict().items():
        assert torch.allclose(tensor, runs[0].unwrapped_model.state_dict()[name], rtol=1e-5, atol=1e-7), name


# One test: starting two processes takes longer than everything that they do.
def test_two_processes(tmp_path):
    reports = launch_worker(tmp_path)
    assert [report["num_processes"] for report in reports] == [2, 2]
    # 20 samples by 2 processes of 2 samples: 5 steps in each of 2 epochs.
    assert [report["losses_seen"] for report in reports] == [10, 10]
    # Only one of them got the SIGTERM.
    assert [report["stopped_at"] for report in reports] == [6, 6]
    assert [report["same_after_resuming"] for report in reports] == [True, True]
    assert reproducible_log(tmp_path / "cut") == reproducible_log(tmp_path / "whole")
    assert_equals_one_process_with_the_whole_batch(tmp_path)
    assert_one_process_goes_on_where_two_stopped(tmp_path)
