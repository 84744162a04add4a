"""Questions about demo images: what is there, of which colour, how many, and where."""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from .captions import noun_phrase
from .facts import Things
from .layout import PLAIN_BACKGROUNDS
from .sprites import NOUNS_OF_CATEGORY, PLURALS, SPRITES_BY_NOUN
from .task_scene import (
    POSITION_WORDS,
    TaskScene,
    only_thing_in_relation,
    sample_balanced,
    sample_capped,
    with_noun,
    without_noun,
)


# The word for a member of the category; household things have none that people use.
_CATEGORY_WORDS = {
    "animal": "animal",
    "food": "food",
    "vehicle": "vehicle",
    "plant": "plant",
    "clothing": "piece of clothing",
    "toy": "toy",
}
_ANSWER_TYPES = {"exists": "yes/no", "count": "number"}
# Evaluation counts agreement among ten annotators, as for VQA v2; here they all agree.
_NUM_ANNOTATORS = 10

_Asked = tuple[str, str, TaskScene]


def make_questions(scenes: Sequence[TaskScene], rng: random.Random, *, is_training: bool, first_id: int) -> list[dict]:
    """
    Records of visual question answering about the scenes.

    For every text the answers are balanced, exactly where there are two or a few of them (exists, colour, background,
    count), nearly where the answer is a noun (category, position).
    """
    records = []
    for kind in _KINDS:
        limit = kind.training_limit if is_training else kind.evaluation_limit
        for question, answer, shown in kind.ask(scenes, limit, rng):
            records.append(
                {
                    "question_id": first_id + len(records),
                    "question": question,
                    "image": shown.image,
                    "answer": answer if is_training else [answer] * _NUM_ANNOTATORS,
                    "dataset": "vqa",
                    "question_type": kind.question_type,
                    "answer_type": _ANSWER_TYPES.get(kind.question_type, "other"),
                    "concepts": shown.concepts,
                }
            )
    return records


def _ask_exists(scenes: Sequence[TaskScene], limit: int, rng: random.Random) -> Iterator[_Asked]:
    for noun, showing in with_noun(scenes).items():
        candidates = {"yes": showing, "no": without_noun(scenes, noun)}
        for answer, shown in sample_balanced(candidates, limit, rng):
            yield f"is there {noun_phrase(Things(noun))}?", answer, shown


def _ask_colour(scenes: Sequence[TaskScene], limit: int, rng: random.Random) -> Iterator[_Asked]:
    for noun, showing in with_noun(scenes).items():
        candidates = {sprite.colour: [] for sprite in SPRITES_BY_NOUN[noun]}
        if len(candidates) == 1:
            continue
        for shown in showing:
            if (thing := shown.single(noun)) is not None:
                candidates[thing.colour].append(shown)
        for answer, shown in sample_balanced(candidates, limit, rng):
            yield f"what colour is the {noun}?", answer, shown


def _ask_background(scenes: Sequence[TaskScene], limit: int, rng: random.Random) -> Iterator[_Asked]:
    candidates = {name: [s for s in scenes if s.scene.background.name == name] for name in PLAIN_BACKGROUNDS}
    for answer, shown in sample_balanced(candidates, limit, rng):
        yield "what colour is the background?", answer, shown


def _ask_count(scenes: Sequence[TaskScene], limit: int, rng: random.Random) -> Iterator[_Asked]:
    for noun, showing in with_noun(scenes).items():
        candidates = {str(n): [shown for shown in showing if shown.count(noun) == n] for n in (1, 2)}
        for answer, shown in sample_balanced(candidates, limit, rng):
            yield f"how many {PLURALS[noun]} are there?", answer, shown


def _ask_total(scenes: Sequence[TaskScene], limit: int, rng: random.Random) -> Iterator[_Asked]:
    totals = Counter(len(shown.scene.objects) for shown in scenes)
    # Numbers that hardly occur would leave nothing to balance the others with.
    common = [number for number, count in sorted(totals.items()) if count >= len(scenes) / 10]
    candidates = {str(n): [shown for shown in scenes if len(shown.scene.objects) == n] for n in common}
    if len(candidates) > 1:
        for answer, shown in sample_balanced(candidates, limit, rng):
            yield "how many things are there?", answer, shown


def _ask_category(scenes: Sequence[TaskScene], limit: int, rng: random.Random) -> Iterator[_Asked]:
    for category, word in _CATEGORY_WORDS.items():
        candidates = {noun: [] for noun in NOUNS_OF_CATEGORY[category]}
        for shown in scenes:
            nouns = {item.noun for item in shown.scene.objects if item.category == category}
            if len(nouns) == 1:
                candidates[nouns.pop()].append(shown)
        for answer, shown in sample_capped(candidates, limit, rng):
            yield f"what {word} is there?", answer, shown


def _ask_position(scenes: Sequence[TaskScene], limit: int, rng: random.Random) -> Iterator[_Asked]:
    candidates: dict[str, dict[str, list[TaskScene]]] = defaultdict(lambda: defaultdict(list))
    for shown in scenes:
        for noun in shown.scene.nouns:
            anchor = shown.single(noun)
            for relation, words in POSITION_WORDS.items() if anchor is not None else ():
                answer = only_thing_in_relation(shown.scene, relation, anchor)
                if answer is not None:
                    candidates[f"what is {words} the {noun}?"][answer.noun].append(shown)
    for question, of_answer in sorted(candidates.items()):
        for answer in rng.sample(sorted(of_answer), min(limit, len(of_answer))):
            yield question, answer, rng.choice(of_answer[answer])


class _Kind(NamedTuple):
    """Questions of one kind, and how many items of every text and answer there are at most."""

    question_type: str
    ask: Callable[[Sequence[TaskScene], int, random.Random], Iterator[_Asked]]
    training_limit: int
    evaluation_limit: int


# In training, more of what takes many examples to learn, counting above all.
_KINDS = (
    _Kind("exists", _ask_exists, 20, 4),
    _Kind("colour", _ask_colour, 40, 4),
    _Kind("background", _ask_background, 60, 12),
    _Kind("count", _ask_count, 40, 3),
    _Kind("count", _ask_total, 800, 15),
    _Kind("category", _ask_category, 20, 3),
    # Per text; each of them has another answer.
    _Kind("position", _ask_position, 6, 2),
)
