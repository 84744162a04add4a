"""The licence of data, from wherever it is stated to the card of a model that was trained on it."""

import json
import shutil

import datasets
import pytest
from PIL import Image
from tiny_model_folder import write_model_folder

from vicha_hf.cli import main
from vicha_hf.data.source_license import carry_license, common_license, read_license, write_license
from vicha_hf.families import load_finetuned
from vicha_hf.training.arguments import TrainingArguments
from vicha_hf.training.model_card import _name_of, card_of_run


@pytest.fixture
def corpus(tmp_path):
    for number in range(3):
        Image.new("RGB", (8, 8), (90 * number, 0, 0)).save(tmp_path / f"{number}.png")
    path = tmp_path / "train.json"
    path.write_text(json.dumps([{"image": f"{number}.png", "caption": f"a dog {number}"} for number in range(3)]))
    return path


def test_nothing_states_it(corpus, tmp_path):
    (tmp_path / "README.md").write_text("no card\n")
    assert read_license(corpus) is None and read_license(tmp_path) is None
    assert read_license("org/nowhere") is None and common_license([corpus, "nowhere"]) is None
    (tmp_path / "train.json.license").write_bytes(b"\xff\xfe")
    (tmp_path / "dataset_info.json").write_text("[1")
    assert read_license(corpus) is None


def test_the_nearest_statement_counts(corpus, tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert read_license(corpus) == read_license(str(tmp_path)) == read_license(tmp_path / "*.json") == "mit"
    (tmp_path / "ATTRIBUTION.txt").write_text("Drawings: CC BY-SA 4.0\nmore\n")
    assert read_license(corpus) == "Drawings: CC BY-SA 4.0"
    write_license(corpus, "CC BY 4.0")
    assert read_license(corpus) == "CC BY 4.0"


def test_a_saved_dataset_states_its_own(tmp_path):
    table = datasets.Dataset.from_dict({"caption": ["a dog"]})
    table.info.license = "cc0-1.0"
    table.save_to_disk(tmp_path / "saved")
    assert read_license(tmp_path / "saved") == "cc0-1.0"


def test_several_sources(corpus, tmp_path):
    other = shutil.copy(corpus, tmp_path / "other.json")
    write_license(corpus, "CC BY 4.0")
    assert common_license([str(corpus), {"path": str(other)}]) == "train.json: CC BY 4.0; other.json: not stated"
    carry_license(corpus, tmp_path / "other.json")
    assert common_license([str(corpus), str(other)]) == common_license(str(other)) == "CC BY 4.0"


def test_it_goes_along_with_what_is_made_of_the_corpus(corpus, tmp_path):
    write_license(corpus, "CC BY 4.0")
    main(["data", "check", str(corpus), "--fix", str(tmp_path / "clean" / "fixed.jsonl"), "--num-workers", "0"])
    assert read_license(tmp_path / "clean" / "fixed.jsonl") == "CC BY 4.0"
    assert main(["data", "pack", str(corpus), "--output", str(tmp_path / "shards")]) == 0
    assert read_license(tmp_path / "shards") == read_license(tmp_path / "shards" / "*.tar") == "CC BY 4.0"


def test_the_card_states_it(corpus, tmp_path):
    write_model_folder(tmp_path / "model")
    model = load_finetuned("retrieval", str(tmp_path / "model"))

    def row(**options):
        arguments = TrainingArguments(output_dir=str(tmp_path / "run"), **options)
        arguments.data = type("Data", (), {"train": [str(corpus)], "validation": None})
        text = card_of_run(model, arguments, {}, {}, tmp_path / "run", with_curve=False).build().text
        return next(line for line in text.splitlines() if line.startswith("| licence of the training data"))

    assert "not stated; `--data_license TEXT`" in row()
    assert _name_of("/home/me/outputs/demo/model") == "demo/model" and _name_of("/home/me/train.json") == "train.json"
    write_license(corpus, "CC BY 4.0")
    assert row().endswith("| CC BY 4.0 |")
    assert row(data_license="my own").endswith("| my own |")
