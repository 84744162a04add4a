"""Pipelines of every task against the heads that they call, in every form that users hand images in."""

import http.server
import io
import json
import shutil
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from simla_models import SIMLA_HEADS, SimlaForRetrieval, simla_model
from tiny_model_folder import tiny_processor, write_gallery
from tiny_models import _build, tiny_config
from tiny_tokenizer import build_tiny_tokenizer
from transformers import AutoModel, AutoProcessor, ImageFeatureExtractionPipeline, ViTConfig, ViTModel, pipeline
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from vicha_hf import SimlaImageProcessor, SimlaProcessor
from vicha_hf.families import HEADS, load_finetuned
from vicha_hf.models.image_heatmap import hottest_box
from vicha_hf.models.task_grounding import rank_boxes


TASKS = {
    "retrieval": "image-text-retrieval",
    "vqa": "visual-question-answering",
    "grounding": "visual-grounding",
    "entailment": "visual-entailment",
    "reasoning": "visual-reasoning",
}
TEXTS = ["a red ball on the grass", "two dogs running in the snow", "a man"]
ANSWERS = ["red", "white tree", "two dogs", "grass"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """A folder for every head of both families, and five images."""
    root = tmp_path_factory.mktemp("pipelines")
    write_gallery(root)
    for task in TASKS:
        for family in ("vicha", "simla"):
            folder = root / f"{family}-{task}"
            folder.mkdir()
            if family == "vicha":
                head = HEADS["vicha"][task]
                _build(head, "sdpa", 0, True, tiny_config(rerank_similarity_weight=0.25)).save_pretrained(folder)
                tiny_processor(folder).save_pretrained(folder)
            else:
                simla_model({"retrieval": SimlaForRetrieval, **SIMLA_HEADS}[task]).save_pretrained(folder)
                image_processor = SimlaImageProcessor(size={"height": 32, "width": 32})
                SimlaProcessor(image_processor, build_tiny_tokenizer(folder), max_text_length=20).save_pretrained(
                    folder
                )
        (root / f"vicha-{task}" / "answer_list.json").write_text(json.dumps(ANSWERS))
    return root


@pytest.fixture(scope="module")
def load(folders):
    made = {}

    def load(task, family="vicha"):
        if (task, family) not in made:
            folder = folders / f"{family}-{task}"
            made[task, family] = pipeline(TASKS[task], model=str(folder), device="cpu")
        return made[task, family]

    return load


@pytest.fixture(scope="module")
def images(folders):
    return [str(folders / f"{number}.png") for number in range(5)]


@pytest.mark.parametrize("family", ["vicha", "simla"])
def test_retrieval_is_reranking(load, folders, images, family):
    retrieve = load("retrieval", family)
    folder = folders / f"{family}-retrieval"
    model, processor = load_finetuned("retrieval", str(folder)), AutoProcessor.from_pretrained(folder)
    encoded = [
        model.encode_images(**processor(images=images, return_tensors="pt")),
        model.encode_texts(**processor(text=TEXTS, padding=True, return_tensors="pt")),
    ]
    expected = model.rerank(*encoded, k=2)
    for number, results in enumerate(retrieve(images, TEXTS, k=2)):
        order = expected.scores_i2t[number].argsort(descending=True)[:2].tolist()
        assert [(entry["index"], entry["label"]) for entry in results] == [(index, TEXTS[index]) for index in order]
        for entry in results:
            assert entry["score"] == pytest.approx(expected.scores_i2t[number, entry["index"]].item(), abs=1e-4)
    found = retrieve(images, TEXTS[1], k=3)
    order = expected_images = model.rerank(*encoded, k=3).scores_t2i[1].argsort(descending=True)[:3].tolist()
    assert [entry["index"] for entry in found] == order
    assert [entry["label"] for entry in found] == [images[index] for index in expected_images]
    assert retrieve(images[0], TEXTS, top_k=1) == retrieve(images[0], TEXTS)[:1]
    published = retrieve(images[0], TEXTS, similarity_weight=0)
    assert {entry["score"] for entry in published} != {entry["score"] for entry in retrieve(images[0], TEXTS)} or (
        family == "simla"
    )
    assert retrieve({"image": images, "text": TEXTS[1]}, k=3) == found


def test_every_form_of_an_image_gives_the_same(load, folders, images):
    judge = load("entailment")
    path = Path(images[0])
    with Image.open(path) as opened:
        pillow = opened.convert("RGB")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=folders)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/0.png"
    forms = [str(path), path, pillow, path.read_bytes(), np.asarray(pillow), url, path.absolute().as_uri()]
    ground = load("grounding")
    classify = pipeline("zero-shot-image-classification", model=str(folders / "vicha-retrieval"), device="cpu")
    extract = pipeline("image-feature-extraction", model=str(folders / "vicha-retrieval"), device="cpu")
    try:
        results = [judge(form, TEXTS[0]) for form in forms]
        boxes = [ground(form, TEXTS[0]) for form in forms]
        # Arrays are no images for transformers' own call.
        loaded = [form for form in forms if not isinstance(form, np.ndarray)]
        labels = [classify(form, candidate_labels=TEXTS) for form in loaded]
        features = [extract(form, pool=True) for form in loaded]
    finally:
        server.shutdown()
    for found in boxes:
        assert_alike(found, boxes[0])
    assert all(found == labels[0] for found in labels) and len(labels[0]) == len(TEXTS)
    assert all(found == features[0] for found in features) and features[0] != extract(images[1], pool=True)
    with pytest.raises(OSError, match="12 bytes are no image file"):
        extract(b"not an image")
    for ask in (judge, ground):
        with pytest.raises(OSError, match="12 bytes are no image file"):
            ask(b"not an image", TEXTS[0])
        with pytest.raises(TypeError, match=r"an image is a Pillow image, a path, a URL, .* got float"):
            ask(3.5, TEXTS[0])
    assert all(result == results[0] for result in results)
    assert [set(entry) for entry in results[0]] == [{"score", "label"}] * 3
    assert sum(entry["score"] for entry in results[0]) == pytest.approx(1.0)
    assert results[0] != judge(images[1], TEXTS[0])


