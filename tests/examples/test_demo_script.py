"""`examples/demo.py`, what `make demo` runs, from the corpus to the report on a handful of images, for every method."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from script_modules import load_script
from transformers import AutoModel, AutoProcessor

from vicha_hf.concepts import ConceptSelector
from vicha_hf.demo_corpus.found_concepts import nouns_shown
from vicha_hf.reporting.run_card import CURVE_FILE
from vicha_hf.whole_files import OutputFolderError


ROOT = Path(__file__).parents[2]
CORPUS = {"num_train": 24, "num_validation": 8, "num_test": 12, "num_compositional_test": 10, "image_size": 48}
PRETRAINING = (
    "--max_steps 2 --per_device_batch_size 4 --logging_steps 1 --trackers [] --data.rerank_k 6 "
    "--model.vision_config.image_size 48"
)


# Nine patches, of which at most four are masked.
SIMLA = "--model.config.visual_vocab_size 16 --model.config.mim_max_masked_patches 4 --model.config.mim_min_block_patches 1"


@pytest.fixture(scope="module")
def run_demo(tmp_path_factory):
    """Runs the demo on one corpus; returns the folder that it wrote, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")

    def run(config: str, num_processes: int, pretraining: str = "", *options: str) -> tuple[Path, str]:
        output = folder / (config.replace("/", "_") + "".join(options))
        command = [sys.executable, ROOT / "examples/demo.py", "--config", ROOT / f"examples/configs/{config}.yaml"]
        command += ["--output_dir", output, "--corpus_dir", folder / "corpus", "--num_processes", str(num_processes)]
        command += [*options, "--corpus", *(f"{name}={value}" for name, value in CORPUS.items())]
        command += ["--", *PRETRAINING.split(), *pretraining.split()]
        process = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=folder)
        assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-4000:]
        return output, process.stdout

    return run


@pytest.fixture(scope="module")
def demo(run_demo) -> tuple[Path, str]:
    """ViCHA with concepts that ALBEF finds, on two processes."""
    return run_demo("vicha/tiny", 2, "", "--bootstrap_steps=1")


@pytest.fixture(scope="module", params=["vicha/albef_tiny", "simla/tiny"])
def demo_without_concepts(request, run_demo) -> tuple[str, Path, str]:
    """The methods that take no concepts, on one process: name, folder, what was printed."""
    simla = request.param.startswith("simla")
    return "SIMLA" if simla else "ALBEF", *run_demo(request.param, 1, SIMLA if simla else "")


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
    suffixes = ("", "_found_concepts", "_without_concepts")
    assert set(conditions) == {f"{split}{suffix}" for split in ("test", "test_compositional") for suffix in suffixes}
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


def test_the_concepts_that_the_model_finds_are_measured(demo):
    metrics = json.loads((demo[0] / "metrics.json").read_text())
    shown = nouns_shown(demo[0].parent / "corpus" / "test.json")
    records = json.loads((demo[0].parent / "corpus" / "test.json").read_text())
    images = [demo[0].parent / "corpus" / record["image"] for record in records]
    # By the folder alone, in this process.
    found = ConceptSelector.from_pretrained(demo[0] / "model", device="cpu").words(images)
    right = [set(words) & nouns for words, nouns in zip(found, shown, strict=True)]
    in_five = [set(words[:5]) & nouns for words, nouns in zip(found, shown, strict=True)]
    assert metrics["concept_recall_at_15"] == pytest.approx(100 * sum(map(len, right)) / sum(map(len, shown)))
    assert metrics["concept_precision_at_5"] == pytest.approx(100 * sum(map(len, in_five)) / (5 * len(shown)))


def test_concepts_are_bootstrapped(demo):
    """ViCHA reads what a briefly trained ALBEF found, in training and in the evaluation, and starts from its weights."""
    folder, _ = demo
    selector = ConceptSelector.from_pretrained(folder / "model", device="cpu")
    for split in ("train", "validation", "test", "test_compositional"):
        selected = [json.loads(line) for line in (folder / f"concepts/{split}.jsonl").read_text().splitlines()]
        original = json.loads((folder.parent / f"corpus/{split}.json").read_text())
        assert [record["caption"] for record in selected] == [record["caption"] for record in original]
        assert all(set(record["concepts"]) <= set(selector.index.concepts) for record in selected)
        assert [record["concepts"] for record in selected] != [record["concepts"] for record in original]
    config = yaml.safe_load((folder / "pretraining/config.yaml").read_text())
    assert config["data"]["train"] == str(folder / "concepts/train.jsonl")
    assert config["model"]["weights_from"] == str(folder / "bootstrap/model")
    bootstrap = json.loads((folder / "bootstrap/metrics.json").read_text())
    assert bootstrap["step"] == 1
    metrics = json.loads((folder / "metrics.json").read_text())
    assert "test_found_concepts" in metrics["conditions"]
    own = json.loads((folder / "pretraining/metrics.json").read_text())["train_seconds"]
    assert metrics["train_seconds"] == pytest.approx(own + bootstrap["train_seconds"])
    shown = nouns_shown(folder.parent / "corpus/test.json")
    selected = [json.loads(line)["concepts"] for line in (folder / "concepts/test.jsonl").read_text().splitlines()]
    right = sum(len(set(words[:15]) & nouns) for words, nouns in zip(selected, shown, strict=True))
    measured = metrics["concepts"]["ALBEF after 1 steps"]["concept_recall_at_15"]
    assert measured == pytest.approx(100 * right / sum(map(len, shown)))
    page = (folder / "report.html").read_text()
    for finder in ("the model itself", "the corpus&#x27;s generator", "ALBEF after 1 steps", "chance"):
        assert f"found by {finder}: precision of 5, recall of 15" in page
    assert "ALBEF found in it after 1 steps" in (folder / "model/README.md").read_text()


