"""The demo corpus's tasks: every answer is true of its image, and the text alone does not give it away."""

import json
import random
from collections import Counter, defaultdict

import pytest

from vicha_hf.data.annotations_entailment import read_entailment_records
from vicha_hf.data.annotations_grounding import read_grounding_records
from vicha_hf.data.annotations_reasoning import read_reasoning_records
from vicha_hf.data.annotations_vqa import read_question_records
from vicha_hf.data.answer_list import build_answer_list, read_answer_list
from vicha_hf.demo_corpus import DemoCorpusParameters
from vicha_hf.demo_corpus.builder import DemoCorpus, build_demo_corpus
from vicha_hf.demo_corpus.captions import CaptionWriter
from vicha_hf.demo_corpus.concepts import extract_concepts
from vicha_hf.demo_corpus.facts import Relation, relation_holds
from vicha_hf.demo_corpus.layout import SceneSampler
from vicha_hf.demo_corpus.scene import Scene, SceneObject
from vicha_hf.demo_corpus.splits import SplitMaker
from vicha_hf.demo_corpus.sprites import PLURALS, SPRITE_BY_NAME, SpriteLibrary
from vicha_hf.demo_corpus.task_grounding import make_expressions
from vicha_hf.demo_corpus.task_scene import TaskScene
from vicha_hf.demo_corpus.tasks import TASK_FILES, TASK_SPLITS, TASKS, write_task_files
from vicha_hf.demo_corpus.text_only_baseline import text_answer_pairs, text_only_accuracy


