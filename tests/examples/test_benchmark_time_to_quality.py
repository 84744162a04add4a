"""The benchmark of time to quality: its arithmetic on made-up logs, and one run of it on a corpus of a few images."""

import json

import pytest
from script_modules import load_script


@pytest.fixture(scope="module")
def benchmark():
    return load_script("examples/benchmarks/time_to_quality.py")


def made_up(benchmark, *rows):
    return [benchmark.Evaluation(*row) for row in rows]


def test_the_mean_over_seeds_must_reach_the_target(benchmark):
    reference = [
        made_up(benchmark, (10, 5.0, 85.0), (20, 11.0, 86.0), (30, 15.0, 90.0)),
        made_up(benchmark, (10, 6.0, 60.0), (20, 9.0, 78.0), (30, 16.0, 90.0)),
    ]
    candidate = [
        made_up(benchmark, (5, 2.0, 79.0), (10, 4.0, 84.0)),
        made_up(benchmark, (5, 3.0, 80.0), (10, 6.0, 76.0)),
    ]
    result = benchmark.compare(80.0, reference, candidate)
    assert result["reached"] and result["steps"] == {"reference": 20, "candidate": 10}
    assert (result["reference_seconds"], result["candidate_seconds"]) == (10.0, 5.0)
    assert result["ratio"] == 0.5 and result["ratio_range"] == pytest.approx([4 / 11, 6 / 9])
    assert result["final_quality"] == {"reference": 90.0, "candidate": 80.0}


def test_a_target_that_one_recipe_misses_gives_no_ratio(benchmark):
    good, bad = made_up(benchmark, (10, 5.0, 85.0)), made_up(benchmark, (10, 5.0, 70.0))
    result = benchmark.compare(80.0, [good], [bad])
    assert not result["reached"] and result["ratio"] is None and result["reference_seconds"] is None


def test_both_recipes_are_trained_in_turn(benchmark, tmp_path, capsys):
    options = {"seeds": 1, "max_steps": 2, "evaluation_steps": 1, "target": 0, "json": tmp_path / "quality.json"}
    options |= {"corpus_dir": tmp_path / "corpus", "output_dir": tmp_path / "runs"}
    sizes = ("num_train=40", "num_validation=8", "num_test=8", "num_compositional_test=8")
    result = benchmark.main([*(f"--{name}={value}" for name, value in options.items()), "--corpus", *sizes])
    assert json.loads((tmp_path / "quality.json").read_text()) == {"benchmark": "time_to_quality", **result}
    assert result["reached"] and result["steps"] == {"reference": 1, "candidate": 1}
    for name in ("reference", "candidate"):
        found = benchmark.evaluations_of(tmp_path / "runs" / f"{name}_0")
        assert [evaluation.step for evaluation in found] == [1, 2]
        assert 0 < found[0].seconds < found[1].seconds
    at_end = result["at_reference_quality"]
    assert at_end["target"] == result["final_quality"]["reference"]
    printed = capsys.readouterr().out
    assert "seconds to quality" in printed and "0.0 %: the candidate needs" in printed
    assert f"{at_end['target']:.1f} %: {'the candidate needs' if at_end['reached'] else 'not reached'}" in printed
