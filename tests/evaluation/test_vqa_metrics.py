"""Accuracy of question answering: the official rules one by one, and input that is refused."""

import random

import pytest
import vqa_obvious

from vicha_hf.evaluation.question_answering import majority_accuracy, question_metrics
from vicha_hf.evaluation.vqa import answer_accuracy, formula_of, vqa_accuracy
from vicha_hf.evaluation.vqa_normalization import normalize_answer, normalize_punctuation, normalize_words


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


@pytest.mark.parametrize(
    ("prediction", "answers", "in_2021", "in_2017"),
    [
        ("none", ["none"] * 9 + ["no"], 1.0, 0.0),
        ("the end", ["the end"] * 8 + ["end"] * 2, 1.0, 0.6),
        ("the cat", ["the cat"] * 10, 1.0, 0.0),
        ("yes", ["yes"] * 3 + ["no"] * 7, 0.9, 0.9),
        ("Yes", ["yes"] * 10, 0.0, 1.0),
        ("t-shirt", ["t-shirt"] * 10, 1.0, 0.0),
        ("t-shirt", ["t-shirt"] * 9 + ["coat"], 1.0, 1.0),
        (" yes\n", ["yes\t"] * 10, 1.0, 0.0),
    ],
)
def test_the_two_official_tools(prediction, answers, in_2021, in_2017):
    assert answer_accuracy(prediction, answers) == pytest.approx(in_2021)
    assert answer_accuracy(prediction, answers, rules="2017") == pytest.approx(in_2017)


def test_fewer_than_ten_annotators():
    assert answer_accuracy("cat", ["cat"]) == 1.0
    assert answer_accuracy("dog", ["cat"]) == 0.0
    assert answer_accuracy("cat", ["cat"] * 2) == 1.0
    # Left out in turn: one of the two who agree, twice, and the one who does not.
    assert answer_accuracy("cat", ["cat", "cat", "dog"]) == pytest.approx((1 / 3 + 1 / 3 + 2 / 3) / 3)
    assert answer_accuracy("yes", ["yes"] * 3 + ["no"] * 2) == pytest.approx(0.8)
    assert [formula_of(answers) for answers in (["a"], ["a"] * 9, ["a", "b"], ["a"] * 10)] == [
        "exact_match",
        "exact_match",
        "leave_one_out",
        "official",
    ]


@pytest.mark.parametrize("year", [2021, 2017])
def test_many_answers_count_as_a_slow_reading_of_the_rules_says(year):
    drawn = random.Random(year)
    pieces = [
        "the",
        "a",
        "cat",
        "dog",
        "two",
        "2",
        "none",
        "No",
        "yes",
        "isnt",
        "don't",
        "1,000",
        "3.5",
        "t-shirt",
        "x/y",
    ]
    ends = ["", "", "", ".", "?", " !", "\n", "\t", " "]

    def answer():
        return " ".join(drawn.choices(pieces, k=drawn.choice((1, 1, 2)))) + drawn.choice(ends)

    accuracies = set()
    for _ in range(4000):
        said = [answer() for _ in range(drawn.choice((1, 2, 3)))]
        answers = [drawn.choice(said) for _ in range(drawn.choice((1, 2, 3, 5, 9, 10, 10, 10, 12)))]
        prediction = drawn.choice(said) if drawn.random() < 0.7 else answer()
        observed = answer_accuracy(prediction, answers, rules=str(year))
        assert observed == pytest.approx(vqa_obvious.accuracy(prediction, answers, year)), (prediction, answers)
        accuracies.add(round(observed, 6))
    assert {0.0, 1.0} < accuracies and len(accuracies) > 8


def test_accuracy_by_kind():
    annotations = {
        1: {"answers": ["yes"] * 10, "question_type": "is", "answer_type": "yes/no"},
        2: {"answers": [{"answer": "2"}] * 10, "question_type": "how many", "answer_type": "number"},
        3: {"answers": ["no"] * 10, "question_type": "is", "answer_type": "yes/no"},
    }
    assert vqa_accuracy({1: "Yes", 2: "two", 3: "yes"}, annotations, rules="2017") == {
        "overall": 66.67,
        "per_question_type": {"is": 50.0, "how many": 100.0},
        "per_answer_type": {"yes/no": 50.0, "number": 100.0},
        "per_question": {1: 100.0, 2: 100.0, 3: 0.0},
        "rules": "2017",
        "questions_by_formula": {"official": 3},
    }


def test_the_metrics_say_how_they_were_counted():
    references = {1: {"answers": ["yes"]}, 2: {"answers": ["a", "b"]}, 3: {"answers": ["no"] * 10}}
    assert question_metrics({1: "yes", 2: "b", 3: "no"}, references) == {
        "accuracy": pytest.approx(100 * (1 + 1 / 6 + 1) / 3, abs=0.01),
        "num_questions": 3,
        "vqa_rules": 2021,
        "num_questions_exact_match": 1,
        "num_questions_leave_one_out": 1,
        "num_questions_official": 1,
    }
    assert question_metrics({1: "yes"}, {1: {"answers": ["yes"] * 10}}, rules="2017")["vqa_rules"] == 2017


def test_what_cannot_be_evaluated():
    with pytest.raises(ValueError, match="question_id 'b'"):
        vqa_accuracy({"a": "yes"}, {"a": {"answers": ["yes"]}, "b": {"answers": ["no"]}})
    with pytest.raises(ValueError, match="empty"):
        vqa_accuracy({}, {})
    with pytest.raises(ValueError, match="empty"):
        answer_accuracy("yes", [])
    with pytest.raises(ValueError, match=r"'2021', '2017'"):
        answer_accuracy("yes", ["yes"], rules="2020")


def test_chance_is_the_answer_that_is_given_most_often():
    references = {
        1: {"answers": ["yes"] * 10},
        2: {"answers": ["no"]},
        3: {"answers": ["yes"]},
        4: {"answers": ["two"]},
    }
    assert majority_accuracy(references) == pytest.approx(50)
