"""The benchmark of concepts that another encoder finds: its files, the steps that it gives each way, and its table."""

import json
from pathlib import Path

import pytest
from PIL import Image
from script_modules import load_script
from tiny_model_folder import write_model_folder


CAPTIONS = ("a dog on the grass next to a cat", "a cat and a dog", "two birds on a car with two birds")


@pytest.fixture(scope="module")
def benchmark():
    return load_script("examples/benchmarks/concept_transfer.py")


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    Image.new("RGB", (20, 20), "red").save(folder / "0.png")
    records = [{"image": "0.png", "caption": caption, "concepts": ["tree"]} for caption in CAPTIONS]
    for split in ("train", "validation", "test"):
        (folder / f"{split}.json").write_text(json.dumps(records), encoding="utf-8")
    return folder


def test_ways_have_equal_seconds(benchmark, corpus, tmp_path, capsys, monkeypatch):
    write_model_folder(tmp_path / "encoder")
    trained = []

    def call(command):
        words = [str(word) for word in command]
        if words[1].endswith("pretrain.py"):
            folder = Path(words[words.index("--output_dir") + 1])
            steps = int(words[words.index("--max_steps") + 1])
            train = Path(words[words.index("--data.train") + 1])
            trained.append((folder.name, steps, train.parent.name))
            seconds = 0.4 if "--model.config.use_concepts" in words else 0.5
            folder.mkdir(parents=True)
            metrics = {"train_seconds": steps * seconds, "samples_per_step": 32}
            (folder / "metrics.json").write_text(json.dumps(metrics))
            record = {"step": steps, "loss": 1.0, "samples_per_second": 32 / seconds}
            (folder / "log.jsonl").write_text(json.dumps(record) + "\n")
        else:
            names = [
                f"r{cut}_{way}{stage}" for stage in ("", "_itc_only") for way in ("i2t", "t2i") for cut in (1, 5, 10)
            ]
            Path(words[words.index("--json") + 1]).write_text(json.dumps(dict(zip(names, range(1, 13), strict=True))))

    monkeypatch.setattr(benchmark, "_call", call)
    monkeypatch.setattr(benchmark.time, "perf_counter", iter((0.0, 20.0)).__next__)
    paths = {"encoder": tmp_path / "encoder", "corpus_dir": corpus, "output_dir": tmp_path / "runs"}
    paths["json"] = tmp_path / "transfer.json"
    options = [f"--{name}={path}" for name, path in paths.items()]
    result = benchmark.main([*options, "--images=2", "--steps=100", "--calibration_steps=10", "--seeds=1"])
    # 50 s of training and 20 s of the search are 175 steps of 0.4 s.
    assert trained == [
        ("found_seed_0", 100, "found"),
        ("annotations_seed_0", 100, "annotations"),
        ("none_seed_0_short", 10, "annotations"),
        ("none_seed_0", 175, "annotations"),
    ]
    assert json.loads((tmp_path / "transfer.json").read_text()) == {"benchmark": "concept_transfer", **result}
    assert [runs[0]["seconds"] for runs in result.values()] == pytest.approx([70, 50, 70])
    assert result["none"][0]["similarity_r1_t2i"] == 10 and result["none"][0]["combined_rsum"] == 21
    assert "7.0 / 10.0" in capsys.readouterr().out

    def concepts(kind, split):
        lines = (tmp_path / "runs" / kind / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["concepts"] for line in lines]

    assert [len(concepts("annotations", split)) for split in ("train", "validation", "test")] == [2, 3, 3]
    assert concepts("annotations", "train") == [["tree"]] * 2
    # The vocabulary is that of the few training captions.
    assert {word for words in concepts("found", "test") for word in words} == {"dog", "cat"}
