"""
Accuracy of visual question answering as the official tool counts it.

Reference:
    [1] Antol et al., VQA, arXiv 1505.00468, section 2; the normalisation follows the official evaluation, whose every
        departure from what its rules say (listed at the functions) is kept: results must be comparable.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean


_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
# The official expression is meant to spare periods after digits too, but does not.
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32
_ARTICLES = frozenset(("a", "an", "the"))
_NUMBERS = {"none": "0"} | {
    word: str(number)
    for number, word in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    )
}
_CONTRACTED = [
    "ain't",
    "aren't",
    "can't",
    "could've",
    "couldn't",
    "didn't",
    "doesn't",
    "don't",
    "hadn't",
    "hasn't",
    "haven't",
    "he'd",
    "he's",
    "how'd",
    "how'll",
    "how's",
    "isn't",
    "it'd",
    "it'll",
    "ma'am",
    "mightn't",
    "might've",
    "mustn't",
    "must've",
    "needn't",
    "not've",
    "o'clock",
    "oughtn't",
    "shan't",
    "should've",
    "shouldn't",
    "somebody'll",
    "somebody's",
    "someone'd",
    "someone'll",
    "someone's",
    "something'd",
    "something'll",
    "that's",
    "there'd",
    "there're",
    "there's",
    "they'd",
    "they'll",
    "they're",
    "they've",
    "'twas",
    "wasn't",
    "we've",
    "weren't",
    "what'll",
    "what're",
    "what's",
    "what've",
    "when's",
    "where'd",
    "where's",
    "where've",
    "who'd",
    "who'll",
    "who's",
    "who've",
    "why'll",
    "why're",
    "why's",
    "won't",
    "would've",
    "wouldn't",
    "y'all",
    "you'd",
    "you'll",
    "you're",
    "you've",
    "couldn't've",
    "hadn't've",
    "he'd've",
    "it'd've",
    "mightn't've",
    "she'd've",
    "shouldn't've",
    "somebody'd've",
    "someone'd've",
    "something'd've",
    "there'd've",
    "they'd've",
    "we'd've",
    "who'd've",
    "wouldn't've",
    "you'd've",
    "y'all'll",
    "y'all'd've",
    "'ow's'at",
]
# Every form with one of its apostrophes forgotten. The official table has this one the wrong way round.
_CONTRACTIONS = {
    word[:position] + word[position + 1 :]: word
    for word in _CONTRACTED
    for position, character in enumerate(word)
    if character == "'"
} | {"somebody'd": "somebodyd"}


def normalize_punctuation(text: str) -> str:
    """
    Punctuation becomes a space, or nothing where it stands beside a space or anywhere in a text with a number like
    1,000; periods go unless a digit follows (the first 32 of them).
    """
    result = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if beside_space or _COMMA_IN_NUMBER.search(text) else " ")
    return _PERIOD.sub("", result, count=_MOST_PERIODS)


def normalize_words(text: str) -> str:
    """Lower case, number words up to ten as digits, no articles, apostrophes of contractions restored."""
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def normalize_answer(answer: str) -> str:
    """A predicted answer as it is compared: both normalisations, one line."""
    return normalize_words(normalize_punctuation(answer.replace("\n", " ").replace("\t", " ").strip()))


def answer_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """
    Mean over the annotators of min(1, agreeing others / 3), between 0 and 1.

    Args:
        prediction: the model's answer.
        answers: what the annotators (usually 10) said. As in the official tool only their punctuation is normalised,
            and that only if they disagree: an unnormalised unanimous answer can be impossible to match.

    Raises:
        ValueError: no annotators.
    """
    if not answers:
        raise ValueError("`answers` is empty: the accuracy of an answer needs at least one annotator.")
    prediction = normalize_answer(prediction)
    if len(set(answers)) > 1:
        answers = [normalize_punctuation(answer) for answer in answers]
    agreeing = [answer == prediction for answer in answers]
    return fmean(min(1.0, (sum(agreeing) - own) / 3) for own in agreeing)


def vqa_accuracy(predictions: Mapping[str, str], annotations: Mapping[str, Mapping]) -> dict:
    """
    Accuracy in percent, rounded to two decimals, over all questions and by kind.

    Args:
        predictions: question id -> answer.
        annotations: question id -> `answers` (strings, or dicts with `answer` as in the official files) and, optionally,
            `question_type` and `answer_type`. Every question is counted.

    Returns:
        `overall`; `per_question_type` and `per_answer_type`, by type; `per_question`, by question id.

    Raises:
        ValueError: no questions, or a question without prediction.
    """
    if not annotations:
        raise ValueError("`annotations` is empty: there is no question to evaluate.")
    missing = [question for question in annotations if question not in predictions]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(annotations)} questions have no prediction, e.g. question_id {missing[0]!r}; "
            "the accuracy is over all of them: answer every question."
        )
    accuracies: dict = {}
    by_kind: dict[str, dict[str, list[float]]] = {"question_type": defaultdict(list), "answer_type": defaultdict(list)}
    for question, annotation in annotations.items():
        answers = [answer if isinstance(answer, str) else answer["answer"] for answer in annotation["answers"]]
        accuracies[question] = answer_accuracy(predictions[question], answers)
        for kind, groups in by_kind.items():
            if kind in annotation:
                groups[annotation[kind]].append(accuracies[question])
    result = {
        f"per_{kind}": {name: _percent(values) for name, values in groups.items()} for kind, groups in by_kind.items()
    }
    return {
        "overall": _percent(accuracies.values()),
        **result,
        "per_question": {question: _percent([accuracy]) for question, accuracy in accuracies.items()},
    }


def _percent(values) -> float:
    return round(100 * fmean(values), 2)
