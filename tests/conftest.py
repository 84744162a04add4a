"""Fixtures shared by every test, and the settings that keep the suite offline and off each other's cores."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parent))


_breakdowns = []


def pytest_internalerror(excrepr):
    _breakdowns.append(str(excrepr).splitlines())


def pytest_unconfigure():
    # The first one is the cause of those that follow, and a log of which only the end is kept does not show it.
    for breakdown in _breakdowns[:1]:
        print("The first internal error was:", *breakdown[-12:], sep="\n", file=sys.stderr)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("only root may mount a disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def metric_cache(tmp_path, monkeypatch):
    """
    Where `evaluate.load` copies metric scripts, instead of the user's caches. The copies are a package of their own, which
    Python remembers: each test forgets the one before.
    """
    from evaluate import config

    def forget():
        for name in [name for name in sys.modules if name.split(".")[0] == "evaluate_modules"]:
            del sys.modules[name]

    forget()
    elsewhere = [entry for entry in sys.path if not (Path(entry) / "evaluate_modules").is_dir()]
    monkeypatch.setattr(sys, "path", elsewhere)
    monkeypatch.setattr(config, "HF_MODULES_CACHE", str(tmp_path / "metric_modules"))
    monkeypatch.setattr(config, "HF_METRICS_CACHE", str(tmp_path / "metrics"))
    yield
    forget()
