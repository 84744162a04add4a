"""Accuracy of question answering: the official rules one by one, and input that is refused."""

import pytest

from vicha_hf.evaluation.vqa import (
    answer_accuracy,
    normalize_answer,
    normalize_punctuation,
    normalize_words,
    vqa_accuracy,
)


@pytest.mark.parametrize(
    ("answer", "normalized"),
    [
        ("The two Dogs.", "2 dogs"),
        ("isnt it?", "isn't it"),
        ("youd've", "you'd've"),
        ("yall'll", "y'all'll"),
        ("T-shirt", "t shirt"),
        ("red - blue", "red blue"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("a\nb\tc", "b c"),
    ],
)
def test_normalisation(answer, normalized):
    assert normalize_answer(answer) == normalized


def test_only_the_first_periods_go():
    assert normalize_punctuation("." * 40) == "." * 8
    assert normalize_words("Zero") == "0"


def test_agreement_of_three_others_is_needed():
    answers = ["dog"] * 3 + ["cat"] * 6 + ["bird"]
    # Each of the three has two others to agree with, everybody else three.
    assert answer_accuracy("a dog", answers) == pytest.approx((3 * 2 / 3 + 7) / 10)
    assert answer_accuracy("cat", answers) == 1.0
    assert answer_accuracy("bird", answers) == pytest.approx(9 / 30)
    assert answer_accuracy("fish", answers) == 0.0


def test_unanimous_answers_are_compared_as_they_are():
    assert answer_accuracy("t-shirt", ["t-shirt"] * 10) == 0.0
    assert answer_accuracy("t-shirt", ["t-shirt"] * 9 + ["coat"]) == 1.0


def test_accuracy_by_kind():
    annotations = {
        1: {"answers": ["yes"] * 10, "question_type": "is", "answer_type": "yes/no"},
        2: {"answers": [{"answer": "2"}] * 10, "question_type": "how many", "answer_type": "number"},
        3: {"answers": ["no"] * 10, "question_type": "is", "answer_type": "yes/no"},
    }
    assert vqa_accuracy({1: "Yes", 2: "two", 3: "yes"}, annotations) == {
        "overall": 66.67,
        "per_question_type": {"is": 50.0, "how many": 100.0},
        "per_answer_type": {"yes/no": 50.0, "number": 100.0},
        "per_question": {1: 100.0, 2: 100.0, 3: 0.0},
    }


def test_what_cannot_be_evaluated():
    with pytest.raises(ValueError, match="question_id 'b'"):
        vqa_accuracy({"a": "yes"}, {"a": {"answers": ["yes"]}, "b": {"answers": ["no"]}})
    with pytest.raises(ValueError, match="empty"):
        vqa_accuracy({}, {})
    with pytest.raises(ValueError, match="empty"):
        answer_accuracy("yes", [])
