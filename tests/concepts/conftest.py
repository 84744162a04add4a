"""A tiny corpus of images with captions, and a tiny CLIP that looks for concepts in it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_dual_encoders import write_tiny_clip

from vicha_hf.concepts import ConceptCorpus, DualEncoder


CAPTIONS = (
    "a dog on the grass",
    "two cats near a fire hydrant.",
    "A zebra drinking water",
    "a boy with a ball",
    "a red car next to a tree",
)
NUM_IMAGES = 23


def write_corpus(folder: Path, number: int = NUM_IMAGES) -> Path:
    """Images of noise, each with one caption; one image has two records."""
    rng = np.random.default_rng(0)
    records = []
    for index in range(number):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(folder / f"{index}.png")
        records.append({"image": f"{index}.png", "caption": CAPTIONS[index % len(CAPTIONS)], "source": index})
    records.append({"image": "0.png", "caption": ["a dog", "a small dog"], "source": number})
    path = folder / "train.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


@pytest.fixture
def corpus_file(tmp_path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    return write_corpus(folder)


@pytest.fixture
def corpus(corpus_file) -> ConceptCorpus:
    return ConceptCorpus(str(corpus_file))


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    write_tiny_clip(folder)
    return folder


@pytest.fixture(scope="session")
def clip(clip_folder) -> DualEncoder:
    return DualEncoder.from_pretrained(str(clip_folder), device="cpu")
