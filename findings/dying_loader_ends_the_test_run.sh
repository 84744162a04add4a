#!/usr/bin/env bash
# pytest 9.2.0 with torch 2.13.0 (seen 2026-11-30, Python 3.11, Linux, CPU): a `DataLoader` process that is killed while pytest
# makes the report of a failed test ends the whole run. torch's handler of SIGCHLD raises RuntimeError in the main thread,
# whatever that is doing, for every loader that is still referenced; a failed test's traceback refers to its own. pytest takes
# it for an internal error: status 3, the failed test is not named, later tests do not run. An equal process of
# `multiprocessing` does nothing of the kind. Reports take the longer the more a plugin adds to them; here a hook waits
# for the process to end.
#
# Output seen:
#   multiprocessing: status 1, 1 failed, 1 passed
#   DataLoader: status 3, no tests ran, RuntimeError: DataLoader worker (pid N) is killed by signal: Killed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet pytest==9.2.0 numpy==2.4.6

mkdir "$folder/tests"
cat > "$folder/tests/conftest.py" <<'PYTHON'
import time
from multiprocessing import active_children

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call):
    if call.excinfo is not None:
        while active_children():
            time.sleep(0.1)
    return (yield)
PYTHON
cat > "$folder/tests/test_loader.py" <<'PYTHON'
import multiprocessing
import os
import signal
import time

from torch.utils.data import DataLoader, Dataset


def die_soon():
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)


class Numbers(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        if index:
            die_soon()
        return index


def test_that_fails():
    if os.environ["PROCESS"] == "DataLoader":
        loader = iter(DataLoader(Numbers(), num_workers=1))
        assert int(next(loader)) == 0
    else:
        process = multiprocessing.Process(target=die_soon)
        process.start()
    raise ValueError("the test's own failure")


def test_that_passes():
    pass
PYTHON

PROCESS= PATH="$folder/venv/bin:$PATH" FOLDER="$folder" python - <<'PYTHON'
import os
import re
import subprocess


def run(process):
    done = subprocess.run(
        ["python", "-m", "pytest", "-p", "no:cacheprovider", "tests"],
        cwd=os.environ["FOLDER"],
        env={**os.environ, "PROCESS": process},
        capture_output=True,
        text=True,
    )
    summary = re.search(r"=+ ([^=]*?) in [\d.]+s =+", done.stdout)[1]
    cause = re.findall(r"INTERNALERROR> (RuntimeError: DataLoader worker.*)", done.stdout)
    said = [f"status {done.returncode}", summary, *(re.sub(r"pid \d+", "pid N", line) for line in cause)]
    print(f"{process}: {', '.join(said)}")
    return said


assert run("multiprocessing") == ["status 1", "1 failed, 1 passed"]
killed = "RuntimeError: DataLoader worker (pid N) is killed by signal: Killed."
assert [word.strip() for word in run("DataLoader")] == ["status 3", "no tests ran", killed]
PYTHON
