"""`concepts="auto"` at every door: the same as giving the words that the folder's index finds, and clear errors elsewhere."""

import json

import pytest
import torch
from PIL import Image
from tiny_model_folder import write_model_folder
from tiny_task_files import write_task_files
from transformers import pipeline

from vicha_hf import (
    ViChaForVisualEntailment,
    ViChaForVisualReasoning,
    ViChaForVQA,
    ViChaProcessor,
)
from vicha_hf.cli import main
from vicha_hf.concepts import ConceptSelector
from vicha_hf.evaluation import task_evaluation
from vicha_hf.search.building import build_index


WORDS = ["dog", "cat", "tree", "ball", "grass", "sky", "car"]
ANSWERS = ["red", "white", "tree", "dog", "cat", "ball", "grass", "horse", "car", "blue", "two", "a man"]
HEADS = {"vqa": ViChaForVQA, "entailment": ViChaForVisualEntailment, "reasoning": ViChaForVisualReasoning}
FOLDER_OF_TASK = {"retrieval": "model", "grounding": "model"}
PIPELINES = {
    "zero-shot-image-classification": ("model", {"candidate_labels": ["a dog", "a red car"]}),
    "image-feature-extraction": ("model", {"pool": True}),
    "image-text-retrieval": ("model", {"text": ["a dog", "a red car"]}),
    "visual-grounding": ("model", {"text": "a dog"}),
    "visual-question-answering": ("vqa", {"question": "is the dog red?", "answers": ANSWERS}),
    "visual-entailment": ("entailment", {"text": "a dog is standing"}),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """`model/` is its own encoder; other heads of it, which have no joint space, name it. `tasks/` has annotations."""
    root = tmp_path_factory.mktemp("auto")
    write_model_folder(root / "model")
    (root / "words.txt").write_text("\n".join(WORDS))
    command = ["concepts", "index", str(root / "model"), "--vocabulary", str(root / "words.txt"), "--prompt", "a {}"]
    assert main([*command, "--k", "3"]) == 0
    torch.manual_seed(0)
    for name, head in HEADS.items():
        head.from_pretrained(root / "model").save_pretrained(root / name)
        ViChaProcessor.from_pretrained(root / "model").save_pretrained(root / name)
    write_task_files(root / "tasks")
    (root / "answers.json").write_text(json.dumps(ANSWERS))
    return root


@pytest.fixture(scope="module")
def selector(root):
    return ConceptSelector.from_pretrained(root / "model", device="cpu")


@pytest.mark.parametrize("task", ["retrieval", "grounding", *HEADS])
def test_the_evaluation_of_every_task(root, selector, tmp_path, monkeypatch, task):
    folder = root / FOLDER_OF_TASK.get(task, task)
    records = json.loads((root / "tasks" / f"{task}.json").read_text())
    for record in records:
        images = record["images"] if task == "reasoning" else [record["image"]]
        words = selector.words([root / "tasks" / image for image in images])
        record["concepts"] = words if task == "reasoning" else words[0]
    annotated = root / "tasks" / f"{task}_found.json"
    annotated.write_text(json.dumps(records))
    common = ["--task", task, "--device", "cpu"]
    if task == "vqa":
        common += ["--answer_list", str(root / "answers.json")]
    results, found = {}, []
    search = task_evaluation.find_concepts
    monkeypatch.setattr(task_evaluation, "find_concepts", lambda *a, **k: found.append(search(*a, **k)) or found[-1])
    for name, file, options in (
        ("automatic", root / "tasks" / f"{task}.json", ["--concepts", "auto"]),
        ("annotated", annotated, []),
        ("none", annotated, ["--use_concepts", "false"]),
    ):
        output = tmp_path / name
        assert main(["evaluate", str(folder), str(file), *common, *options, "--output_dir", str(output)]) == 0
        results[name] = [json.loads((output / file).read_text()) for file in ("metrics.json", "predictions.json")]
        for prediction in results[name][1] if task in ("entailment", "reasoning") else ():
            # Where it stands, which is another file.
            del prediction["record"]
    assert results["automatic"] == results["annotated"]
    assert [[_listed(one.concepts) for one in records_found] for records_found in found] == [
        [one["concepts"] for one in records]
    ]
    # A dozen answers of random weights may be the same.
    assert task == "vqa" or results["automatic"][1] != results["none"][1]


@pytest.mark.parametrize("task", PIPELINES)
def test_every_pipeline(root, selector, task):
    name, question = PIPELINES[task]
    run = pipeline(task, model=str(root / name), device="cpu")
    image = str(root / "tasks" / "1.png")
    (words,) = selector.words([image])
    automatic, given, without = (shown(run(image, **question, concepts=one)) for one in ("auto", words, None))
    assert automatic == given != without
    with pytest.raises(ValueError, match=r"concepts='dog' must be a list of words, or \"auto\""):
        run(image, **question, concepts="dog")


def test_reasoning_finds_those_of_both_images(root, selector):
    run = pipeline("visual-reasoning", model=str(root / "reasoning"), device="cpu")
    pair = [str(root / "tasks" / f"{number}.png") for number in (1, 2)]
    automatic, given, without = (
        run(pair, "two dogs", concepts=concepts) for concepts in ("auto", selector.words(pair), None)
    )
    assert automatic == given != without


def test_zero_shot_of_several_images(root):
    run = pipeline("zero-shot-image-classification", model=str(root / "model"), device="cpu")
    images = [str(root / "tasks" / f"{number}.png") for number in range(3)]
    labels = {"candidate_labels": ["a dog", "a red car"], "concepts": "auto"}
    together = run(images, **labels, batch_size=3)
    for one, image in zip(together, images, strict=True):
        alone = run(image, **labels)
        assert [entry["label"] for entry in one] == [entry["label"] for entry in alone]
        assert [entry["score"] for entry in one] == pytest.approx([entry["score"] for entry in alone], abs=1e-5)
    with pytest.raises(ValueError, match="are those of one image"):
        run(images, candidate_labels=["a dog"], concepts=["dog"])


def test_ask_and_ground(root, tmp_path):
    image = str(root / "tasks" / "1.png")
    commands = {
        "ask": [str(root / "vqa"), image, "is the dog red?", "--answer-list", str(root / "answers.json")],
        "ground": [str(root / "model"), image, "a dog", "--output", str(tmp_path / "found.png")],
    }
    (words,) = ConceptSelector.from_pretrained(root / "model", device="cpu").words([image])
    for command, arguments in commands.items():
        found = []
        for number, concepts in enumerate((["auto"], words, ["car"])):
            file = tmp_path / f"{command}_{number}.json"
            assert main([command, *arguments, "--device", "cpu", "--json", str(file), "--concepts", *concepts]) == 0
            found.append(json.loads(file.read_text()))
        assert found[0] == found[1] != found[2]


def test_a_model_that_reads_none(root, tmp_path, capsys):
    write_model_folder(tmp_path / "albef", use_concepts=False, hierarchical_itc_weight=0)
    image = str(root / "tasks" / "1.png")
    for task in ("zero-shot-image-classification", "image-text-retrieval", "visual-grounding"):
        run = pipeline(task, model=str(tmp_path / "albef"), device="cpu")
        with pytest.raises(ValueError, match="this model reads no visual concepts"):
            run(image, **PIPELINES[task][1], concepts="auto")
    command = ["evaluate", str(tmp_path / "albef"), str(root / "tasks/retrieval.json"), "--device", "cpu"]
    assert main([*command, "--concepts", "auto"]) == 1
    assert "reads no visual concepts; leave the option out" in capsys.readouterr().err
    with pytest.raises(ValueError, match="reads no visual concepts"):
        build_index(root / "tasks/retrieval.json", tmp_path / "albef", tmp_path / "index", concepts="auto")


def test_the_encoder_of_an_index_that_is_gone(root, tmp_path):
    write_model_folder(tmp_path / "gone")
    index = ["concepts", "index", str(tmp_path / "gone"), "--vocabulary", str(root / "words.txt"), "--prompt", "a {}"]
    assert main(index) == 0
    ViChaForVQA.from_pretrained(tmp_path / "gone").save_pretrained(tmp_path / "vqa")
    ViChaProcessor.from_pretrained(tmp_path / "gone").save_pretrained(tmp_path / "vqa")
    (tmp_path / "gone").rename(tmp_path / "moved")
    processor = ViChaProcessor.from_pretrained(tmp_path / "vqa")
    with pytest.raises(FileNotFoundError, match="a folder that is not on this machine: name the same model as"):
        processor(images=Image.new("RGB", (40, 40)), concepts="auto")


def _listed(concepts):
    return [_listed(one) if isinstance(one, tuple) else one for one in concepts]


def shown(result):
    """A pipeline's result without its arrays."""
    return {name: value for name, value in result.items() if name != "heatmap"} if isinstance(result, dict) else result
