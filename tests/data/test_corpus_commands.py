"""`vicha-hf data check` and `vicha-hf data pack`, as a user runs them."""

import json
import os

import numpy as np
import pytest
from PIL import Image, ImageFilter
from transformers.utils import logging

from vicha_hf.cli import main
from vicha_hf.data.annotations import read_image_text_records
from vicha_hf.data.stored_images import EmbeddedImage


@pytest.fixture
def command(capsys):
    def run(*argv, status=0):
        assert main(["data", *map(str, argv), "--no-progress"]) == status
        printed = capsys.readouterr()
        return printed.out + printed.err

    return run


@pytest.fixture
def scenes(tmp_path):
    """`images/0.jpg` ... `images/7.jpg`, smooth and all different."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(8):
        pixels = rng.integers(0, 256, size=(12, 16, 3), dtype=np.uint8)
        image = (
            Image.fromarray(pixels).resize((320, 240), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(2))
        )
        image.save(tmp_path / "images" / f"{number}.jpg", quality=95)
    return tmp_path


def write(folder, name, numbers, **fields):
    records = [
        {"image": f"images/{number}.jpg", "caption": ["a dog", "a dog on grass"], "concepts": ["dog"]} | fields
        for number in numbers
    ]
    (folder / name).write_text(json.dumps(records))
    return folder / name


def test_a_clean_corpus(command, scenes):
    train, test = write(scenes, "train.json", range(5)), write(scenes, "test.json", range(5, 8))
    printed = command("check", train, test, "--json", scenes / "check.json", "--html", scenes / "check.html")
    result = json.loads((scenes / "check.json").read_text())
    assert (result["records"], result["usable"], result["problems"]) == (8, 8, {})
    assert result["splits"] == {str(train): 5, str(test): 3} and result["images"] == 8
    assert result["caption_words"] == {"2": 8, "4": 8} and result["image_shorter_side"] == {"240": 8}
    assert "8 of 8 records usable" in printed
    assert "<h1>Check of" in (scenes / "check.html").read_text()


def test_everything_that_is_wrong_is_counted_and_a_clean_copy_written(command, scenes):
    path = write(scenes, "train.json", range(4))
    records = json.loads(path.read_text())
    content = (scenes / "images" / "4.jpg").read_bytes()
    (scenes / "images" / "cut.jpg").write_bytes(content[: len(content) * 9 // 10])
    records += [
        {"image": "images/cut.jpg", "caption": "cut"},
        {"image": "images/none.jpg", "caption": "missing"},
        {"image": "images/5.jpg", "caption": ""},
        {"image": "images/6.jpg", "caption": "one", "image_id": 1},
        {"image": "images/7.jpg", "caption": "<b>other</b>", "image_id": 1, "kept": [1]},
    ]
    path.write_text(json.dumps(records))
    before = path.read_bytes()
    fixed = scenes / "clean" / "train.jsonl"
    files = ("--json", scenes / "check.json", "--html", scenes / "check.html", "--fix", fixed)
    printed = command("check", path, *files, status=1)
    result = json.loads((scenes / "check.json").read_text())
    assert (result["records"], result["usable"]) == (9, 5)
    assert result["problems"] == {
        "field 'image': truncated": 1,
        "field 'image': file not found": 1,
        "field 'caption': empty": 1,
        "field 'image_id': that of another image": 1,
    }
    assert result["records_without_concepts"] == 1 and result["unknown_fields"] == {}
    assert "train.json, record 4: cannot read the image" in printed
    assert path.read_bytes() == before
    copy = [json.loads(line) for line in fixed.read_text().splitlines()]
    assert [os.path.basename(one["image"]) for one in copy] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "6.jpg"]
    assert command("check", fixed)
    assert "&lt;b&gt;" not in (scenes / "check.html").read_text()
    printed = command("check", path, "--fix", path, status=1)
    assert f"{path} is read by this command" in printed and path.read_bytes() == before


@pytest.mark.parametrize("name", ["check", "pack"])
def test_bad_records_are_told_once(command, scenes, caplog, name):
    path = write(scenes, "train.json", range(3))
    path.write_text(json.dumps([*json.loads(path.read_text()), {"image": "images/none.jpg", "caption": "missing"}]))
    options = ("--output", scenes / "shards", "--on-bad-record", "skip") if name == "pack" else ()
    logger = logging.get_logger("vicha_hf")
    logger.addHandler(caplog.handler)
    try:
        printed = command(name, path, *options, status=1 if name == "check" else 0)
    finally:
        logger.removeHandler(caplog.handler)
    told = printed + caplog.text
    assert told.count("3 of 4 records usable") == 1 and told.count("none.jpg") == 1


def test_leakage_between_splits_is_found(command, scenes):
    train = write(scenes, "train.json", range(4))
    leaked = Image.open(scenes / "images" / "2.jpg")
    leaked.resize((200, 150)).save(scenes / "images" / "9.jpg", quality=60)
    test = write(scenes, "test.json", [4, 9])
    printed = command("check", train, test, "--json", scenes / "check.json", status=1)
    result = json.loads((scenes / "check.json").read_text())
    assert result["problems"] == {"nearly equal images in different splits": 1} and result["usable"] == 6
    (pair,) = result["near_duplicates"]
    assert {os.path.basename(pair["first"]), os.path.basename(pair["second"])} == {"2.jpg", "9.jpg"}
    assert "test.json, record 1" in printed
    # The same by a field, and within one split it is no leakage.
    whole = json.loads(train.read_text()) + json.loads(test.read_text())
    for record, split in zip(whole, ["train"] * 4 + ["val"] * 2, strict=True):
        record["split"] = split
    (scenes / "all.json").write_text(json.dumps(whole))
    assert "1 x nearly equal" in command("check", scenes / "all.json", status=1)
    (scenes / "all.json").write_text(json.dumps([one | {"split": "train"} for one in whole]))
    command("check", scenes / "all.json")


def test_images_of_one_colour_are_no_leakage(command, scenes):
    for number, colour in enumerate(["red", "green", "blue", "navy"]):
        Image.new("RGB", (64, 64), colour).save(scenes / "images" / f"{number}.jpg")
    command("check", write(scenes, "train.json", [0, 1]), write(scenes, "test.json", [2, 3]))


@pytest.mark.parametrize("task", ["vqa", "grounding", "reasoning", "entailment"])
def test_other_tasks(command, scenes, task):
    image = {"image": "images/0.jpg"}
    records = {
        "vqa": image | {"question": "what?", "answer": ["dog"], "question_id": 1},
        "grounding": image | {"text": "a dog", "bbox": [0, 0, 9, 9], "boxes": [[0, 0, 9, 9]]},
        "reasoning": {"images": ["images/0.jpg", "images/1.jpg"], "sentence": "two dogs", "label": "True"},
        "entailment": image | {"sentence": "a dog", "label": "neutral"},
    }
    (scenes / "a.json").write_text(json.dumps([records[task], {}]))
    command("check", scenes / "a.json", "--task", task, "--json", scenes / "check.json", status=1)
    result = json.loads((scenes / "check.json").read_text())
    assert (result["records"], result["usable"]) == (2, 1)


def test_nothing_usable_is_a_result_too(command, scenes):
    (scenes / "a.json").write_text(json.dumps([{"image": "none.jpg", "caption": "a"}]))
    command("check", scenes / "a.json", "--json", scenes / "check.json", status=1)
    assert json.loads((scenes / "check.json").read_text())["usable"] == 0
    assert command("check", scenes / "none.json", status=1).count("\n") == 1


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_packed_shards_are_a_source_like_any_other(command, scenes, kind):
    path = write(scenes, "train.json", range(8))
    options = ("--format", kind, "--side", 100, "--records-per-shard", 3)
    printed = command("pack", path, "--output", scenes / "packed", *options)
    assert "8 records in 3 shards" in printed
    plain, packed = read_image_text_records(path), read_image_text_records(scenes / "packed")
    assert len(packed) == 8
    for one, other in zip(plain, packed, strict=True):
        assert (one.captions, one.concepts, one.image_id) == (other.captions, other.concepts, other.image_id)
        assert isinstance(other.image, EmbeddedImage)
        image = other.load_image()
        assert image.size == (133, 100)
        difference = np.asarray(one.load_image().resize(image.size), dtype=int) - np.asarray(image, dtype=int)
        assert np.abs(difference).mean() < 4
    again = scenes / "again"
    command("pack", path, "--output", again, *options, "--num-workers", 1)
    for shard in again.iterdir():
        assert shard.read_bytes() == (scenes / "packed" / shard.name).read_bytes()
    assert "is there already" in command("pack", path, "--output", scenes / "packed", status=1)


def test_a_jpeg_that_need_not_change_is_not_compressed_again(command, scenes):
    path = write(scenes, "train.json", range(2))
    command("pack", path, "--output", scenes / "packed", "--side", 0)
    record = read_image_text_records(scenes / "packed")[1]
    assert record.image.read_bytes() == (scenes / "images" / "1.jpg").read_bytes()


def test_packing_without_unreadable_images(command, scenes):
    (scenes / "images" / "1.jpg").write_bytes(b"")
    path = write(scenes, "train.json", range(3))
    printed = command("pack", path, "--output", scenes / "packed", status=1)
    assert "train.json, record 1: cannot read the image" in printed and not (scenes / "packed").exists()
    printed = command("pack", path, "--output", scenes / "packed", "--on-bad-record", "skip")
    assert "2 of 3 records usable" in printed and "an empty file" in printed
    assert len(read_image_text_records(scenes / "packed")) == 2
