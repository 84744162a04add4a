"""Items and batches of the tasks: what a model is given depends on seed, epoch and index, and on nothing else."""

import numpy as np
import pytest
import torch
from head_checks import tiny_head
from PIL import Image
from torch.utils.data import DataLoader

from vicha_hf.data.annotations_entailment import read_entailment_records
from vicha_hf.data.annotations_grounding import read_grounding_records
from vicha_hf.data.annotations_reasoning import read_reasoning_records
from vicha_hf.data.annotations_vqa import read_question_records
from vicha_hf.data.collators import (
    EntailmentCollator,
    GroundingCollator,
    PretrainingCollator,
    QuestionAnsweringCollator,
    ReasoningCollator,
)
from vicha_hf.data.datasets_entailment import EntailmentDataset
from vicha_hf.data.datasets_grounding import GroundingDataset
from vicha_hf.data.datasets_pretraining import PretrainingDataset
from vicha_hf.data.datasets_reasoning import ReasoningDataset
from vicha_hf.data.datasets_vqa import QuestionAnsweringDataset
from vicha_hf.data.named_sides import names_side
from vicha_hf.data.transforms import FINETUNING_CROP_SCALE, EvaluationTransform, PretrainingTransform


TASKS = ("vqa", "entailment", "reasoning", "grounding")
CONCEPTS = ["dog", "cat", "grass"]


@pytest.fixture
def records(write_json):
    """task -> annotations with three records, the last of which has no concepts."""

    def make(task):
        if task == "vqa":
            answers = [["two", "two", "dog"], "dog", ["a red dog"]]
            content = [{"question_id": n, "question": "A dog, or a cat?", "answer": a} for n, a in enumerate(answers)]
            read = read_question_records
        elif task == "entailment":
            names = ("neutral", "entailment", "contradiction")
            content = [{"sentence": "The dog is red.", "label": name} for name in names]
            read = read_entailment_records
        elif task == "reasoning":
            content = [
                {"sentence": "Two dogs; " + "a cat " * 10, "label": label} for label in ("True", "False", "True")
            ]
            read = read_reasoning_records
        else:
            content = [{"text": "the red dog", "bbox": [1, 1, 9, 9], "boxes": [[1, 1, 9, 9]]} for _ in range(3)]
            read = read_grounding_records
        for number, record in enumerate(content):
            words = CONCEPTS if number < 2 else []
            images = [f"images/{number}.png", f"images/{number + 1}.png"]
            if task == "reasoning":
                record |= {"images": images, "concepts": [words, words[:1]]}
            else:
                record |= {"image": images[0], "concepts": words}
        return read(write_json(content, f"{task}.json"))

    return make


DATASETS = {
    "vqa": QuestionAnsweringDataset,
    "entailment": EntailmentDataset,
    "reasoning": ReasoningDataset,
    "grounding": GroundingDataset,
}
COLLATORS = {
    "vqa": QuestionAnsweringCollator,
    "entailment": EntailmentCollator,
    "reasoning": ReasoningCollator,
    "grounding": GroundingCollator,
}


def batch_of(task, records, processor, transform=None, **collator_options):
    dataset = DATASETS[task](records(task), transform or EvaluationTransform(32))
    return COLLATORS[task](processor, **collator_options)([dataset[index] for index in range(3)])


@pytest.mark.parametrize("task", TASKS)
def test_items_depend_on_seed_epoch_and_index(task, records):
    transform = PretrainingTransform(16, scale=FINETUNING_CROP_SCALE)
    dataset, twin, other = (
        DATASETS[task](records(task), transform, seed=seed, concept_fraction=0.4) for seed in (3, 3, 4)
    )
    images = [dataset[index]["pixel_values"] for index in range(3)]
    for index in (2, 0, -2):
        assert torch.equal(twin[index]["pixel_values"], images[index])
    assert twin[1]["concepts"] == dataset[1]["concepts"]
    assert not torch.equal(other[0]["pixel_values"], images[0])
    dataset.set_epoch(1)
    assert not torch.equal(dataset[0]["pixel_values"], images[0])
    assert dataset[-1]["index"] == 2 and len(dataset) == 3
    with pytest.raises(IndexError, match="index 3 is outside the dataset of 3 items"):
        dataset[3]


