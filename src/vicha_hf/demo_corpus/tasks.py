"""Writes the annotation files of the downstream tasks beside those of retrieval, for the same images and splits."""

import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..data.answer_list import write_answer_list
from .task_entailment import make_sentences
from .task_grounding import make_expressions
from .task_reasoning import make_statements
from .task_scene import TaskScene
from .task_vqa import make_questions


# Raise it with every change that makes other records of the same images.
TASKS_VERSION = 2
TASKS = ("vqa", "entailment", "reasoning", "grounding")
TASK_SPLITS = ("train", "validation", "test")
ANSWER_LIST = "answer_list.json"
TASK_FILES = (ANSWER_LIST, *(f"{task}_{split}.json" for task in TASKS for split in TASK_SPLITS))


def write_task_files(root: Path, seed: int) -> dict[str, dict[str, int]]:
    """
    Writes `TASK_FILES` from the annotation files of the images in `root`.

    Returns:
        Task -> split -> number of records.
    """
    counts: dict[str, dict[str, int]] = {task: {} for task in TASKS}
    first_ids = Counter()
    for split in TASK_SPLITS:
        images = json.loads((root / f"{split}.json").read_text(encoding="utf-8"))
        scenes = [TaskScene.from_record(record) for record in images]
        for task in TASKS:
            rng = random.Random(f"{seed}/{split}/{task}")
            records = _make_records(task, scenes, rng, split, first_ids[task])
            first_ids[task] += len(records)
            counts[task][split] = len(records)
            text = json.dumps(records, ensure_ascii=False)
            (root / f"{task}_{split}.json").write_text(f"{text}\n", encoding="utf-8")
            if task == "vqa" and split == "train":
                write_answer_list(root / ANSWER_LIST, _answers(records))
    return counts


def _make_records(task: str, scenes: Sequence[TaskScene], rng: random.Random, split: str, first_id: int) -> list[dict]:
    is_training = split == "train"
    if task == "vqa":
        return make_questions(scenes, rng, is_training=is_training, first_id=first_id)
    if task == "grounding":
        return make_expressions(scenes, rng, split=split, first_id=first_id)
    make = make_sentences if task == "entailment" else make_statements
    return make(scenes, rng, is_training=is_training)


def _answers(questions: Sequence[dict]) -> list[str]:
    counts = Counter(question["answer"] for question in questions)
    return sorted(counts, key=lambda answer: (-counts[answer], answer))
