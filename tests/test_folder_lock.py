import json
import signal
import subprocess
import sys

import pytest

from vicha_hf.folder_lock import LOCK_FILE, FolderInUseError, FolderLock, locked_folder


HOLDER = """
import sys, time
from pathlib import Path
from vicha_hf.folder_lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(600)
"""


@pytest.fixture
def other_run(tmp_path):
    """Another process that holds `tmp_path`."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()


def test_another_run_is_refused_until_the_first_is_killed(tmp_path, other_run):
    with pytest.raises(FolderInUseError, match=rf"in use by another run \(process {other_run.pid} on .*--output_dir"):
        FolderLock(tmp_path)
    assert json.loads((tmp_path / LOCK_FILE).read_text())["process"] == other_run.pid
    other_run.send_signal(signal.SIGKILL)
    other_run.wait()
    # What it left behind locks nothing.
    assert (tmp_path / LOCK_FILE).exists()
    with locked_folder(tmp_path):
        pass
    assert not (tmp_path / LOCK_FILE).exists()


def test_one_process_excludes_itself_too(tmp_path):
    with locked_folder(tmp_path), pytest.raises(FolderInUseError, match="this process"), locked_folder(tmp_path):
        pass
    lock = FolderLock(tmp_path)
    del lock
    FolderLock(tmp_path).release()


def test_who_leaves_it_to_another_process_locks_nothing(tmp_path):
    with locked_folder(tmp_path, is_mine=False):
        assert not (tmp_path / LOCK_FILE).exists()
        FolderLock(tmp_path).release()


def test_a_file_that_says_nothing_is_held_by_someone(tmp_path, other_run):
    (tmp_path / LOCK_FILE).write_text("")
    with pytest.raises(FolderInUseError, match="another process"):
        FolderLock(tmp_path)
