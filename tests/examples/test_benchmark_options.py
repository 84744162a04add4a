"""The benchmark of the options beyond the papers at toy size: its figures, and that the steps are what they are called."""

import json
import sys

import pytest
import torch
from script_modules import load_script


@pytest.fixture(scope="module")
def benchmark():
    return load_script("examples/benchmarks/training_options.py")


@pytest.fixture(scope="module")
def jobs(benchmark):
    return sys.modules["training_step"]


def measured(benchmark, jobs, monkeypatch, path, *arguments):
    """At toy size and in this process. Of 16 images the parts together reconstruct as many as the whole does."""
    monkeypatch.setattr(benchmark, "run_apart", jobs.run_job)
    threads = str(torch.get_num_threads())
    result = benchmark.main(
        [
            "--size",
            "tiny",
            "--batch_size",
            "16",
            "--rounds",
            "1",
            "--threads",
            threads,
            "--json",
            str(path),
            *arguments,
        ]
    )
    assert json.loads(path.read_text()) == {"benchmark": "training_options", **result} and result["unavailable"] == {}
    figures = result["families"]["vicha"]
    for name, way in figures.items():
        if name == "none":
            continue
        assert way["seconds_per_step"] > 0 and way["seconds_per_step_without"] > 0, name
        assert way["activation_ratio"] == pytest.approx(way["activation_gib"] / figures["none"]["activation_gib"]), (
            name
        )
        assert sum(way["seconds_by_part"].values()) == pytest.approx(way["seconds_per_step"]), name
    return figures


def test_some_figures(benchmark, jobs, monkeypatch, tmp_path, capsys):
    options = ["lora", "muon", "gradient_caching"]
    figures = measured(benchmark, jobs, monkeypatch, tmp_path / "out.json", "--option", *options)
    assert list(figures) == ["none", *options]
    lora, caching = figures["lora"], figures["gradient_caching"]
    # Nothing is encoded twice: the parts of a batch contrast with what the teacher encodes for them anyway.
    assert lora["flops_ratio"] < 1 and caching["flops_ratio"] == pytest.approx(1, abs=0.02)
    assert figures["muon"]["flops_ratio"] > 1.2  # products of the optimiser
    assert lora["state_ratio"] < 0.9 and lora["trained_parameters"] < lora["trained_parameters_without"] / 2
    assert caching["activation_ratio"] < 0.9 and caching["state_ratio"] == pytest.approx(1)
    printed = capsys.readouterr().out
    assert all(benchmark.OPTIONS[name].title in printed for name in ("lora", "gradient_caching"))


@pytest.mark.slow
def test_all_figures(benchmark, jobs, monkeypatch, tmp_path):
    figures = measured(benchmark, jobs, monkeypatch, tmp_path / "out.json")
    assert figures.keys() == benchmark.OPTIONS.keys()
    # What each is for shows in what is counted.
    flops, trained = (
        {name: way[key] for name, way in figures.items() if name != "none"}
        for key in ("flops_ratio", "trained_parameters")
    )
    assert flops["patch_dropout_three_quarters"] < flops["patch_dropout_half"] < 1 == flops["adamw_8bit"]
    assert flops["frozen_encoders"] < flops["frozen_images"] < 1
    assert flops["accumulation"] == pytest.approx(1, abs=0.05)
    assert flops["gradient_caching"] == pytest.approx(1, abs=0.02)
    assert figures["patch_dropout_half"]["activation_ratio"] < 1
    assert all(figures[name]["state_ratio"] < 0.9 for name in ("frozen_encoders", "lora", "adamw_8bit", "muon"))
    assert trained["frozen_encoders"] < trained["lora"] < trained["frozen_images"] < trained["adamw_8bit"]
    assert flops["muon"] > 1 and trained["muon"] == trained["adamw_8bit"]


def test_a_missing_library_is_named(benchmark, jobs, monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["beyond_papers"], "find_spec", lambda name: None)
    measured_options = []
    monkeypatch.setattr(benchmark, "measure", lambda setting, rounds, options: measured_options.extend(options) or {})
    monkeypatch.setattr(benchmark, "report", lambda family, figures: None)
    result = benchmark.main(["--size", "tiny"])
    assert result["unavailable"] == {"lora": "peft", "adamw_8bit": "bitsandbytes"}
    assert set(measured_options) == benchmark.OPTIONS.keys() - {"lora", "adamw_8bit"}
    assert "8-bit AdamW: not measured, bitsandbytes is not installed" in capsys.readouterr().out


def test_a_batch_that_cannot_be_cut(benchmark, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--batch_size", "6"])
    assert "use a multiple of 8" in capsys.readouterr().err


@pytest.mark.slow
def test_in_processes_of_their_own(benchmark):
    result = benchmark.main(["--size", "tiny", "--family", "albef", "--rounds", "1", "--option", "lora"])
    assert result["families"]["albef"]["lora"]["state_gib"] > 0
