"""
Facts about an image for the makers of task records, and the balance that keeps texts from giving the answer away.
"""

import random
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from .facts import Relation, relation_holds
from .scene import Scene, SceneObject
from .sprites import NOUNS


_Item = TypeVar("_Item")

POSITION_WORDS = {
    Relation.LEFT_OF: "left of",
    Relation.RIGHT_OF: "right of",
    Relation.ABOVE: "above",
    Relation.BELOW: "below",
}


@dataclass(frozen=True)
class TaskScene:
    """An image of one split: its path, its number, its noisy concepts and what it shows."""

    image: str
    image_id: int
    concepts: list[str]
    scene: Scene

    @classmethod
    def from_record(cls, record: dict) -> "TaskScene":
        """From a record of the split's annotation file."""
        return cls(record["image"], record["image_id"], record["concepts"], Scene.from_record(record))

    @cached_property
    def things_of_noun(self) -> dict[str, list[SceneObject]]:
        things: dict[str, list[SceneObject]] = {}
        for item in self.scene.objects:
            things.setdefault(item.noun, []).append(item)
        return things

    def count(self, noun: str) -> int:
        """Counts the things that the noun names."""
        return len(self.things_of_noun.get(noun, ()))

    def single(self, noun: str) -> SceneObject | None:
        """The only thing that the noun names; None if there is none or more than one."""
        things = self.things_of_noun.get(noun, ())
        return things[0] if len(things) == 1 else None


def with_noun(scenes: Sequence[TaskScene]) -> dict[str, list[TaskScene]]:
    """Noun -> the scenes that show such a thing; every noun there is, in alphabetical order."""
    showing: dict[str, list[TaskScene]] = {noun: [] for noun in NOUNS}
    for shown in scenes:
        for noun in shown.things_of_noun:
            showing[noun].append(shown)
    return showing


def without_noun(scenes: Sequence[TaskScene], noun: str) -> list[TaskScene]:
    """The scenes that show no such thing."""
    return [shown for shown in scenes if noun not in shown.things_of_noun]


def only_thing_in_relation(scene: Scene, relation: Relation, anchor: SceneObject) -> SceneObject | None:
    """The one thing that clearly stands in `relation` to `anchor`; None where another one does, or might."""
    verdicts = [(item, relation_holds(item, relation, anchor)) for item in scene.objects if item is not anchor]
    standing = [item for item, verdict in verdicts if verdict is not False]
    return standing[0] if len(standing) == 1 and (standing[0], True) in verdicts else None


def sample_balanced(
    candidates: Mapping[Hashable, Sequence[_Item]], limit: int, rng: random.Random
) -> list[tuple[Hashable, _Item]]:
    """
    Equally many items of every answer: as many as the rarest one has, `limit` at most. So whoever knows the text alone
    guesses.

    Args:
        candidates: answer -> items.
    """
    number = min([limit, *(len(items) for items in candidates.values())]) if candidates else 0
    return [(answer, item) for answer, items in candidates.items() for item in rng.sample(list(items), number)]


def sample_capped(
    candidates: Mapping[Hashable, Sequence[_Item]], limit: int, rng: random.Random
) -> list[tuple[Hashable, _Item]]:
    """At most `limit` items of every answer: nearly balanced where there are too many answers to have all of each."""
    return [
        (answer, item)
        for answer, items in candidates.items()
        for item in rng.sample(list(items), min(limit, len(items)))
    ]
