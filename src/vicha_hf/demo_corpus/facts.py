"""Facts about a scene, and whether they are true, false or unclear in another one.

Captions are built from facts, so that their truth can be checked in any image. Questions, statements about two images,
entailment triples and referring expressions are built from the same ones. "Unclear" is kept apart on purpose. A person
may or may not call a slightly diagonal arrangement "left of". Such a case is neither stated as true nor used as a
contradiction.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from .scene import Scene, SceneObject


# One thing is called bigger only when nobody would doubt it; below the second ratio nobody would say so.
CLEARLY_BIGGER = 1.35
POSSIBLY_BIGGER = 1.1


class Relation(StrEnum):
    LEFT_OF = "left_of"
    RIGHT_OF = "right_of"
    ABOVE = "above"
    BELOW = "below"
    BIGGER = "bigger"
    SMALLER = "smaller"

    @property
    def inverse(self) -> "Relation":
        return _INVERSE[self]


_INVERSE = {
    Relation.LEFT_OF: Relation.RIGHT_OF,
    Relation.RIGHT_OF: Relation.LEFT_OF,
    Relation.ABOVE: Relation.BELOW,
    Relation.BELOW: Relation.ABOVE,
    Relation.BIGGER: Relation.SMALLER,
    Relation.SMALLER: Relation.BIGGER,
}


def relation_holds(first: SceneObject, relation: Relation, second: SceneObject) -> bool | None:
    """Whether `first` stands in `relation` to `second`: True, False, or None where people would differ.

    A position is clear when the boxes do not overlap along its axis and the centres are further apart along it than
    across it. It is wrong when the centres are not even in that order.
    """
    if relation in (Relation.RIGHT_OF, Relation.BELOW, Relation.SMALLER):
        return relation_holds(second, relation.inverse, first)
    if relation is Relation.BIGGER:
        ratio = first.size / second.size
        return True if ratio >= CLEARLY_BIGGER else (None if ratio > POSSIBLY_BIGGER else False)
    along = 0 if relation is Relation.LEFT_OF else 1
    distance = [b - a for a, b in zip(first.centre, second.centre, strict=True)]
    if distance[along] <= 0:
        return False
    separated = first.box[along] + first.box[along + 2] <= second.box[along]
    return True if separated and distance[along] > abs(distance[1 - along]) else None


def relations_of(scene: Scene) -> list[tuple[int, Relation, int]]:
    """Yields every clear relation `(index of first, relation, index of second)` between two objects of the scene."""
    indices = range(len(scene.objects))
    return [
        (i, relation, j)
        for i in indices
        for j in indices
        if i != j
        for relation in Relation
        if relation_holds(scene.objects[i], relation, scene.objects[j])
    ]


@dataclass(frozen=True)
class Things:
    """`count` things of one noun, of one colour if it is given: "two cats", "a red apple"."""

    noun: str
    colour: str | None = None
    count: int = 1

    def matching(self, scene: Scene) -> list[SceneObject]:
        return [
            item
            for item in scene.objects
            if item.noun == self.noun and (self.colour is None or self.colour == item.colour)
        ]

    def judge(self, scene: Scene) -> bool | None:
        """True if exactly so many are there; None (unclear) if there are more: "a cat" can be said of two."""
        number = len(self.matching(scene))
        return True if number == self.count else (None if number > self.count else False)


@dataclass(frozen=True)
class Related:
    """All of `first` stand in `relation` to all of `second`."""

    first: Things
    relation: Relation
    second: Things

    def judge(self, scene: Scene) -> bool | None:
        amounts = [self.first.judge(scene), self.second.judge(scene)]
        if False in amounts:
            return False
        verdicts = {
            relation_holds(a, self.relation, b)
            for a in self.first.matching(scene)
            for b in self.second.matching(scene)
            if a is not b
        }
        if verdicts == {False}:
            return False
        return True if verdicts == {True} and all(amounts) else None


@dataclass(frozen=True)
class OnBackground:
    """The background bears this name."""

    name: str

    def judge(self, scene: Scene) -> bool | None:
        return scene.background.name == self.name


Fact = Things | Related | OnBackground


def judge_all(facts: Iterable[Fact], scene: Scene) -> bool | None:
    """True if every fact is true in the scene, False if one is false, else None."""
    verdict: bool | None = True
    for fact in facts:
        judged = fact.judge(scene)
        if judged is False:
            return False
        if judged is None:
            verdict = None
    return verdict
