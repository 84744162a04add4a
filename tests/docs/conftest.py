"""A folder that looks like a checkout after `make demo`, small enough to be made in a second."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_model_folder import tiny_processor, write_gallery, write_model_folder, write_simla_folder
from tiny_models import tiny_config

from vicha_hf.concepts import ConceptIndex, DualEncoder
from vicha_hf.families import HEADS
from vicha_hf.models.concept_selector import CONCEPT_INDEX_FOLDER


ROOT = Path(__file__).parents[2]


def noise(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="session")
def checkout(tmp_path_factory) -> Path:
    """Tiny stand-ins for the demo's model and corpus, and the files that the documents' commands name."""
    root = tmp_path_factory.mktemp("checkout")
    (root / "examples").symlink_to(ROOT / "examples")
    write_model_folder(root / "outputs/demo/model")
    encoder = DualEncoder.from_pretrained(str(root / "outputs/demo/model"))
    index = ConceptIndex.build(["dog", "ball", "grass", "boat", "tree"], encoder, ("{}",), 3, own=True)
    index.save_pretrained(root / "outputs/demo/model" / CONCEPT_INDEX_FOLDER)
    write_simla_folder(root / "outputs/simla_tiny/model")
    for task in ("retrieval", "vqa", "entailment", "reasoning", "grounding"):
        folder = root / f"outputs/{task}/best_model"
        folder.mkdir(parents=True)
        tiny_processor(folder).save_pretrained(folder)
        HEADS["vicha"][task](tiny_config()).save_pretrained(folder)
    answers = ["red", "blue", "two", "a dog", "a cat", "no"]
    (root / "outputs/vqa/best_model/answer_list.json").write_text(json.dumps(answers), encoding="utf-8")
    corpus = root / "outputs/demo_corpus"
    for number in range(2):
        noise(corpus / f"images/test/{number:05d}.png", number)
    write_gallery(corpus).rename(corpus / "test.json")
    boxes = {"bbox": [4, 4, 20, 20], "boxes": [[5, 5, 20, 20], [0, 0, 8, 8]]}
    expressions = [{"image": "images/test/00000.png", "ref_id": 0, "text": "a dog", "split": "val"} | boxes]
    (corpus / "grounding_validation.json").write_text(json.dumps(expressions), encoding="utf-8")
    write_gallery(root).rename(root / "validation.json")
    (root / "tokenizer").mkdir()
    tiny_processor(root / "tokenizer").tokenizer.save_pretrained(root / "tokenizer")
    records = [
        {"image": f"images/{number}.jpg", "caption": f"a dog and {number} birds", "concepts": ["dog", "bird"]}
        for number in range(4)
    ]
    for number in range(4):
        noise(root / f"images/{number}.jpg", number)
    (root / "annotations.json").write_text(json.dumps(records), encoding="utf-8")
    checkpoint = ROOT / "tests/golden/data/vicha_retrieval/original.pth"
    (root / "checkpoint.pth").symlink_to(checkpoint)
    return root