@pytest.mark.parametrize("task", TASKS)
def test_concepts_can_be_left_out_or_drawn(task, records):
    def concepts(**options):
        item = DATASETS[task](records(task), EvaluationTransform(8), **options)[0]["concepts"]
        return item if task == "reasoning" else (item, item[:1])

    assert concepts() == (CONCEPTS, CONCEPTS[:1])
    assert concepts(use_concepts=False) == ([], [])
    assert len(concepts(concept_fraction=0.7)[0]) == 2
    with pytest.raises(ValueError, match="concept_fraction=0;"):
        concepts(concept_fraction=0)


@pytest.mark.parametrize("task", TASKS)
def test_same_batches_with_workers(task, records, tiny_processor):
    def run(num_workers):
        dataset = DATASETS[task](records(task), PretrainingTransform(16), concept_fraction=0.4)
        collate = COLLATORS[task](tiny_processor)
        return next(iter(DataLoader(dataset, batch_size=3, num_workers=num_workers, collate_fn=collate)))

    alone, with_worker = run(0), run(1)
    assert alone.keys() == with_worker.keys()
    assert all(torch.equal(alone[name], with_worker[name]) for name in alone)


def test_batch_of_questions(records, tiny_processor):
    tokenizer = tiny_processor.tokenizer
    batch = batch_of("vqa", records, tiny_processor)
    assert tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True).startswith("a dog")
    assert batch["answer_counts"].tolist() == [2, 1, 1]
    assert batch["answer_weights"].tolist() == pytest.approx([2 / 3, 1 / 3, 1, 1])
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in batch["answer_input_ids"]]
    assert texts == ["two", "dog", "dog", "a red dog"]
    assert batch["answer_attention_mask"].sum(dim=1).tolist() == [3, 3, 3, 5]
    assert batch["concept_attention_mask"].sum(dim=1).tolist() == [5, 5, 0]
    assert not any(name.startswith("answer") for name in batch_of("vqa", records, tiny_processor, with_answers=False))


def test_answers_end_even_where_texts_do_not(tiny_processor):
    answers = tiny_processor.tokenize_answers(["a dog", "two"])
    sep = tiny_processor.tokenizer.sep_token_id
    assert answers["input_ids"][0, -1] == sep and answers["input_ids"][1, 2] == sep
    assert set(answers) == {"input_ids", "attention_mask"}
    with pytest.raises(ValueError, match="there are no answers"):
        tiny_processor.tokenize_answers([])


def test_batch_of_sentences(records, tiny_processor, write_json):
    batch = batch_of("entailment", records, tiny_processor)
    assert batch["labels"].tolist() == [1, 2, 0]
    unlabelled = write_json([{"image": "images/0.png", "sentence": "a dog"}])
    dataset = EntailmentDataset(read_entailment_records(unlabelled, require_labels=False), EvaluationTransform(8))
    assert "labels" not in EntailmentCollator(tiny_processor)([dataset[0]])


def test_batch_of_pairs(records, tiny_processor):
    batch = batch_of("reasoning", records, tiny_processor)
    assert batch["pixel_values"].shape == (3, 2, 3, 32, 32)
    assert batch["labels"].tolist() == [1, 0, 1]
    assert batch["concept_attention_mask"].sum(dim=2).tolist() == [[5, 3], [5, 3], [0, 0]]
    dataset = ReasoningDataset(records("reasoning"), EvaluationTransform(32))
    left, right = (EvaluationTransform(32)(image) for image in dataset.annotations[1].load_images())
    assert torch.equal(batch["pixel_values"][1], torch.stack([left, right]))
    # Statements are not cut.
    assert batch["input_ids"].shape[1] > tiny_processor.max_text_length


