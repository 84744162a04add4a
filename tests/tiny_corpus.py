"""A folder of small images, a writer of annotation files, and a processor with a tiny tokenizer."""

import json

import numpy as np
import pytest
from PIL import Image
from tiny_tokenizer import build_tiny_tokenizer

from vicha_hf.models.image_processing_vicha import ViChaImageProcessor
from vicha_hf.models.processing_vicha import ViChaProcessor


NUM_IMAGES = 6


@pytest.fixture(scope="session")
def tiny_processor(tmp_path_factory):
    tokenizer = build_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return ViChaProcessor(ViChaImageProcessor(size=32), tokenizer, max_text_length=8, max_concept_length=10)


@pytest.fixture
def image_folder(tmp_path):
    """`images/0.png` ... of different sizes, made of noise."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(NUM_IMAGES):
        pixels = rng.integers(0, 256, size=(40 + number, 50 - number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    return tmp_path


@pytest.fixture
def write_json(image_folder):
    def write(content, name="train.json"):
        path = image_folder / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


@pytest.fixture
def image_records():
    """Annotations of the images: one to three captions, none to five concepts."""
    words = ["dog", "cat", "grass", "tree", "snow"]
    return [
        {
            "image": f"images/{number}.png",
            "caption": [f"A red dog, photo {index}!" for index in range(1 + number % 3)],
            "concepts": words[:number],
        }
        for number in range(NUM_IMAGES)
    ]
