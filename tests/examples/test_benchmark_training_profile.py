"""The profile of a training step: its parts are the step, and its products are those that are counted."""

import json

import pytest
import torch
from script_modules import load_script


@pytest.fixture(scope="module")
def benchmark():
    return load_script("examples/benchmarks/training_profile.py")


def test_the_profile(benchmark, tmp_path, capsys):
    path = tmp_path / "profile.json"
    threads = str(torch.get_num_threads())
    result = benchmark.main(["--size", "tiny", "--batch_size", "2", "--threads", threads, "--json", str(path)])
    assert json.loads(path.read_text()) == {"benchmark": "training_profile", **result}
    kinds = result["kinds"]
    assert sum(kind["seconds"] for kind in kinds.values()) == pytest.approx(result["seconds"])
    assert sum(kind["share"] for kind in kinds.values()) == pytest.approx(1)
    assert sum(kind["gflop"] for kind in kinds.values()) == pytest.approx(result["gflop"])
    assert kinds[benchmark.PRODUCTS]["rate"] > 0 < kinds[benchmark.ATTENTION]["rate"]
    assert all(kinds[name]["seconds"] > 0 for name in ("AdamW", "GELU", "LayerNorm", "teacher and clipping"))
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*kinds, *result["products"]))


def test_products_by_size_are_the_products_that_are_counted(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "SHAPES", None)
    result = benchmark.profile_step(benchmark.TrainingStep("albef", "tiny", 2))
    by_size = sum(product["gflop"] for product in result["products"].values())
    assert by_size == pytest.approx(result["kinds"][benchmark.PRODUCTS]["gflop"], rel=0.02)


@pytest.mark.parametrize(
    ("operation", "shapes", "size", "flops"),
    [
        ("aten::mm", [[2, 3], [3, 5]], (2, 3, 5), 60),
        ("aten::addmm", [[5], [2, 3], [3, 5], [], []], (2, 3, 5), 60),
        ("aten::bmm", [[4, 2, 3], [4, 3, 5]], (4, 2, 3, 5), 240),
    ],
)
def test_sizes(benchmark, operation, shapes, size, flops):
    assert benchmark.kind_of(operation) == benchmark.PRODUCTS
    assert benchmark.product_size(operation, shapes) == size
    assert benchmark.flops_of(size) == flops
