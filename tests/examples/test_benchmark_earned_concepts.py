"""The benchmark of earned concepts: which runs it asks for, and what it makes of what they leave behind."""

import json
import os

import pytest
from script_modules import load_script


@pytest.fixture(scope="module")
def benchmark():
    return load_script("examples/benchmarks/earned_concepts.py")


def made_up_demo(folder, bootstrap_steps, steps, without_concepts):
    """A folder as the demo leaves it: 30 s of ALBEF, 10 s of selection, 60 s of ViCHA; or 0.5 s, 0.4 s a step."""
    seconds_per_step = 0.4 if without_concepts else 0.5
    train_seconds = 90.0 if bootstrap_steps else steps * seconds_per_step
    (folder / "pretraining").mkdir(parents=True)
    record = {"step": steps, "loss": 1.0, "samples_per_second": 64 / seconds_per_step}
    (folder / "pretraining/log.jsonl").write_text(json.dumps(record) + "\n")
    (folder / "pretraining/metrics.json").write_text(json.dumps({"samples_per_step": 64}))
    names = ("r1_i2t_itc_only", "r1_t2i_itc_only", "r1_i2t", "r1_t2i")
    suffix = "_without_concepts" if without_concepts else ""
    conditions = {
        f"{gallery}{suffix}": {name: 10.0 * (column + 1) + row for column, name in enumerate(names)}
        for row, gallery in enumerate(("test", "test_compositional"))
    }
    (folder / "metrics.json").write_text(json.dumps({"train_seconds": train_seconds, "conditions": conditions}))
    if bootstrap_steps:
        for path, moment in (
            ("bootstrap/metrics.json", 1000),
            ("concepts/train.jsonl", 1010),
            ("concepts/a.jsonl", 1005),
        ):
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_text("{}")
            os.utime(folder / path, (moment, moment))
    return folder


def test_three_ways_run_for_equal_seconds(benchmark, tmp_path, capsys, monkeypatch):
    calls = []

    def run_demo(folder, bootstrap_steps, options, corpus_dir):
        calls.append((folder.name, bootstrap_steps, options[options.index("--max_steps") + 1]))
        return made_up_demo(folder, bootstrap_steps, calls[-1][2], "--model.config.use_concepts" in options)

    monkeypatch.setattr(benchmark, "run_demo", run_demo)
    paths = {"corpus_dir": tmp_path / "corpus", "output_dir": tmp_path / "runs", "json": tmp_path / "earned.json"}
    result = benchmark.main([*(f"--{name}={path}" for name, path in paths.items()), "--seeds=1"])
    # 90 s of training and 10 s of selection make 100 s: 200 steps of 0.5 s, or 250 of 0.4 s.
    assert calls == [
        ("pixels", 200, 400),
        ("generator_short", 0, 40),
        ("generator", 0, 200),
        ("none_short", 0, 40),
        ("none", 0, 250),
    ]
    assert json.loads((tmp_path / "earned.json").read_text()) == {"benchmark": "earned_concepts", **result}
    assert [runs[0]["seconds"] for runs in result.values()] == pytest.approx([100, 100, 100])
    assert result["none"][0]["test"] == [10.0, 20.0, 30.0, 40.0]
    assert result["found in pixels"][0]["test_compositional"] == [11.0, 21.0, 31.0, 41.0]
    assert "10.0 / 20.0" in capsys.readouterr().out
