"""Where the golden numbers are, and what was compared."""

import os
import sys
from pathlib import Path

import pytest


sys.path.insert(0, str(Path(__file__).parent))

TALLY = {"cases": 0, "tensors": 0, "within_rounding": []}


def golden_folder() -> Path:
    return Path(os.environ.get("VICHA_GOLDEN_DIR", Path(__file__).parent / "data"))


def pytest_generate_tests(metafunc):
    if "golden" not in metafunc.fixturenames:
        return
    folder = golden_folder()
    cases = sorted(path.parent for path in folder.glob("*/case.json"))
    files = sorted(path for path in folder.glob("*.*") if path.suffix in (".json", ".safetensors"))
    if not cases + files:
        raise pytest.UsageError(f"{folder} holds no golden case (folder with a case.json) and no golden file")
    metafunc.parametrize("golden", cases + files, ids=[path.name for path in cases + files])


@pytest.fixture
def tally():
    return TALLY


def pytest_terminal_summary(terminalreporter):
    if TALLY["cases"]:
        terminalreporter.write_line(f"golden: {TALLY['cases']} cases run, {TALLY['tensors']} tensors compared")
    for name in TALLY["within_rounding"]:
        terminalreporter.write_line(f"golden: {name} is float32 rounding, compared in float64")
