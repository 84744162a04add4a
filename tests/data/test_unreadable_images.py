"""Images that cannot be decoded: an error that names them, or a counted skip that changes nothing else."""

import json

import numpy as np
import pytest
from PIL import Image

from vicha_hf.data.annotations import read_image_text_records
from vicha_hf.data.datasets_pretraining import PretrainingDataset
from vicha_hf.data.image_files import ImageReadError, open_image
from vicha_hf.data.read_report import RejectsFile
from vicha_hf.data.transforms import PretrainingTransform


@pytest.fixture
def broken(image_folder):
    """Names of unusable files, with the cause that they are counted under."""
    folder = image_folder / "images"
    whole = (folder / "0.png").read_bytes()
    Image.open(folder / "0.png").resize((300, 300)).save(folder / "whole.jpg")
    jpeg = (folder / "whole.jpg").read_bytes()
    files = {
        "truncated": jpeg[: len(jpeg) * 9 // 10],
        "an empty file": b"",
        "a web page, not an image": b"<html><body>404</body></html>",
        "a pointer of Git LFS, not an image": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "not an image": b"text",
        "damaged": whole[:50] + bytes(len(whole) - 50),
    }
    names = {}
    for cause, content in files.items():
        name = f"images/broken_{len(names)}.jpg"
        (image_folder / name).write_bytes(content)
        names[name] = cause
    return names


def test_the_cause_is_named(broken, image_folder, monkeypatch):
    for name, cause in broken.items():
        with pytest.raises(ImageReadError, match=rf"a.json, record 3: cannot read the image .*{name} \(") as error:
            open_image(str(image_folder / name), "a.json, record 3")
        assert error.value.cause == cause, name
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageReadError) as error:
        open_image(str(image_folder / "images" / "0.png"), "a.json, record 3")
    assert error.value.cause == "too many pixels"


def test_a_pipe_is_no_image(image_folder):
    import os

    os.mkfifo(image_folder / "images" / "pipe.jpg")
    with pytest.raises(ImageReadError, match="no file") as error:
        open_image(str(image_folder / "images" / "pipe.jpg"), "a.json, record 3")
    assert error.value.cause == "no file"


def dataset_of(path, **options):
    annotations = read_image_text_records(path)
    transform = PretrainingTransform(16, randaugment=False)
    return PretrainingDataset(annotations, transform, seed=3, **options)


def test_training_stops_at_them_by_default(write_json, image_records, broken):
    name = next(iter(broken))
    path = write_json([*image_records, {"image": name, "caption": "a dog"}])
    with pytest.raises(ImageReadError, match=rf"train.json, record 6: .*{name}"):
        dataset_of(path)[6]


def test_a_skip_is_another_draw_and_leaves_the_rest_alone(write_json, image_records, broken, tmp_path):
    records = [*image_records, *({"image": name, "caption": "a dog"} for name in broken)]
    path = write_json(records)
    plain, skipping = dataset_of(path), dataset_of(path, on_bad_record="skip")
    skipping.rejects = RejectsFile(tmp_path / "rejected_records.jsonl")
    epochs = []
    for epoch in range(2):
        plain.set_epoch(epoch)
        skipping.set_epoch(epoch)
        epochs.append([skipping[index] for index in range(len(records))])
        for index in range(len(image_records)):
            assert np.array_equal(plain[index]["pixel_values"], epochs[epoch][index]["pixel_values"])
    usable = set(range(len(image_records)))
    replaced = [[item["image_id"] for item in items[len(image_records) :]] for items in epochs]
    assert {number for numbers in replaced for number in numbers} <= usable
    assert replaced[0] != replaced[1]
    # Another process, another order: the same draws.
    again = dataset_of(path, on_bad_record="skip")
    again.set_epoch(1)
    for index in reversed(range(len(records))):
        assert np.array_equal(again[index]["pixel_values"], epochs[1][index]["pixel_values"])
    assert skipping.rejects.counts() == {f"field 'image': {cause}": 1 for cause in broken.values()}
    lines = [json.loads(line) for line in skipping.rejects.path.read_text().splitlines()]
    assert {line["record"] for line in lines} == {f"{path}, record {6 + number}" for number in range(len(broken))}


def test_a_corpus_of_nothing_else_is_an_error(write_json, broken):
    path = write_json([{"image": name, "caption": "a dog"} for name in broken])
    with pytest.raises(ImageReadError):
        dataset_of(path, on_bad_record="skip")[0]


def test_an_evaluation_leaves_them_out_beforehand(write_json, image_records, broken):
    path = write_json(
        [*image_records[:2], *({"image": name, "caption": "a dog"} for name in broken), image_records[2]]
    )
    annotations = read_image_text_records(path, on_bad_record="skip", decode_images=True)
    assert [record.where.split(", ")[1] for record in annotations] == ["record 0", "record 1", "record 8"]
    assert annotations.report.causes == {f"field 'image': {cause}": 1 for cause in broken.values()}
    assert annotations.records_of_source == (3,)