def test_the_corpus_has_concepts_of_its_own(run_demo):
    folder, _ = run_demo("vicha/tiny", 1, "", "--bootstrap_steps=0")
    assert not (folder / "bootstrap").exists() and not (folder / "concepts").exists()
    config = yaml.safe_load((folder / "pretraining/config.yaml").read_text())
    assert config["data"]["train"] == str(folder.parent / "corpus/train.json")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["concepts"].keys() == {"the model itself", "the corpus's generator"}
    assert "miss_rate" in (folder / "report.html").read_text()
    assert "noisy extractor" in (folder / "model/README.md").read_text()


def test_the_card_has_the_measured_numbers(demo):
    metrics = json.loads((demo[0] / "metrics.json").read_text())
    card = ModelCard.load(demo[0] / "model" / "README.md")
    values = {(result.dataset_config, result.metric_name): result.metric_value for result in card.data.eval_results}
    for name, measured in metrics["conditions"].items():
        assert values[name, "R@5, caption to images"] == round(measured["r5_t2i"], 2)
    assert card.data.metrics == ["recall"] and "CC BY-SA 4.0" in card.text
    assert "python examples/demo.py " in card.text and "trains and evaluates again" in card.text
    assert f"]({CURVE_FILE})" in card.text and (demo[0] / "model" / CURVE_FILE).read_text().startswith("<svg")


def test_the_report_shows_losses_results_and_images(demo):
    html = (demo[0] / "report.html").read_text()
    assert html.count('<svg class="chart"') == 6
    # Six captions, six images, and three captions whose words look somewhere.
    assert html.count("<article") == 15
    assert "Where words look" in html and "Words read off" not in html
    assert "OpenMoji" in html


def test_the_table_is_printed_last(demo):
    printed = demo[1]
    assert printed.index("accelerate launch") < printed.index("re-ranked")
    assert "Unseen compositions, without concepts" in printed


def test_two_processes_share_the_batch(demo):
    trained = json.loads((demo[0] / "pretraining/metrics.json").read_text())
    assert trained["num_processes"] == 2 and trained["samples_per_step"] == 8
    assert json.loads((demo[0] / "metrics.json").read_text())["train_processes"] == 2
    html = (demo[0] / "report.html").read_text()
    assert "<dt>processes</dt><dd>2</dd>" in html and "<dt>batch of all processes</dt><dd>8</dd>" in html
    assert "--num_processes 2" in demo[1]


def test_methods_without_concepts_say_nothing_about_concepts(demo_without_concepts):
    method, folder, printed = demo_without_concepts
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics["conditions"]) == {"test_without_concepts", "test_compositional_without_concepts"}
    assert metrics["r1_i2t"] == metrics["conditions"]["test_without_concepts"]["r1_i2t"]
    assert metrics["train_processes"] == 1
    card = ModelCard.load(folder / "model" / "README.md")
    assert card.data.model_name == f"{method.lower()}-tiny"
    assert "concepts=" not in card.text and "visual concepts as" not in card.text
    html = (folder / "report.html").read_text()
    assert f"<h1>{method} on the demo corpus</h1>" in html and "noisy visual concepts" not in html
    assert html.count("<article") == 15 and "concepts: " not in html
    assert "with visual concepts" not in printed + html


def test_a_keyword_head_shows_the_words_that_it_reads(demo_without_concepts):
    method, folder, printed = demo_without_concepts
    html = (folder / "report.html").read_text()
    has_keywords = method == "SIMLA"
    assert ("Words read off images" in html) == has_keywords == ("16 visual codes fitted" in printed)
    # Six words for each of six images.
    assert len(re.findall(r"<span class='word[ ']", html)) == (36 if has_keywords else 0)


def test_the_batch_of_the_recipe_is_that_of_all_processes(tmp_path):
    demo = load_script("examples/demo.py")
    arguments = demo.parse_arguments(["--config", str(ROOT / "examples/configs/simla/tiny.yaml"), "--", "--seed", "7"])
    recipe = yaml.safe_load(arguments.config.read_text())
    corpus = demo.DemoCorpus(tmp_path / "corpus", {})
    annotations = {split: corpus.annotations(split) for split in ("train", "validation")}

    def options_for(num_processes):
        return demo.pretraining_options(arguments, corpus, annotations, tmp_path / "run", num_processes)

    options = options_for(2)
    assert options[options.index("--per_device_batch_size") + 1] == str(recipe["per_device_batch_size"] // 2)
    # The codes of the recipe belong to another corpus.
    assert options[options.index("--data.visual_tokenizer") + 1] == str(tmp_path / "corpus/visual_tokenizer")
    assert options[-2:] == ["--seed", "7"]
    with pytest.raises(ValueError, match="cannot be shared by 5 processes"):
        options_for(5)


def test_a_model_of_another_run_is_left_alone(tmp_path):
    (tmp_path / "mine/model").mkdir(parents=True)
    (tmp_path / "mine/model/config.json").write_text("work of mine")
    with pytest.raises(
        OutputFolderError, match=r"model is there already and not the demo's: name another --output_dir"
    ):
        load_script("examples/demo.py").main(["--output_dir", str(tmp_path / "mine"), "--corpus_dir", str(tmp_path)])
    assert (tmp_path / "mine/model/config.json").read_text() == "work of mine"
