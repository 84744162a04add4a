"""
Accuracy of visual question answering as the official tool counts it.

Reference:
    [1] Antol et al., VQA, arXiv 1505.00468, section 2, and the official evaluation: the tool of March 2021 by default,
        the one of 2017 on demand.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from .vqa_normalization import normalize_answer, normalize_punctuation, one_line


# Annotators who must agree with an answer for it to be right in full, besides the one who is left out.
AGREEING_ANNOTATORS = 3
ANNOTATORS = 10


def _compared_2021(prediction: str, answers: Sequence[str]) -> tuple[str, list[str]]:
    """Both sides are normalised where the annotators disagree; where all say the same neither is."""
    answers = [one_line(answer) for answer in answers]
    if len(set(answers)) > 1:
        return normalize_answer(prediction), [normalize_answer(answer) for answer in answers]
    return one_line(prediction), answers


def _compared_2017(prediction: str, answers: Sequence[str]) -> tuple[str, list[str]]:
    """The prediction is always normalised; of the annotators' answers the punctuation, and that where they disagree."""
    if len(set(answers)) > 1:
        answers = [normalize_punctuation(answer) for answer in answers]
    return normalize_answer(prediction), list(answers)


# The official tool by the year of its rules: what it compares, from a prediction and the annotators' answers.
RULES: dict[str, Callable[[str, Sequence[str]], tuple[str, list[str]]]] = {
    "2021": _compared_2021,
    "2017": _compared_2017,
}
DEFAULT_RULES = "2021"


def formula_of(answers: Sequence[str]) -> str:
    """
    The formula that counts an answer, by the number of annotators.

    Returns:
        `"exact_match"`: fewer than ten annotators who all say the same, or only one; `"leave_one_out"`: two to nine who
        disagree; `"official"`: ten or more.
    """
    if len(answers) >= ANNOTATORS:
        return "official"
    return "exact_match" if len({one_line(answer) for answer in answers}) == 1 else "leave_one_out"


def answer_accuracy(prediction: str, answers: Sequence[str], rules: str = DEFAULT_RULES) -> float:
    """
    Share of an answer that is right, between 0 and 1: the mean over the annotators of min(1, agreeing others / 3).
    Fewer than ten annotators who all say the same cannot agree with three others: there an exact match is 1.

    Args:
        prediction: the model's answer.
        answers: what the annotators (usually 10) said.
        rules: year of the official tool. `"2021"`: where the annotators disagree both sides are normalised, and
            otherwise neither. `"2017"`: the prediction is always normalised, the annotators' answers only in their
            punctuation, and that where they disagree.

    Raises:
        ValueError: no annotators, or unknown rules.
    """
    if not answers:
        raise ValueError("`answers` is empty: the accuracy of an answer needs at least one annotator.")
    if rules not in RULES:
        raise ValueError(f"`rules={rules!r}` is not known; choose one of {', '.join(map(repr, RULES))}.")
    compared, others = RULES[rules](prediction, answers)
    agreeing = [answer == compared for answer in others]
    if formula_of(answers) == "exact_match":
        return float(any(agreeing))
    return fmean(min(1.0, (sum(agreeing) - own) / AGREEING_ANNOTATORS) for own in agreeing)


def vqa_accuracy(
    predictions: Mapping[str, str], annotations: Mapping[str, Mapping], rules: str = DEFAULT_RULES
) -> dict:
    """
    Accuracy in percent, rounded to two decimals, over all questions and by kind.

    Args:
        predictions: question id -> answer.
        annotations: question id -> `answers` (strings, or dicts with `answer` as in the official files) and, optionally,
            `question_type` and `answer_type`. Every question is counted.
        rules: year of the official tool, as in [`answer_accuracy`].

    Returns:
        `overall`; `per_question_type` and `per_answer_type`, by type; `per_question`, by question id; `rules` as given;
        `questions_by_formula`, how many questions each of [`formula_of`]'s formulas counted.

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
    formulas: Counter[str] = Counter()
    by_kind: dict[str, dict[str, list[float]]] = {"question_type": defaultdict(list), "answer_type": defaultdict(list)}
    for question, annotation in annotations.items():
        answers = [answer if isinstance(answer, str) else answer["answer"] for answer in annotation["answers"]]
        accuracies[question] = answer_accuracy(predictions[question], answers, rules)
        formulas[formula_of(answers)] += 1
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
        "rules": rules,
        "questions_by_formula": dict(formulas),
    }


def _percent(values) -> float:
    return round(100 * fmean(values), 2)
