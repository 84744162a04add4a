"""The tasks' metrics as modules of the `evaluate` library, loaded from their path, against slow and obvious versions."""

import os
from pathlib import Path

import evaluate
import pytest

import vicha_hf.evaluation


@pytest.fixture
def load(metric_cache):
    folder = Path(vicha_hf.evaluation.__file__).parent / "metrics"
    return lambda name: evaluate.load(os.fspath(folder / name))


def test_vqa_accuracy(load):
    metric = load("vqa_accuracy")
    metric.add_batch(predictions=["Two."], references=[["2"] * 9 + ["two"]])
    # Two of nine others agree where the annotator is one of the two who said so, else two: mean of min(1, n / 3).
    metric.add_batch(predictions=["a dog", "cat"], references=[["dog"] * 2 + ["cat"] * 8, ["dog"] * 10])
    result = metric.compute(question_types=["how many", "what", "what"], answer_types=["number", "other", "other"])
    partly = (2 * (1 / 3) + 8 * (2 / 3)) / 10
    assert result["accuracy"] == pytest.approx(100 * (1 + partly) / 3, abs=0.01)
    assert result["accuracy_question_type_how many"] == result["accuracy_answer_type_number"] == 100.0
    assert result["accuracy_question_type_what"] == pytest.approx(50 * partly, abs=0.01)
    assert result["num_questions"] == result["num_questions_official"] == 3
    assert result["vqa_rules"] == 2021
    metric.add_batch(predictions=["Two."], references=[["2"] * 10])
    assert metric.compute(rules="2017") == {
        "accuracy": 100.0,
        "num_questions": 1,
        "vqa_rules": 2017,
        "num_questions_official": 1,
    }


def test_grounding_accuracy(load):
    boxes = [[0, 0, 10, 10], [0, 0, 10, 10], [], [5, 0, 10, 10]]
    references = [[0, 0, 10, 10], [0, 0, 10, 21], [1, 1, 5, 5], [0, 0, 10, 10]]
    result = load("grounding_accuracy").compute(
        predictions=boxes, references=references, splits=["testA", "testA", "testB", "testB"]
    )
    assert result == {"accuracy": 25.0, "accuracy_testA": 50.0, "accuracy_testB": 0.0}


def test_classification_accuracy(load):
    result = load("classification_accuracy").compute(
        predictions=[0, 1, 1, 2], references=[0, 1, 0, 0], class_names=["no", "perhaps", "yes"]
    )
    assert result == {
        "accuracy": 50.0,
        "majority_accuracy": 75.0,
        "accuracy_no": pytest.approx(100 / 3),
        "accuracy_perhaps": 100.0,
        "num_samples": 4,
    }
    with pytest.raises(ValueError, match="at least one"):
        load("classification_accuracy").compute(predictions=[], references=[])
