"""The demo at full size: what `make demo` promises."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_demo_learns_within_ten_minutes(tmp_path):
    script = Path(__file__).parents[2] / "examples/demo.py"
    command = [sys.executable, script, "--output_dir", tmp_path / "out", "--corpus_dir", tmp_path / "corpus"]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=1200)
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    for name in ("r1_i2t", "r1_t2i"):
        assert metrics[name] > 10 * metrics["chance_r1"], name
    assert metrics["total_seconds"] < 600
