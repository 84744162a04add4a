"""The closed list of answers that visual question answering chooses from."""

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..whole_files import write_whole_file
from .annotations_vqa import QuestionRecord
from .json_reading import decode_json, read_text_file
from .raw_records import AnnotationError, shorten


logger = logging.getLogger(__name__)
# Share of the questions below which a list of answers is said to be too short.
ENOUGH_ANSWERABLE = 0.9


def build_answer_list(
    records: Iterable[QuestionRecord], *, min_count: int = 1, max_size: int | None = None
) -> list[str]:
    """
    The answers of the annotations, most frequent first, equally frequent ones in alphabetical order.

    Args:
        records: training (and validation) questions.
        min_count: how many questions an answer must have been given to, by one annotator or more.
        max_size: how many answers are kept; None keeps all. The published list for VQA v2 has 3,128.

    Raises:
        ValueError: `min_count` or `max_size` below 1.
        AnnotationError: no answer is left.
    """
    if min_count < 1 or (max_size is not None and max_size < 1):
        raise ValueError(f"min_count={min_count} and max_size={max_size} must be at least 1")
    counts = Counter(answer for record in records for answer in {answer.strip() for answer in record.answers})
    answers = sorted(
        (answer for answer, count in counts.items() if count >= min_count),
        key=lambda answer: (-counts[answer], answer),
    )
    if not answers:
        raise AnnotationError(
            f"no answer was given to {min_count} questions ({len(counts)} different answers); lower min_count"
        )
    return answers[:max_size]


def check_answer_list(answers: Sequence[str], records: Iterable[QuestionRecord], where: str) -> float:
    """
    Share of the questions that a list can answer rightly, which is logged; below 90 % with a warning.

    Args:
        answers: that a model chooses from.
        records: the questions; those without answers are not counted.
        where: the list's name in messages.

    Returns:
        The share, between 0 and 1; 1 where no question has an answer.

    Raises:
        AnnotationError: no answer of the list is given to any question: it is that of another corpus.
    """
    listed = {answer.strip().lower() for answer in answers}
    given = [record.answers for record in records if record.answers]
    if not given:
        return 1.0
    share = sum(any(answer.strip().lower() in listed for answer in of_question) for of_question in given) / len(given)
    if share == 0:
        raise AnnotationError(
            f"{where}: none of its {len(answers)} answers, such as {answers[0]!r}, is given to any question, such as "
            f"{given[0][0]!r}; give the list that belongs to the data, or leave it out"
        )
    fact = f"{where}: its {len(answers)} answers can answer {100 * share:.1f} % of the questions"
    if share < ENOUGH_ANSWERABLE:
        logger.warning("%s; the others count as wrong: is it the list of these data?", fact)
    else:
        logger.info("%s", fact)
    return share


def write_answer_list(path: str | os.PathLike, answers: Sequence[str]) -> None:
    """Writes a JSON list."""
    write_whole_file(Path(path), json.dumps(list(answers), ensure_ascii=False, indent=0) + "\n")


def read_answer_list(path: str | os.PathLike) -> list[str]:
    """
    Reads the JSON list of answers, such as the published `answer_list.json`.

    Raises:
        AnnotationError: no such file, or not a list of different texts; the message names the entry.
    """
    remedy = 'write a list of different answers, such as ["yes", "no", "2"], or leave it out to have it built'
    try:
        answers = decode_json(read_text_file(os.path.expanduser(path), "answer list"))
    except AnnotationError as error:
        raise AnnotationError(f"{error}; {remedy}") from error
    except ValueError as error:
        raise AnnotationError(f"{path}: not readable as JSON ({error}); {remedy}") from error
    if not isinstance(answers, list) or not answers:
        raise AnnotationError(f"{path}: not a list of answers, or empty (got {shorten(answers)}); {remedy}")
    positions: dict[str, int] = {}
    for position, answer in enumerate(answers):
        if not isinstance(answer, str) or not answer.strip():
            raise AnnotationError(f"{path}, entry {position}: no text (got {shorten(answer)}); {remedy}")
        if positions.setdefault(answer, position) != position:
            raise AnnotationError(
                f"{path}, entry {position}: {answer!r} again (first as entry {positions[answer]}); {remedy}"
            )
    return answers
