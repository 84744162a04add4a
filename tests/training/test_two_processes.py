import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from stand_in import WithoutRandomness, stand_in_arguments, stand_in_loop

from vicha_hf.training.run_log import MACHINE_FIELDS, read_log


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("two_processes")
    launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    completed = subprocess.run(
        [sys.executable, "-m", *launcher, str(Path(__file__).with_name("two_process_worker.py")), str(root)],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert completed.returncode == 0, completed.stderr[-4000:]
    return root


def reports(folder):
    return [json.loads((folder / f"report_{rank}.json").read_text()) for rank in range(2)]


def test_two_processes_really_ran(folder):
    assert [report["num_processes"] for report in reports(folder)] == [2, 2]
    # 20 samples by 2 processes of 2 samples: 5 steps in each of 2 epochs.
    assert [report["losses_seen"] for report in reports(folder)] == [10, 10]


def test_a_sigterm_to_one_process_stops_both_at_the_same_step(folder):
    assert [report["stopped_at"] for report in reports(folder)] == [6, 6]


def test_resuming_is_exact_on_both_processes(folder):
    assert all(report["same_after_resuming"] for report in reports(folder))
    logs = [
        [{name: value for name, value in record.items() if name not in MACHINE_FIELDS} for record in read_log(run)]
        for run in (folder / "whole", folder / "cut")
    ]
    assert logs[0] == logs[1]


def test_two_processes_equal_one_with_the_whole_batch(folder, tmp_path):
    alone = stand_in_loop(stand_in_arguments(tmp_path, per_device_batch_size=8), model_class=WithoutRandomness)
    alone.run()
    for rank in range(2):
        together = torch.load(folder / f"plain_{rank}.pt", weights_only=True)
        for name, tensor in alone.unwrapped_model.state_dict().items():
            assert torch.allclose(tensor, together[name], rtol=1e-5, atol=1e-7), name
    losses = [[record["loss"] for record in read_log(run)] for run in (tmp_path, folder / "plain")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