@pytest.mark.parametrize("family", ["vicha", "simla"])
@pytest.mark.parametrize("task", ["vqa", "entailment", "grounding"])
def test_batches_streams_and_datasets_give_what_single_queries_give(load, images, task, family):
    ask = load(task, family)
    field = ask.text_field
    options = {"answers": ANSWERS} if task == "vqa" else {}
    singles = [ask(image, text, **options) for image, text in zip(images[:3], TEXTS, strict=True)]
    queries = [{"image": image, field: text} for image, text in zip(images[:3], TEXTS, strict=True)]
    ways = [
        ask(images[:3], TEXTS, **options),
        ask(images[:3], TEXTS, batch_size=2, **options),
        ask(queries, batch_size=3, **options),
        list(ask(iter_of(queries), batch_size=2, **options)),
        ask(queries, batch_size=2, num_workers=1, **options),
        ask(image=images[:3], **{field: TEXTS}, **options),
    ]
    for results in ways:
        assert_alike(results, singles)
    assert_alike(ask(images[0], TEXTS[:2], **options), [singles[0], ask(images[0], TEXTS[1], **options)])
    assert ask([]) == []


def iter_of(queries):
    yield from queries


def assert_alike(one, other):
    """Equal but for the rounding of batches."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_alike(one[name], other[name])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_alike(a, b)
    elif isinstance(one, float | np.ndarray):
        np.testing.assert_allclose(one, other, atol=1e-5)
    else:
        assert one == other


def test_questions_are_answered_from_the_list_beside_the_model(load, folders, images):
    ask = load("vqa")
    model, processor = ask.model, ask.processor
    inputs = processor(images=images[0], text=TEXTS[0], return_tensors="pt")
    encoded = processor.tokenizer(ANSWERS, padding=True, return_token_type_ids=False, return_tensors="pt")
    ranking = model.rank_answers(**inputs, answers=dict(encoded), top_k=None)
    expected = [ANSWERS[index] for index in ranking.answer_indices[0].tolist()]
    results = ask(images[0], TEXTS[0])
    assert [entry["answer"] for entry in results] == expected
    assert [entry["score"] for entry in results] == pytest.approx(ranking.probabilities[0].tolist(), abs=1e-6)
    assert ask(images[0], TEXTS[0], top_k=2) == results[:2]
    assert ask(images[0], TEXTS[0], top_k=1, exact=True)[0]["answer"] == expected[0]
    assert {entry["answer"] for entry in ask(images[0], TEXTS[0], answers=["a", "an"])} == {"a", "an"}
    # The list of one call is not that of the next.
    assert [entry["answer"] for entry in ask(images[0], TEXTS[0])] == expected
    (written,) = ask(images[0], TEXTS[0], generate=True)
    own = model.generate(**inputs)
    assert written["answer"] == processor.tokenizer.decode(own[0], skip_special_tokens=True)
    assert 0 < written["score"] <= 1
    # SIMLA's folder here has no list.
    assert len(load("vqa", "simla")(images[0], TEXTS[0])) == 1


@pytest.mark.parametrize("content", ['["red",', '{"red": 1}', "[]", '["red", 1]'])
def test_a_broken_list_of_answers_is_named(folders, images, tmp_path, content):
    shutil.copytree(folders / "vicha-vqa", tmp_path / "model")
    (tmp_path / "model/answer_list.json").write_text(content)
    ask = pipeline("visual-question-answering", model=str(tmp_path / "model"), device="cpu")
    with pytest.raises(ValueError, match=r"answer_list\.json (cannot be read|is no list of answers)"):
        ask(images[0], TEXTS[0])


def test_concepts_reach_the_model(load, images):
    judge = load("entailment")
    without = judge(images[0], TEXTS[0])
    with_concepts = judge(images[0], TEXTS[0], concepts=["dog", "snow"])
    assert with_concepts != without
    assert judge({"image": images[0], "text": TEXTS[0], "concepts": ["dog", "snow"]}) == with_concepts
    mixed = [
        {"image": images[0], "text": TEXTS[0], "concepts": ["dog", "snow"]},
        {"image": images[0], "text": TEXTS[0]},
    ]
    assert_alike(judge(mixed, batch_size=2), [with_concepts, without])
    with pytest.raises(ValueError, match="reads no visual concepts"):
        load("entailment", "simla")(images[0], TEXTS[0], concepts=["dog"])


@pytest.mark.parametrize("family", ["vicha", "simla"])
def test_statements_about_two_images(load, images, family):
    judge = load("reasoning", family)
    one = judge(images[:2], TEXTS[0])
    other = judge(images[1::-1], TEXTS[0])
    assert {entry["label"] for entry in one} == {"True", "False"} and one != other
    assert_alike(judge([images[:2], images[1::-1]], TEXTS[0], batch_size=2), [one, other])
    assert_alike(judge({"images": images[:2], "text": TEXTS[0]}), one)
    with pytest.raises(ValueError, match="two images"):
        judge({"images": images[:3], "text": TEXTS[0]})


@pytest.mark.parametrize("method", ["itm", "itc"])
def test_grounding_chooses_the_hottest_place(load, images, method):
    ground = load("grounding")
    found = ground(images[0], TEXTS[0], method=method)
    inputs = ground.processor(images=images[0], text=TEXTS[0], return_tensors="pt")
    expected = ground.model(**inputs, method=method, return_loss=False).heatmaps[0]
    np.testing.assert_allclose(found["heatmap"], expected.detach().numpy(), atol=1e-6)
    box = found["box"]
    assert 0 <= box["xmin"] < box["xmax"] <= 36 and 0 <= box["ymin"] < box["ymax"] <= 40
    assert found["label"] == TEXTS[0]
    boxes = [[0, 0, 18, 20], [18, 0, 18, 20], [0, 20, 18, 20], [18, 20, 18, 20]]
    best = rank_boxes(expected[None], [boxes], [(40, 36)]).best_indices.item()
    chosen = ground(images[0], TEXTS[0], method=method, boxes=boxes)["box"]
    assert [chosen["xmin"], chosen["ymin"]] == boxes[best][:2]
    if method == "itm":
        assert_alike(ground(images[0], TEXTS[0]), found)


def test_the_hottest_box_is_that_of_a_slow_search():
    rng = np.random.default_rng(0)
    for _ in range(20):
        heat = rng.random((4, 5)) ** 4
        scores = {
            (left, top, right - left, bottom - top): heat[top:bottom, left:right].sum()
            / ((bottom - top) * (right - left)) ** 0.5
            for top in range(4)
            for bottom in range(top + 1, 5)
            for left in range(5)
            for right in range(left + 1, 6)
        }
        best = max(scores, key=scores.get)
        x, y, width, height = hottest_box(torch.tensor(heat), (40, 100))
        assert (x / 20, y / 10, width / 20, height / 10) == pytest.approx(best)
    assert hottest_box(np.zeros((4, 4)), (40, 40)) is None


@pytest.mark.parametrize("family", ["vicha", "simla"])
def test_features_of_images_alone_and_of_texts_alone(folders, images, family):
    folder = str(folders / f"{family}-retrieval")
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    encoded = model.get_image_features(**processor(images=images[0], return_tensors="pt"))
    extract = pipeline("image-feature-extraction", model=folder, device="cpu")
    pooled = extract(images[0], pool=True, return_tensors=True)
    torch.testing.assert_close(pooled, encoded.pooler_output, atol=1e-5, rtol=0)
    tokens = extract(images[:2], return_tensors=True)
    torch.testing.assert_close(tokens[0], encoded.last_hidden_state, atol=1e-5, rtol=0)
    if family == "vicha":
        words = [["dog", "snow"]]
        with_concepts = model.get_image_features(**processor(images=images[0], concepts=words, return_tensors="pt"))
        found = extract(images[0], concepts=words[0], return_tensors=True)
        torch.testing.assert_close(found, with_concepts.last_hidden_state, atol=1e-5, rtol=0)
        assert found.shape[1] > encoded.last_hidden_state.shape[1]
        with pytest.raises(ValueError, match="those of one image"):
            extract(images[:2], concepts=words[0])
    else:
        with pytest.raises(ValueError, match="reads no visual concepts"):
            extract(images[0], concepts=["dog"])
    with pytest.raises(ValueError, match="give an image"):
        extract()
    words = pipeline("feature-extraction", model=folder, device="cpu")(TEXTS[0], return_tensors=True)
    encoded = model.get_text_features(**processor(text=TEXTS[0], return_tensors="pt"))
    torch.testing.assert_close(words, encoded.last_hidden_state, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="needs `pixel_values`, `input_ids`, or both"):
        model()
    answering = pipeline("image-feature-extraction", model=str(folders / f"{family}-vqa"), device="cpu")
    with pytest.raises(ValueError, match="compares no images with texts"):
        answering(images[0], pool=True)


def test_images_of_other_models_go_as_before(images, tmp_path):
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=32, patch_size=16
    )
    ViTModel(config).save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    extract = pipeline("image-feature-extraction", model=str(tmp_path), device="cpu")
    found = ImageFeatureExtractionPipeline(extract.model, image_processor=extract.image_processor)(images[0])
    assert extract(images[0]) == found


def test_what_cannot_be_asked_is_refused_by_name(load, images, folders):
    ask, judge, retrieve = load("vqa"), load("entailment"), load("retrieval")
    with pytest.raises(ValueError, match="give a question"):
        ask(images[0])
    with pytest.raises(ValueError, match=r"needs 'question'; this one is \['image'\]"):
        ask({"image": images[0]})
    with pytest.raises(ValueError, match="2 images and 3 texts"):
        judge(images[:2], TEXTS)
    with pytest.raises(ValueError, match="top_k=0"):
        judge(images[0], TEXTS[0], top_k=0)
    with pytest.raises(ValueError, match="at least one answer"):
        ask(images[0], TEXTS[0], answers=[])
    with pytest.raises(TypeError, match="tpo_k"):
        judge(images[0], TEXTS[0], tpo_k=1)
    with pytest.raises(ValueError, match="at least one candidate"):
        retrieve(images[0], [])
    with pytest.raises(ValueError, match="cannot use a ViChaForVQA, which has no `rerank`"):
        pipeline("image-text-retrieval", model=ask.model, processor=ask.processor)
    with pytest.raises(ValueError, match="not fine-tuned for vqa"):
        pipeline("visual-question-answering", model=str(folders / "vicha-entailment"))
    with pytest.raises(ValueError, match="'question' is empty"):
        ask(images[0], "  ")
    with pytest.raises(ValueError, match="a candidate text is empty"):
        retrieve(images[0], ["a dog", ""])
    with pytest.raises(ValueError, match="lone surrogate"):
        judge(images[0], "a dog \udcff")
    with pytest.raises(OSError, match="8 bytes are no image file that can be read"):
        judge(b"no image", TEXTS[0])


def test_a_saved_pipeline_is_a_whole_folder(load, images, tmp_path):
    ask = load("vqa")
    ask.save_pretrained(tmp_path / "saved")
    again = pipeline("visual-question-answering", model=str(tmp_path / "saved"), device="cpu")
    assert again(images[0], TEXTS[0]) == ask(images[0], TEXTS[0])


REMOTE = """
import json, sys
sys.modules["vicha_hf"] = None  # any import of the package is now an ImportError
from transformers import pipeline
for folder, name, query, options in json.loads(sys.argv[1]):
    made = pipeline(name, model=folder, trust_remote_code=True, device="cpu")
    assert type(made).__module__.startswith("transformers_modules.")
    assert str(made.model.config)
    print("RESULT", json.dumps(made(query, **options), default=lambda value: value.tolist()))
