"""The benchmark of the 8-bit image encoder on a tiny model: recall of both, and what is lost."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_model_folder import write_gallery, write_model_folder


SCRIPT = Path(__file__).parents[2] / "examples" / "benchmarks" / "exported_encoder.py"

pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")


def test_recall_of_a_model_and_of_its_export(tmp_path):
    write_model_folder(tmp_path / "model")
    annotations = write_gallery(tmp_path)
    command = [sys.executable, str(SCRIPT), "--model", str(tmp_path / "model"), "--data", *[str(annotations)] * 2]
    process = subprocess.run(
        [*command, "--threads", "1", "--json", str(tmp_path / "found.json")],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["threads"] == 1
    directions = ("i2t", "t2i")
    lost = [
        found[f"torch_r1_{side}{stage}"] - found[f"int8_r1_{side}{stage}"]
        for side in directions
        for stage in ("", "_itc_only")
    ]
    assert all(0 <= found[f"torch_r1_{side}"] <= 100 for side in directions)
    assert found["onnx_int8_r1_lost"] >= max(lost) and found["onnx_int8_r1_lost"] >= found["onnx_int8_r1_lost_mean"]
    assert "r1_i2t: torch" in process.stdout


def test_nothing_to_compare_is_wrong_usage():
    process = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert process.returncode == 2 and "give --size, or --model and --data" in process.stderr
