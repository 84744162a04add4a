"""Statements about two demo images, true of some pairs and false of others."""

import random
from collections.abc import Sequence
from itertools import cycle

from .captions import noun_phrase
from .facts import Things
from .sprites import PLURALS
from .task_scene import TaskScene, with_noun, without_noun


# Statements of each kind, noun and truth value: in training, in evaluation.
_LIMITS = (12, 2)
_SOME = "some"
# Statement -> how many of the things the left and the right image show where it is true, and where it is false. The
# cases take turns, so that neither image alone gives the answer away where the statement is about both.
_STATEMENTS = {
    "both pictures show {one}": (
        [(_SOME, _SOME)],
        [(_SOME, 0), (0, _SOME), (0, 0)],
    ),
    "only one picture shows {one}": (
        [(_SOME, 0), (0, _SOME)],
        [(_SOME, _SOME), (0, 0)],
    ),
    "there is {one} in the left picture": (
        [(_SOME, 0), (_SOME, _SOME)],
        [(0, _SOME), (0, 0)],
    ),
    "there is {one} in the right picture": (
        [(0, _SOME), (_SOME, _SOME)],
        [(_SOME, 0), (0, 0)],
    ),
    "there are two {many} in the two pictures": (
        [(1, 1), (2, 0), (1, 1), (0, 2)],
        [(1, 0), (2, 1), (0, 1), (1, 2)],
    ),
}


def make_statements(scenes: Sequence[TaskScene], rng: random.Random, *, is_training: bool) -> list[dict]:
    """Records of visual reasoning about pairs of the scenes; every statement is as often true as it is false."""
    limit = _LIMITS[0 if is_training else 1]
    records = []
    for noun, showing in with_noun(scenes).items():
        by_count = {
            0: without_noun(scenes, noun),
            1: [shown for shown in showing if shown.count(noun) == 1],
            2: [shown for shown in showing if shown.count(noun) == 2],
            _SOME: showing,
        }
        for template, (true_cases, false_cases) in _STATEMENTS.items():
            sentence = template.format(one=noun_phrase(Things(noun)), many=PLURALS[noun])
            true_pairs = _draw_pairs(by_count, true_cases, limit, rng)
            false_pairs = _draw_pairs(by_count, false_cases, limit, rng)
            number = min(len(true_pairs), len(false_pairs))
            for label, pairs in (("True", true_pairs), ("False", false_pairs)):
                records += [_record(pair, sentence, label) for pair in pairs[:number]]
    return records


def _draw_pairs(by_count: dict, cases: list[tuple], limit: int, rng: random.Random) -> list[tuple]:
    """`limit` different pairs, the possible cases in turn; fewer where there are not so many."""
    possible = [case for case in cases if by_count[case[0]] and by_count[case[1]]]
    pairs: dict[tuple[str, str], tuple[TaskScene, TaskScene]] = {}
    # A pair may be drawn twice, or be an image with itself: there are a few draws to spare.
    for _, case in zip(range(4 * limit), cycle(possible), strict=False):
        left, right = rng.choice(by_count[case[0]]), rng.choice(by_count[case[1]])
        if left is not right:
            pairs.setdefault((left.image, right.image), (left, right))
        if len(pairs) == limit:
            break
    return list(pairs.values())


def _record(pair: tuple[TaskScene, TaskScene], sentence: str, label: str) -> dict:
    return {
        "images": [shown.image for shown in pair],
        "sentence": sentence,
        "label": label,
        "concepts": [shown.concepts for shown in pair],
    }
