"""`examples/demo.py`, what `make demo` runs, from the corpus to the report on a handful of pictures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModel, AutoProcessor

import vicha_hf  # noqa: F401 - registers the Auto classes


ROOT = Path(__file__).parents[2]
CORPUS = {"num_train": 24, "num_validation": 8, "num_test": 12, "num_compositional_test": 10, "image_size": 48}
PRETRAINING = (
    "--max_steps 2 --per_device_batch_size 4 --logging_steps 1 --trackers [] --data.rerank_k 6 "
    "--model.vision_config.image_size 48"
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, str]:
    """The folder that the demo wrote, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    corpus = [f"{name}={value}" for name, value in CORPUS.items()]
    command = [sys.executable, ROOT / "examples/demo.py", "--output_dir", folder / "out", "--corpus_dir"]
    command += [folder / "corpus", "--corpus", *corpus, "--", *PRETRAINING.split()]
    process = subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=folder)
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-4000:]
    return folder / "out", process.stdout


def test_the_metrics_are_complete(demo):
    metrics = json.loads((demo[0] / "metrics.json").read_text())
    for name in (
        "r1_i2t",
        "r1_t2i",
        "r1_i2t_itc_only",
        "r1_t2i_itc_only",
        "r10_i2t",
        "train_seconds",
        "total_seconds",
    ):
        assert isinstance(metrics[name], float), name
    assert metrics["chance_r1"] == pytest.approx(100 / CORPUS["num_test"])
    assert metrics["train_steps"] == 2
    conditions = metrics["conditions"]
    assert set(conditions) == {
        *("test", "test_without_concepts", "test_compositional", "test_compositional_without_concepts")
    }
    assert conditions["test"]["r1_i2t"] == metrics["r1_i2t"]
    assert conditions["test_compositional"]["num_images"] == CORPUS["num_compositional_test"]


def test_the_model_folder_is_for_inference(demo):
    folder = demo[0] / "model"
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["ViChaForRetrieval"]
    assert {"AutoModel", "AutoModelForPreTraining"} <= set(config["auto_map"])
    model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(model).__name__ == "ViChaModel" and not report["missing_keys"]
    assert model.training_state is None
    assert type(AutoProcessor.from_pretrained(folder)).__name__ == "ViChaProcessor"


def test_the_card_has_the_measured_numbers(demo):
    metrics = json.loads((demo[0] / "metrics.json").read_text())
    card = ModelCard.load(demo[0] / "model" / "README.md")
    values = {(result.dataset_config, result.metric_name): result.metric_value for result in card.data.eval_results}
    for name, measured in metrics["conditions"].items():
        assert values[name, "R@5, caption to pictures"] == round(measured["r5_t2i"], 2)


def test_the_report_shows_losses_results_and_pictures(demo):
    html = (demo[0] / "report.html").read_text()
    assert html.count('<svg class="chart"') == 6
    assert html.count("<article") == 12
    assert "miss_rate" in html and "OpenMoji" in html


def test_the_table_is_printed_last(demo):
    printed = demo[1]
    assert printed.index("accelerate launch") < printed.index("re-ranked")
    assert "Unseen compositions, without concepts" in printed
