"""What the tests of the example scripts share: their `main`, a launcher, and tiny files of every task."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate_state import forget_accelerator
from script_modules import load_script
from tiny_task_files import write_task_files


ROOT = Path(__file__).parents[2]
# What scripts share is imported by its name. At the end: `evaluate` is a library, and a script of that name stands there.
sys.path.append(str(ROOT / "examples"))


@pytest.fixture
def fresh_accelerate():
    """Every run of a script in this process makes its own accelerator."""
    yield
    forget_accelerator()


@pytest.fixture(scope="module")
def task_files(tmp_path_factory):
    return write_task_files(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="session")
def script():
    """`script("finetune_vqa")` is the `main` of examples/finetune_vqa.py."""
    return lambda name: load_script(f"examples/{name}.py").main


@pytest.fixture(scope="session")
def launch_on_two_processes():
    """Runs a script with real processes; returns what it wrote to stdout."""

    def launch(name, arguments):
        launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--main_process_port=0"]
        completed = subprocess.run(
            [sys.executable, "-m", *launcher, str(ROOT / f"examples/{name}.py"), *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert completed.returncode == 0, completed.stderr[-4000:]
        return completed.stdout

    return launch