"""


def test_folders_bring_their_pipelines(load, images, folders, tmp_path):
    """In a process that cannot import the package, the folders' own code gives the same."""
    calls, expected = [], []
    for family, task in [("vicha", task) for task in TASKS] + [("simla", "vqa")]:
        made = load(task, family)
        query = {
            "retrieval": {"image": images[0], "text": TEXTS},
            "reasoning": {"image": images[:2], "text": TEXTS[0]},
        }.get(task, {"image": images[0], made.text_field: TEXTS[0]})
        options = {"answers": ANSWERS} if task == "vqa" else {}
        calls.append([str(folders / f"{family}-{task}"), TASKS[task], query, options])
        expected.append(json.loads(json.dumps(made(query, **options), default=lambda value: value.tolist())))
    extract = pipeline("image-feature-extraction", model=str(folders / "vicha-retrieval"), device="cpu")
    calls.append([str(folders / "vicha-retrieval"), "image-feature-extraction", images[0], {"pool": True}])
    expected.append(extract(images[0], pool=True))
    process = subprocess.run(
        [sys.executable, "-c", REMOTE, json.dumps(calls)], capture_output=True, text=True, cwd=tmp_path, timeout=300
    )
    assert process.returncode == 0, process.stderr[-3000:]
    results = [line.removeprefix("RESULT ") for line in process.stdout.splitlines() if line.startswith("RESULT ")]
    assert_alike([json.loads(result) for result in results], expected)


def test_bytes_of_a_transparent_image_are_as_its_file(load, tmp_path):
    judge = load("entailment")
    buffer = io.BytesIO()
    Image.new("RGBA", (20, 20), (255, 0, 0, 100)).save(buffer, "PNG")
    (tmp_path / "transparent.png").write_bytes(buffer.getvalue())
    assert judge(buffer.getvalue(), TEXTS[0]) == judge(tmp_path / "transparent.png", TEXTS[0])
