"""A tiny model and its processor on disk, as `save_pretrained` leaves them, and a gallery of images to try them on."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from simla_models import simla_model
from tiny_models import tiny_retrieval_model
from tiny_tokenizer import build_tiny_tokenizer

from vicha_hf import (
    SimlaForPreTraining,
    SimlaImageProcessor,
    SimlaProcessor,
    ViChaForRetrieval,
    ViChaImageProcessor,
    ViChaProcessor,
)


CAPTIONS = [
    ["a red ball on the grass"],
    ["two dogs running in the snow", "small white dogs"],
    ["a man riding a brown horse", "a horse and a man", "a man"],
    ["a blue boat next to a tree"],
    ["birds on a car"],
]
CONCEPTS = [["ball", "grass"], ["dog", "snow", "white"], [], ["boat"], ["bird", "car", "black"]]


def tiny_processor(folder: Path) -> ViChaProcessor:
    """Fits `tiny_models`; `folder` receives the tokenizer's vocabulary."""
    image_processor = ViChaImageProcessor(size={"height": 32, "width": 32})
    return ViChaProcessor(image_processor, build_tiny_tokenizer(folder), max_text_length=20, max_concept_length=20)


def write_model_folder(folder: Path, **config_fields) -> ViChaForRetrieval:
    """Saves a `ViChaForRetrieval` with random weights and its processor; returns the model."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny_processor(folder).save_pretrained(folder)
    model = tiny_retrieval_model(**config_fields)
    model.save_pretrained(folder)
    return model


def write_simla_folder(folder: Path, **config_fields) -> SimlaForPreTraining:
    """Saves a `SimlaForPreTraining` with random weights and its processor; returns the model."""
    folder.mkdir(parents=True, exist_ok=True)
    image_processor = SimlaImageProcessor(size={"height": 32, "width": 32})
    SimlaProcessor(image_processor, build_tiny_tokenizer(folder), max_text_length=20).save_pretrained(folder)
    model = simla_model(SimlaForPreTraining, **config_fields)
    model.save_pretrained(folder)
    return model


def write_gallery(folder: Path) -> Path:
    """Five images of noise with one to three captions each, one of them without concepts; returns the annotations."""
    generator = np.random.default_rng(0)
    records = []
    for number, (captions, concepts) in enumerate(zip(CAPTIONS, CONCEPTS, strict=True)):
        pixels = generator.integers(0, 256, (40, 36 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        records.append({"image": f"{number}.png", "caption": captions, "concepts": concepts, "image_id": number})
    annotations = folder / "annotations.json"
    annotations.write_text(json.dumps(records), encoding="utf-8")
    return annotations
