"""The benchmark of what pruning could save: its bounds leave out nothing that belongs to the best."""

import json
import math

import numpy as np
import pytest
import torch
from script_modules import load_script


@pytest.fixture(scope="module")
def benchmark():
    return load_script("examples/benchmarks/concept_bounds.py")


@pytest.mark.parametrize("structure", [None, (1.0, 0.4)])
def test_a_bound_is_never_below_the_product(benchmark, structure):
    size = benchmark.Size(images=20, concepts=200, width=16, groups=10)
    rows = benchmark.make_embeddings(np.random.default_rng(1), size, structure)
    concepts, images = (torch.from_numpy(part) for part in rows)
    products = images @ concepts.T
    directions = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0))).Q
    for width in (1, 8, 16):
        bound = benchmark._Projection(concepts, images, directions[:, :width])(slice(None))
        assert (bound >= products - 1e-5).all()
    # With all directions nothing is left over, so the bound is the product; with few it is above it.
    assert torch.allclose(bound, products, atol=2e-3)
    first = benchmark._Projection(concepts, images, directions[:, :1])(slice(None))
    assert (first - products).mean() > 0.05
    # Every product is above a threshold of -1: nothing can be left out.
    everything = torch.full((20, 1), -1.0)
    assert benchmark.share_by_clusters(np.random.default_rng(0), size, concepts, images, everything) == 1
    exact = benchmark.pruned_scores(
        benchmark._Projection(concepts, images, directions), slice(None), concepts, images, everything
    )
    assert torch.allclose(exact.view(20, 200), products, atol=1e-5)


def test_the_figures(benchmark, tmp_path, monkeypatch):
    monkeypatch.setitem(benchmark.SIZES, "tiny", benchmark.Size(images=8, concepts=100, width=16, groups=5))
    monkeypatch.setattr(benchmark, "MOST_LEFT", 0.8)
    figures = benchmark.main(["--size", "tiny", "--json", str(tmp_path / "figures.json")])
    assert json.loads((tmp_path / "figures.json").read_text()) == {"benchmark": "concept_bounds", **figures}
    for structure in benchmark.STRUCTURES:
        left = [value for name, value in figures[structure].items() if name.endswith("_left")]
        assert len(left) == 4
        assert all(0 < value <= 1 for value in left)
        seconds = [value for name, value in figures[structure].items() if name.startswith("seconds")]
        assert seconds
        assert all(value is None or (value > 0 and math.isfinite(value)) for value in seconds)
    assert figures["noise"]["seconds_projection_4_over_float32_search"] is None
    assert figures["steep"]["seconds_projection_8_over_float32_search"] > 0
