import pytest
import torch
from PIL import Image

from vicha_hf.data.annotations import read_image_text_records
from vicha_hf.data.datasets_retrieval import RetrievalDataset
from vicha_hf.data.transforms import EvaluationTransform
from vicha_hf.models.image_processing_vicha import ViChaImageProcessor


def test_images_once_and_all_captions(write_json, image_records, image_folder):
    dataset = RetrievalDataset(read_image_text_records(write_json(image_records)), EvaluationTransform(32))
    assert len(dataset) == 6 and len(dataset.texts) == 12
    assert dataset.captions_of_image == [[0], [1, 2], [3, 4, 5], [6], [7, 8], [9, 10, 11]]
    assert dataset.image_of_caption == [0, 1, 1, 2, 2, 2, 3, 4, 4, 5, 5, 5]
    assert dataset.texts[4] == "A red dog, photo 1!"
    item = dataset[2]
    expected = ViChaImageProcessor(size=32)(Image.open(image_folder / "images" / "2.png"), return_tensors="pt")
    assert torch.equal(item["pixel_values"], expected["pixel_values"][0])
    assert item["concepts"] == ["dog", "cat"] and item["image_id"] == 2


def test_records_of_one_image_are_merged(write_json):
    path = write_json(
        [
            {"image": "images/1.png", "caption": "one", "concepts": ["dog"]},
            {"image": "images/0.png", "caption": "two"},
            {"image": "images/1.png", "caption": ["three", "four"], "concepts": ["cat", "dog"]},
        ]
    )
    dataset = RetrievalDataset(read_image_text_records(path), EvaluationTransform(8))
    assert dataset.texts == ["one", "two", "three", "four"]
    assert dataset.captions_of_image == [[0, 2, 3], [1]]
    assert dataset.image_of_caption == [0, 1, 0, 0]
    assert dataset[0]["concepts"] == ["dog", "cat"]


def test_iteration_ends_and_options(write_json, image_records):
    annotations = read_image_text_records(write_json(image_records))
    dataset = RetrievalDataset(annotations, EvaluationTransform(8), use_concepts=False)
    assert [item["concepts"] for item in dataset] == [[]] * 6
    with pytest.raises(IndexError):
        dataset[6]
