"""What is trained is what users call: a model that was trained here answers alike through every door of its folder."""

import json
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model_folder import tiny_processor
from tiny_models import tiny_retrieval_model
from transformers import AutoProcessor, AutoTokenizer, pipeline

from vicha_hf import ViChaForRetrieval, ViChaProcessor
from vicha_hf.cli import main
from vicha_hf.data.annotations import read_image_text_records
from vicha_hf.data.collators import PretrainingCollator
from vicha_hf.data.datasets_pretraining import PretrainingDataset
from vicha_hf.data.transforms import EvaluationTransform
from vicha_hf.evaluation.retrieval import retrieval_metrics


COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (250, 250, 250)}
NAMES = ["dog", "cat", "horse"]
# A label of 200 words, which every door must cut at the model's length.
LONG = "A Photo of a Red Dog, standing on the GRASS! " * 25


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of a model after a few steps on captions with capitals and punctuation; annotations; records."""
    root = tmp_path_factory.mktemp("doors")
    draw, noise, records = random.Random(0), np.random.default_rng(0), []
    for number, (colour, name) in enumerate((colour, name) for colour in COLOURS for name in NAMES):
        pixels = np.full((40, 36, 3), COLOURS[colour], dtype=np.uint8)
        pixels[: 12 * (1 + NAMES.index(name))] = noise.integers(0, 256, 3, dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
        caption = draw.choice(
            [f"A {colour.upper()} {name}.", f"a {colour}-{name} (on the grass)!", f"{name}; {colour}"]
        )
        records.append({"image": f"{number}.png", "caption": caption, "image_id": number})
    annotations = root / "annotations.json"
    annotations.write_text(json.dumps(records))
    folder = root / "model"
    folder.mkdir()
    processor = tiny_processor(folder)
    torch.manual_seed(0)
    model = tiny_retrieval_model(spread=False, text_config={"vocab_size": len(processor.tokenizer)}).train()
    dataset = PretrainingDataset(read_image_text_records(annotations), EvaluationTransform(32))
    batch = PretrainingCollator(processor)([dataset[index] for index in range(len(dataset))])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, annotations, records


@torch.no_grad()
def scores_through(processor, model, root, records):
    """Similarity [N, N] and both directions of re-ranking, as a user of the processor gets them."""
    images = model.encode_images(
        processor(images=[str(root / record["image"]) for record in records], return_tensors="pt").pixel_values
    )
    texts = model.encode_texts(
        **processor(text=[record["caption"] for record in records], padding=True, return_tensors="pt")
    )
    reranked = model.rerank(images, texts, k=4)
    return images.embeds @ texts.embeds.T, reranked.scores_i2t, reranked.scores_t2i


def test_retrieval_through_the_processor_is_that_of_evaluate(trained, tmp_path):
    folder, annotations, records = trained
    command = ["evaluate", str(folder), str(annotations), "--k", "4", "--json", str(tmp_path / "metrics.json")]
    assert main([*command, "--device", "cpu"]) == 0
    expected = json.loads((tmp_path / "metrics.json").read_text())
    pairs = [[index] for index in range(len(records))], list(range(len(records)))
    for processor in (ViChaProcessor.from_pretrained(folder), AutoProcessor.from_pretrained(folder)):
        model = ViChaForRetrieval.from_pretrained(folder).eval()
        similarity, i2t, t2i = scores_through(processor, model, folder.parent, records)
        observed = retrieval_metrics(i2t, t2i, *pairs)
        alone = retrieval_metrics(similarity, similarity.T, *pairs)
        observed |= {f"{name}_itc_only": value for name, value in alone.items()}
        assert observed == {name: expected[name] for name in observed}
    # A model that found everything, or nothing, would prove little.
    assert 100 / len(records) < expected["r5_i2t_itc_only"] <= 100


def test_written_otherwise_a_caption_is_the_same_caption(trained):
    folder, _, records = trained
    processor = AutoProcessor.from_pretrained(folder)
    model = ViChaForRetrieval.from_pretrained(folder).eval()
    expected = scores_through(processor, model, folder.parent, records)
    changed = [record | {"caption": f"  {record['caption'].title()}?! "} for record in records]
    for observed, wanted in zip(scores_through(processor, model, folder.parent, changed), expected, strict=True):
        torch.testing.assert_close(observed, wanted)


def test_the_tokenizer_alone_gives_the_processors_tokens(trained):
    folder, _, records = trained
    texts = [*(record["caption"] for record in records), LONG]
    tokenizer, processor = AutoTokenizer.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    encoded = tokenizer(texts, padding=True, truncation=True)
    expected = processor(text=texts, padding=True)
    assert encoded["input_ids"] == expected["input_ids"] and len(expected["input_ids"][0]) == 20


REMOTE = """
import json, sys
if sys.argv[3] == "remote":
    sys.modules["vicha_hf"] = None  # importing it is an error from here on
else:
    import vicha_hf
from transformers import pipeline
options = {"trust_remote_code": True} if sys.argv[3] == "remote" else {}
classify = pipeline("zero-shot-image-classification", model=sys.argv[1], **options)
image, labels = json.loads(sys.argv[2])
print(json.dumps({entry["label"]: entry["score"] for entry in classify(image, candidate_labels=labels)}))
"""


@pytest.mark.parametrize("door", ["here", "package", "remote"])
def test_the_zero_shot_pipeline_reads_labels_as_the_processor_does(trained, door, tmp_path):
    folder, _, records = trained
    labels = [*(record["caption"] for record in records), LONG]
    image = str(folder.parent / records[0]["image"])
    processor, model = AutoProcessor.from_pretrained(folder), ViChaForRetrieval.from_pretrained(folder).eval().vicha
    with torch.no_grad():
        inputs = processor(images=image, text=labels, padding=True, return_tensors="pt")
        expected = dict(zip(labels, model(**inputs).logits_per_image.softmax(dim=-1)[0].tolist(), strict=True))
    if door == "here":
        classify = pipeline("zero-shot-image-classification", model=str(folder))
        observed = {entry["label"]: entry["score"] for entry in classify(image, candidate_labels=labels)}
        # A template is still possible, and changes the text.
        templated = classify(image, candidate_labels=labels, hypothesis_template="two {}")
        assert {entry["label"]: entry["score"] for entry in templated} != pytest.approx(expected, abs=1e-4)
    else:
        command = [sys.executable, "-c", REMOTE, str(folder), json.dumps([image, labels]), door]
        output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout
        observed = json.loads(output.splitlines()[-1])
    assert observed == pytest.approx(expected, abs=1e-5)
    assert max(expected.values()) > 1.5 / len(labels)
