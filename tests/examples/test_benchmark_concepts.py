"""The benchmark of concepts at toy size: its figures, and that every way chooses the same."""

import json
import math
from dataclasses import replace

import pytest
from script_modules import load_script


# Other parts of this project and checkers read these.
PROMISED = {"select_over_product", "select_over_faiss", "select_over_torch", "peak_rss_gib", "equal"}
PROMISED |= {"embed_over_bare_encoder", "vocabulary_captions_per_second", "vocabulary_peak_rss_gib"}


@pytest.fixture(scope="module")
def benchmark():
    return load_script("examples/benchmarks/concepts.py")


def test_the_figures(benchmark, tmp_path, monkeypatch):
    toy = replace(
        benchmark.SIZES["tiny"],
        images=300,
        concepts=200,
        sample=64,
        rounds=1,
        encoder_images=2,
        captions=400,
        many_captions=80,
    )
    monkeypatch.setitem(benchmark.SIZES, "tiny", toy)
    # The selection of all images in this process: another one costs seconds of imports.
    monkeypatch.setattr(benchmark, "run_apart", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(benchmark, "PROCESSES", (1,))
    figures = benchmark.main(["--size", "tiny", "--json", str(tmp_path / "figures.json")])
    assert json.loads((tmp_path / "figures.json").read_text()) == {"benchmark": "concepts", **figures}
    assert figures.keys() >= PROMISED
    assert figures["equal"] is True
    assert all(value > 0 and math.isfinite(value) for value in figures.values() if isinstance(value, float))


def test_a_difference_is_seen(benchmark, monkeypatch):
    rng = benchmark.np.random.default_rng(0)
    images, concepts = benchmark.unit_rows(rng, 20, 16), benchmark.unit_rows(rng, 50, 16)
    assert benchmark.same_selection(images, concepts)
    select = benchmark.select_concepts
    monkeypatch.setattr(benchmark, "select_concepts", lambda *rows: tuple(part[::-1].copy() for part in select(*rows)))
    assert not benchmark.same_selection(images, concepts)