@pytest.mark.parametrize("task", TASKS)
def test_concepts_are_always_there_or_never(task, records, tiny_processor):
    dataset = DATASETS[task](records(task), EvaluationTransform(8), use_concepts=False)
    batch = COLLATORS[task](tiny_processor)([dataset[0], dataset[1]])
    expected = (2, 2, 1) if task == "reasoning" else (2, 1)
    assert batch["concept_attention_mask"].shape == batch["concept_input_ids"].shape == expected
    assert not batch["concept_attention_mask"].any()
    assert "concept_input_ids" not in COLLATORS[task](tiny_processor, with_concepts=False)([dataset[0]])


@pytest.mark.parametrize("task", TASKS)
def test_models_take_the_batches(task, records, tiny_processor):
    vocabulary = len(tiny_processor.tokenizer)
    model = tiny_head(task, text_config={"vocab_size": vocabulary, "max_position_embeddings": 40})
    batch = batch_of(task, records, tiny_processor)
    output = model(**batch)
    assert torch.isfinite(output.heatmaps if task == "grounding" else output.loss).all()


def test_grounding_is_trained_as_retrieval(records, tiny_processor):
    dataset = PretrainingDataset(records("grounding"), EvaluationTransform(8), captions="all", concept_fraction=1.0)
    batch = PretrainingCollator(tiny_processor)([dataset[index] for index in range(3)])
    assert batch["image_ids"].tolist() == [0, 1, 2]
    assert dataset[0]["caption"] == "the red dog" and dataset[0]["concepts"] == CONCEPTS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the dog on the left", True),
        ("the leftmost dog", True),
        ("Right-hand side", True),
        ("a bright cleft", False),
        ("a dog above a cat", False),
    ],
)
def test_sides_are_named(text, expected):
    assert names_side(text) is expected


@pytest.mark.parametrize("task", TASKS)
def test_images_are_not_mirrored_where_the_text_names_a_side(task, write_json, image_folder):
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (64, 64, 3))
    Image.fromarray(np.ascontiguousarray(ramp)).save(image_folder / "images" / "ramp.png")
    images = {"image": "images/ramp.png", "images": ["images/ramp.png"] * 2}
    labels = {"answer": "yes", "label": "True" if task == "reasoning" else "neutral"}

    def mirrored(text):
        rows = [images | labels | dict.fromkeys(("question", "sentence", "text"), text)] * 24
        path = write_json(rows, f"{task}_sides.json")
        read = {
            "vqa": read_question_records,
            "entailment": read_entailment_records,
            "reasoning": read_reasoning_records,
            "grounding": read_grounding_records,
        }[task]
        dataset = DATASETS[task](read(path), PretrainingTransform(16, scale=None, randaugment=False))
        return [bool(item["pixel_values"][..., 0].mean() > item["pixel_values"][..., -1].mean()) for item in dataset]

    assert not any(mirrored("is it left of the dog"))
    assert 0 < sum(mirrored("is it above the dog")) < 24


def test_expressions_keep_their_side_in_training_too(write_json, image_folder):
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    pixels[:, 4:] = 255
    Image.fromarray(pixels).save(image_folder / "images" / "half.png")
    texts = ["the left dog", "the dog"] * 12
    annotations = read_grounding_records(write_json([{"image": "images/half.png", "text": text} for text in texts]))
    transform = PretrainingTransform(8, scale=None, randaugment=False)

    def mirrored(**options):
        dataset = PretrainingDataset(annotations, transform, captions="all", **options)
        return [bool(item["pixel_values"][0, 0, 0] > item["pixel_values"][0, 0, -1]) for item in dataset]

    kept, free = mirrored(mirror_texts_with_sides=False), mirrored()
    assert not any(kept[::2]) and any(free[::2])
    # The other draws do not change.
    assert kept[1::2] == free[1::2] and 0 < sum(kept[1::2]) < 12
