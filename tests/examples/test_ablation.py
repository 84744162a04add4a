"""The ablation study: what its runs differ in, its arithmetic on made-up runs, and a study that was killed and goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from ablation_study import corpus, report, runs, summary
from ablation_study.variants import BASELINE, CLAIMS, VARIANTS
from accelerate_state import forget_accelerator
from launching import launch_topology
from safetensors.torch import load_file
from tiny_task_files import write_task_files
from tiny_tokenizer import build_tiny_tokenizer

from vicha_hf.data.annotations import read_image_text_records


ROOT = Path(__file__).parents[2]
STEPS = 12
BEHIND = "--per_device_batch_size 4 --model.vision_config.image_size 32 --data.rerank_k 4"
# Sums in bfloat16 depend on what else a process has done.
BEHIND += " --float32_matmul_precision highest --mixed_precision no"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_task_files(tmp_path_factory.mktemp("data"))
    records = json.loads((folder / "retrieval.json").read_text())
    for name in ("train", "validation", "test"):
        (folder / f"{name}.json").write_text(json.dumps(records))
    (folder / "tokenizer").mkdir()
    build_tiny_tokenizer(folder / "tokenizer").save_pretrained(folder / "tokenizer")
    return folder


def command(data, output, *options):
    words = [word for name in ("train", "validation", "test") for word in (f"--{name}", data / f"{name}.json")]
    words += ["--tokenizer", data / "tokenizer", "--output_dir", output, "--max_steps", STEPS, "--seeds", 1, *options]
    return [*map(str, words), "--", *BEHIND.split()]


@pytest.fixture
def study(script, monkeypatch):
    """Runs a study whose trainings take place in this process; returns the options of each."""

    def run(argv):
        launched = []

        def launch(options, num_processes):
            launched.append(options)
            # As in a process of its own: accelerate keeps its state, such as the precision, for good.
            forget_accelerator()
            # Sums depend on the number of threads as well, and the launcher sets it.
            threads = torch.get_num_threads()
            torch.set_num_threads(launch_topology(num_processes)[1])
            try:
                script("pretrain")(options)
            finally:
                torch.set_num_threads(threads)
                forget_accelerator()
            return 0

        monkeypatch.setattr(runs, "launch_pretraining", launch)
        script("ablation")(argv)
        return launched

    return run


def test_a_killed_study_goes_on_where_it_stopped(study, data, tmp_path):
    output = tmp_path / "study"
    assert len(study(command(data, output, "--variants", BASELINE, "--parts", "samples"))) == 1
    both = command(data, output, "--variants", BASELINE, "vicha", "--parts", "samples")
    known, killed = (output / "runs" / f"{name}_all_{STEPS}_steps_seed_0" for name in (BASELINE, "vicha"))
    before = (known / "result.json").stat().st_mtime_ns
    process = subprocess.Popen([sys.executable, ROOT / "examples/ablation.py", *both], start_new_session=True)
    try:
        deadline = time.monotonic() + 300
        while not list(killed.glob("training/checkpoint-*/*")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (killed / "training/metrics.json").exists()

    (resumed,) = study(both)
    assert resumed[resumed.index("--resume_from_checkpoint") + 1] == "latest"
    assert (known / "result.json").stat().st_mtime_ns == before
    found = json.loads((output / "ablation.json").read_text())
    assert found["runs_missing"] == 0 and [row["variant"] for row in found["rows"]] == [BASELINE, "vicha"]
    assert [verdict["outcome"] for verdict in found["verdicts"]] == ["one seed says nothing"]
    page = (output / "ablation.md").read_text()
    assert "| + concept augmentation = ViCHA | all | 12 |" in page and "still to be made" not in page
    assert (output / "ablation.svg").read_text().startswith("<?xml")
    # Never stopped.
    study(command(data, tmp_path / "straight", "--variants", "vicha", "--parts", "samples"))
    weights = [
        load_file(folder / "runs" / killed.name / "training/model/model.safetensors")
        for folder in (output, tmp_path / "straight")
    ]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0]) and len(weights[0]) > 50
    # Nothing is left to do; other settings are refused.
    assert study(both) == []
    with pytest.raises(ValueError, match="is of a run with other settings or data"):
        study([*both, "--learning_rate", "0.5"])


def test_the_rows_differ_in_what_their_names_say():
    recipe = yaml.safe_load((ROOT / "examples/configs/vicha/tiny.yaml").read_text())
    assert {"use_concepts", "mim_weight", "hierarchical_itc_weight"} - {"use_concepts"} <= recipe["model"][
        "config"
    ].keys()
    seen = {}
    for name, variant in VARIANTS.items():
        if variant.family == "vicha":
            resolved = runs.resolve_recipe(recipe, variant.changes, 1000, 1000)
            config = resolved["model"]["config"]
            seen[name] = [
                config.get("use_concepts", True),
                config["hierarchical_itc_weight"] > 0,
                config["mim_weight"] > 0,
                resolved["data"]["concept_fraction"] < 1,
            ]
    # One thing more in every row.
    assert list(seen) == [BASELINE, "vc", "h_itc", "mim", "vicha"]
    assert [sum(row) for row in seen.values()][1:] == [1, 2, 3, 4]
    assert seen[BASELINE][:3] == [False, False, False] and not VARIANTS[BASELINE].reads_concepts
    assert {name for claim in CLAIMS for name in (claim.better, claim.worse)} == set(VARIANTS)


def test_a_recipe_for_fewer_steps():
    recipe = {"max_steps": 1000, "warmup_steps": 30, "logging_steps": 10, "num_epochs": 3, "model": {"config": {}}}
    recipe["model"]["config"]["queue_warmup_batches"] = 600
    resolved = runs.resolve_recipe(recipe, {"model.config.mim_weight": 0, "seed": 3}, 400, 1000)
    assert resolved["warmup_steps"] == 12 and resolved["model"]["config"] == {
        "queue_warmup_batches": 240,
        "mim_weight": 0,
    }
    assert (resolved["max_steps"], resolved["evaluation_steps"], resolved["checkpoint_steps"]) == (400, 400, 40)
    assert "num_epochs" not in resolved and recipe["warmup_steps"] == 30


def test_parts_of_the_corpus(data, tmp_path):
    train = str(data / "train.json")
    small, large, other = (
        [
            record.image
            for record in read_image_text_records(str(corpus.write_random_records(train, path, share, seed)))
        ]
        for path, share, seed in (
            (tmp_path / "a/small.jsonl", 25, 0),
            (tmp_path / "large.jsonl", 50, 0),
            (tmp_path / "other.jsonl", 50, 1),
        )
    )
    assert (len(small), len(large)) == (3, 6) and set(small) < set(large) != set(other)
    records = read_image_text_records(train)
    assert large == [record.image for record in records if record.image in large]
    pairs = read_image_text_records(str(corpus.write_random_pairs(train, tmp_path / "pairs.jsonl", 50, 0)))
    assert sum(len(record.captions) for record in pairs) == sum(len(record.captions) for record in records) // 2
    whole = {(record.image, caption): record.concepts for record in records for caption in record.captions}
    assert all(whole[record.image, caption] == record.concepts for record in pairs for caption in record.captions)


def test_images_that_are_not_beside_their_annotations(script, data, tmp_path):
    annotations = tmp_path / "annotations"
    annotations.mkdir()
    for name in ("train", "validation", "test"):
        (annotations / f"{name}.json").write_text((data / f"{name}.json").read_text())
    options = command(annotations, tmp_path / "study", "--variants", BASELINE, "--image_root", data)
    options[options.index("--tokenizer") + 1] = str(data / "tokenizer")
    module = script("ablation").__globals__
    sources = module["Study"](module["parse_arguments"](options)).sources
    for found, name in zip(
        (sources.train, sources.validation, *sources.tests), ("train", "validation", "test"), strict=True
    ):
        assert Path(found).stem == name
        given, known = (list(read_image_text_records(path)) for path in (data / f"{name}.json", found))
        assert [(record.image, record.captions, record.concepts) for record in known] == [
            (record.image, record.captions, record.concepts) for record in given
        ]


def made_up(variant, seed, recall, part="samples", data="all"):
    tests = {
        "test": {
            "concepts": {"similarity": 0.0, "re-ranked": recall},
            "no concepts": {"similarity": 0, "re-ranked": 1},
        }
    }
    return runs.RunResult(variant, part, data, seed, 10, 5.0, 0.5, tests)


def test_intervals_and_verdicts():
    estimate = summary.Estimate.of([10.0, 12.0, 14.0])
    # Student's t with two degrees of freedom, from a printed table: 4.303.
    assert estimate.mean == 12 and estimate.half == pytest.approx(4.303 * 2 / 3**0.5, abs=1e-3)
    assert str(estimate) == "12.0 ± 5.0" and str(summary.Estimate.of([3.0])) == "3.0"
    results = [
        made_up(variant, seed, base + gain)
        for seed, base in enumerate((50.0, 60.0, 70.0))
        for variant, gain in ((BASELINE, 0), ("vc", 2 + seed / 10), ("vicha", -3 - seed / 10), ("simla", seed * 5 - 5))
    ]
    # The seeds differ far more than the methods, and pairs of one seed show the difference all the same.
    outcomes = {verdict.claim.better: verdict.outcome for verdict in summary.judge(results, "samples")}
    assert outcomes == {"vc": "holds", "vicha": "reversed", "simla": "not shown"}
    assert summary.judge(results, "seconds") == []
    (row, *_) = summary.summarize(results)
    assert row.recalls["test"]["concepts"]["re-ranked"].mean == 60 and row.steps == 10


def test_a_plot_of_every_part(tmp_path):
    results = [
        made_up(variant, seed, 50 + seed, part)
        for seed in (0, 1)
        for variant in VARIANTS
        for part in ("samples", "seconds")
    ]
    for data in ("random records 10 %", "random records 50 %", "all"):
        results += [made_up("vicha", seed, 40 + seed, "data", data) for seed in (0, 1)]
    results += [made_up("vicha", 0, 45, "filtered", f"{kind} pairs 50 %") for kind in ("best", "random")]
    report.draw(summary.summarize(results), "test", tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text()
    for text in ("SIMLA", "+ H-ITC", "equal seconds", "ViCHA, best pairs", "ViCHA, random pairs", "% of the corpus"):
        assert f">{text}" in drawn or text in drawn, text
    assert report.share_of("random records 10 %") == ("records", 10.0)


def test_wrong_usage(study, data, tmp_path, capsys):
    for options, message in (
        (["--train", "a.json"], "belong together"),
        (["--parts", "seconds"], "needs the part samples"),
        (["--parts", "filtered", "--variants", "vicha"], "needs --encoder"),
        (["--shares", "0"], "percentages above 0"),
        (["--seeds", "0"], "at least 1"),
        (["--image_root", "images"], "--image_root belongs to --train"),
    ):
        with pytest.raises(SystemExit) as ended:
            study(options)
        assert ended.value.code == 2 and message in capsys.readouterr().err
    bare = [record | {"concepts": []} for record in json.loads((data / "train.json").read_text())]
    (data / "bare.json").write_text(json.dumps(bare))
    options = command(data, tmp_path, "--variants", "vicha", "--parts", "samples", "--train", data / "bare.json")
    with pytest.raises(ValueError, match="has no visual concepts, which vicha train with: make them with"):
        study(options)
    with pytest.raises(FileNotFoundError, match=r"missing\.json is not there"):
        study(command(data, tmp_path, "--train", data / "missing.json"))