SINGULARS = {plural: noun for noun, plural in PLURALS.items()}
RELATIONS = {
    "left of": Relation.LEFT_OF,
    "right of": Relation.RIGHT_OF,
    "above": Relation.ABOVE,
    "below": Relation.BELOW,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The annotation files of a corpus of 1000 + 100 + 150 scenes without its images, and the task files made of them."""
    root = tmp_path_factory.mktemp("tasks")
    parameters = DemoCorpusParameters()
    sampler = SceneSampler(parameters.scene, SpriteLibrary(), frozenset())
    maker = SplitMaker(sampler, CaptionWriter(parameters.caption))
    splits = {
        "test": maker.make_evaluation(150, random.Random(1), lambda: None),
        "validation": maker.make_evaluation(100, random.Random(2), lambda: None),
        "train": maker.make_training(1000, 1, random.Random(3), lambda: None),
    }
    number = 0
    for split, items in splits.items():
        records = []
        for item in items:
            concepts = extract_concepts(item.scene, parameters.concept, random.Random(number))
            image = {"image": f"images/{split}/{number}.png", "image_id": number, "concepts": concepts}
            records.append(image | item.scene.to_record())
            number += 1
        (root / f"{split}.json").write_text(json.dumps(records))
    counts = write_task_files(root, seed=0)
    return root, counts


def load(folder, name):
    return json.loads((folder[0] / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def scene_of(folder):
    return {r["image"]: Scene.from_record(r) for split in TASK_SPLITS for r in load(folder, split)}


def read(folder, task, split):
    readers = {
        "vqa": read_question_records,
        "entailment": read_entailment_records,
        "reasoning": read_reasoning_records,
        "grounding": read_grounding_records,
    }
    options = {"for_evaluation": True} if task in ("vqa", "grounding") else {}
    return readers[task](folder[0] / f"{task}_{split}.json", check_images=False, **options)


def things(scene: Scene, noun: str) -> list[SceneObject]:
    return [item for item in scene.objects if item.noun == noun]


def the(scene: Scene, noun: str) -> SceneObject:
    (thing,) = things(scene, noun)
    return thing


# Truth


def true_answer(question: str, kind: str, scene: Scene) -> str:
    """The answer by another way than the generator's: from the words of the question."""
    words = question.rstrip("?").split()
    if kind == "exists":
        return "yes" if things(scene, words[-1]) else "no"
    if kind == "colour":
        return the(scene, words[-1]).colour
    if kind == "background":
        return scene.background.name
    if kind == "count":
        counted = scene.objects if words[2] == "things" else things(scene, SINGULARS[words[2]])
        return str(len(counted))
    if kind == "category":
        category = "clothing" if "clothing" in words else words[1]
        (noun,) = {item.noun for item in scene.objects if item.category == category}
        return noun
    anchor, relation = the(scene, words[-1]), RELATIONS[" ".join(words[2:-2])]
    (noun,) = {item.noun for item in scene.objects if item is not anchor and relation_holds(item, relation, anchor)}
    return noun


@pytest.mark.parametrize("split", TASK_SPLITS)
def test_answers_are_true(folder, scene_of, split):
    records = load(folder, f"vqa_{split}")
    for record in records:
        truth = true_answer(record["question"], record["question_type"], scene_of[record["image"]])
        assert record["answer"] == (truth if split == "train" else [truth] * 10), record
    assert {record["question_type"] for record in records} >= {"exists", "background", "count", "category", "position"}


@pytest.mark.parametrize("split", TASK_SPLITS)
def test_entailment_is_true(folder, scene_of, split):
    records = load(folder, f"entailment_{split}")
    for record in records:
        scene = scene_of[record["image"]]
        noun, said = record["sentence"].split()[1], record["sentence"].split()[3:]
        if record["label"] == "neutral":
            assert not things(scene, noun)
            continue
        thing = the(scene, noun)
        if len(said) == 1:
            is_true = thing.colour == said[0]
        else:
            position = thing.centre[0 if said[-1] in ("left", "right") else 1] / scene.image_size
            assert not 0.4 < position < 0.6
            is_true = (position > 0.5) == (said[-1] in ("right", "bottom"))
        assert record["label"] == ("entailment" if is_true else "contradiction"), record
    assert len(records) > 150


@pytest.mark.parametrize("split", TASK_SPLITS)
def test_statements_are_true_or_false_as_they_say(folder, scene_of, split):
    records = load(folder, f"reasoning_{split}")
    kinds = Counter()
    for record in records:
        assert record["images"][0] != record["images"][1]
        sentence = record["sentence"]
        words = sentence.split()
        noun = words[3] if "are two" in sentence else words[3] if "there is" in sentence else words[-1]
        noun = SINGULARS.get(noun, noun) if "are two" in sentence else noun
        left, right = (len(things(scene_of[image], noun)) for image in record["images"])
        truths = {
            "both pictures show": left > 0 and right > 0,
            "only one picture shows": (left > 0) != (right > 0),
            "in the left picture": left > 0,
            "in the right picture": right > 0,
            "in the two pictures": left + right == 2,
        }
        (kind,) = [part for part in truths if part in sentence]
        kinds[kind] += 1
        assert record["label"] == str(truths[kind]), record
    assert len(kinds) == 5


@pytest.mark.parametrize("split", TASK_SPLITS)
def test_expressions_name_one_thing(folder, scene_of, split):
    records = load(folder, f"grounding_{split}")
    phrasings = Counter()
    for record in records:
        scene = scene_of[record["image"]]
        words = record["text"].split()[1:]
        colour = words.pop(0) if any(item.colour == words[0] for item in scene.objects) else None
        named = [item for item in things(scene, words[0]) if colour in (None, item.colour)]
        rest = " ".join(words[1:])
        if rest.split(" the ")[0] in RELATIONS:
            relation, _, anchor = rest.partition(" the ")
            named = [item for item in named if relation_holds(item, RELATIONS[relation], the(scene, anchor))]
        elif rest:
            axis = 0 if words[-1] in ("left", "right") else 1
            named = [sorted(named, key=lambda item: item.centre[axis])[0 if words[-1] in ("left", "top") else -1]]
        phrasings[rest.split(" the ")[0] or "noun"] += 1
        assert [list(item.box) for item in named] == [record["bbox"]], record
        assert record["bbox"] in record["boxes"] and record["split"] == split
        assert all([*item.box] in record["boxes"] for item in scene.objects)
        assert len(record["boxes"]) == len(scene.objects) + 5
    assert phrasings["noun"] > len(records) / 2 and len(phrasings) > 4


def test_things_that_nothing_tells_apart_are_not_named():
    def thing(noun, x, y, colour=None):
        return SceneObject(
            noun, colour, SPRITE_BY_NAME[f"{colour} {noun}" if colour else noun].category, (x, y, 20, 20)
        )

    background = Scene.from_record(
        {
            "objects": [],
            "scene": {"image_size": 96, "background": {"name": "white", "upper": [], "lower": [], "horizon": None}},
        }
    ).background

    def texts(*objects):
        shown = TaskScene("a.png", 0, [], Scene(objects, background, 96))
        return {
            r["text"]
            for seed in range(30)
            for r in make_expressions([shown], random.Random(seed), split="t", first_id=0)
        }

    diagonal = texts(thing("dog", 0, 0), thing("dog", 25, 25))
    assert diagonal == set()
    assert texts(thing("dog", 0, 0), thing("dog", 60, 0)) == {"the dog on the left", "the dog on the right"}
    assert texts(thing("apple", 0, 0, "red"), thing("apple", 25, 25, "green")) == {"the red apple", "the green apple"}


# Balance


def test_every_yes_or_no_colour_and_count_is_balanced_to_the_last_question(folder):
    for split in TASK_SPLITS:
        answers = defaultdict(Counter)
        for record in load(folder, f"vqa_{split}"):
            if record["question_type"] not in ("category", "position"):
                answers[record["question"]][str(record["answer"])] += 1
        assert len(answers) > 50
        for question, counts in answers.items():
            assert len(counts) > 1 and len(set(counts.values())) == 1, (question, counts)


@pytest.mark.parametrize(("task", "num_labels"), [("entailment", 3), ("reasoning", 2)])
def test_every_sentence_has_every_label_equally_often(folder, task, num_labels):
    for split in TASK_SPLITS:
        labels = defaultdict(Counter)
        for record in load(folder, f"{task}_{split}"):
            labels[record["sentence"]][record["label"]] += 1
        for sentence, counts in labels.items():
            assert len(counts) == num_labels and len(set(counts.values())) == 1, (sentence, counts)


def test_the_text_alone_gives_chance(folder):
    records = {
        (task, split): list(read(folder, task, split))
        for task in ("vqa", "entailment", "reasoning")
        for split in ("train", "test")
    }

    def guessed(task, kind=None):
        train, test = (
            [record for record in records[task, split] if kind is None or record.question_type == kind]
            for split in ("train", "test")
        )
        return text_only_accuracy(text_answer_pairs(train), text_answer_pairs(test))

    assert guessed("entailment") == pytest.approx(100 / 3)
    assert guessed("reasoning") == pytest.approx(50)
    assert guessed("vqa", "exists") == guessed("vqa", "count") == pytest.approx(50)
    assert guessed("vqa", "background") == pytest.approx(100 / 6)
    assert guessed("vqa", "colour") <= 50
    assert guessed("vqa", "category") < 20 and guessed("vqa", "position") < 5


def test_one_image_of_two_does_not_give_the_answer_away(folder, scene_of):
    # "both" and "only one": whoever sees that the left image shows the thing still guesses about the second kind.
    seen = Counter(
        (record["label"], bool(things(scene_of[record["images"][0]], record["sentence"].split()[-1])))
        for record in load(folder, "reasoning_train")
        if record["sentence"].startswith("only one")
    )
    shares = [seen[label, True] / (seen[label, True] + seen[label, False]) for label in ("True", "False")]
    assert shares == pytest.approx([0.5, 0.5], abs=0.05)


# Files


@pytest.mark.parametrize("task", TASKS)
def test_files_are_read_without_complaint(folder, task):
    for split in TASK_SPLITS:
        annotations = read(folder, task, split)
        assert len(annotations) == folder[1][task][split] == annotations.report.num_read
        assert (annotations[0].concepts[0] if task == "reasoning" else annotations[0].concepts) != ()


def test_splits_share_no_image_and_ids_are_unique(folder):
    for task in TASKS:
        images, ids = [], []
        for split in TASK_SPLITS:
            records = load(folder, f"{task}_{split}")
            images.append({i for r in records for i in (r["images"] if task == "reasoning" else [r["image"]])})
            ids += [record.get("question_id", record.get("ref_id")) for record in records]
            assert all(image.startswith(f"images/{split}/") for image in images[-1])
        if task in ("vqa", "grounding"):
            assert sorted(ids) == list(range(len(ids)))


def test_answer_list_holds_every_answer(folder):
    answers = read_answer_list(folder[0] / "answer_list.json")
    assert answers == build_answer_list(read(folder, "vqa", "train"))
    for split in ("validation", "test"):
        assert {record.answers[0] for record in read(folder, "vqa", split)} <= {*answers}


def test_same_seed_same_files(folder, tmp_path):
    for split in TASK_SPLITS:
        (tmp_path / f"{split}.json").write_bytes((folder[0] / f"{split}.json").read_bytes())
    write_task_files(tmp_path, seed=0)
    assert all((tmp_path / name).read_bytes() == (folder[0] / name).read_bytes() for name in TASK_FILES)
    write_task_files(tmp_path, seed=1)
    assert (tmp_path / "vqa_train.json").read_bytes() != (folder[0] / "vqa_train.json").read_bytes()


def test_a_corpus_without_task_files_is_completed_and_a_damaged_one_made_again(tmp_path):
    small = {"num_train": 20, "num_validation": 4, "num_test": 4, "num_compositional_test": 2, "progress": False}
    corpus = build_demo_corpus(tmp_path / "corpus", **small)
    before = {path: path.read_bytes() for path in sorted(corpus.root.rglob("*")) if path.is_file()}
    assert {"vqa_train.json", "answer_list.json"} <= {path.name for path in before}
    assert corpus.is_complete()

    # As an earlier version left it.
    description = json.loads((corpus.root / "corpus.json").read_text())
    for name in TASK_FILES:
        (corpus.root / name).unlink()
        del description["digests"][name]
    for name in ("tasks", "tasks_version"):
        del description[name]
    (corpus.root / "corpus.json").write_text(json.dumps(description))
    image = corpus.root / "images" / "train" / "00000.png"
    written_at = image.stat().st_mtime_ns
    completed = build_demo_corpus(corpus.root, **small)
    assert completed.is_complete() and image.stat().st_mtime_ns == written_at
    assert {path: path.read_bytes() for path in before} == before

    (corpus.root / "reasoning_test.json").unlink()
    assert not DemoCorpus.load(corpus.root).is_complete()
    assert build_demo_corpus(corpus.root, **small).is_complete()
    assert {path: path.read_bytes() for path in before} == before


def test_paths_of_the_files(folder):
    corpus = DemoCorpus(folder[0], {})
    assert corpus.annotations("test", "vqa") == folder[0] / "vqa_test.json"
    assert corpus.annotations("test") == folder[0] / "test.json"
    assert corpus.answer_list.is_file()
    with pytest.raises(ValueError, match="'test_compositional': the demo corpus has train, validation, test for vqa"):
        corpus.annotations("test_compositional", "vqa")
    with pytest.raises(ValueError, match="task='captions'"):
        corpus.annotations("test", "captions")
