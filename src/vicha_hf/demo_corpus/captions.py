"""A small grammar that says in natural English what a scene shows.

Every caption names all things of its image, so that it can be told from other images. It carries the facts it states,
so that its truth can be checked in any scene.
"""

import random
from collections import Counter
from dataclasses import dataclass

from .facts import Fact, OnBackground, Related, Relation, Things, relation_holds
from .layout import PLAIN_BACKGROUNDS
from .parameters import CaptionParameters
from .scene import Scene
from .sprites import PLURALS


_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_POSITION_PHRASES = {
    Relation.LEFT_OF: ("to the left of", "left of", "on the left of"),
    Relation.RIGHT_OF: ("to the right of", "right of", "on the right of"),
    Relation.ABOVE: ("above", "over"),
    Relation.BELOW: ("below", "under", "beneath"),
}
_LANDSCAPE_PHRASES = {
    "meadow": ("in a meadow", "on a green meadow"),
    "beach": ("on a beach", "at the beach"),
    "snow": ("in the snow", "on a snowy field"),
}
_OPENINGS = ("a picture of", "a drawing of", "an image of")


@dataclass(frozen=True)
class Caption:
    """A sentence or noun phrase, lower-case, and everything that it claims."""

    text: str
    facts: tuple[Fact, ...]


def noun_phrase(things: Things, definite: bool = False) -> str:
    """`"an orange cat"`, `"two mice"`; `definite`: `"the orange cat"`, `"the two mice"`."""
    words = [things.colour] if things.colour else []
    if things.count == 1:
        words.append(things.noun)
        article = "the" if definite else ("an" if words[0][0] in "aeiou" else "a")
        return " ".join([article, *words])
    number = _NUMBERS[things.count] if things.count < len(_NUMBERS) else str(things.count)
    return " ".join([*(["the"] if definite else []), number, *words, PLURALS[things.noun]])


def enumerate_phrases(phrases: list[str]) -> str:
    """`"a, b and c"`."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def describe_things(scene: Scene, colour_probability: float, rng: random.Random) -> list[Things]:
    """All things of the scene, alike ones counted together, in random order.

    A colour is said with the given probability, and always where the same noun appears in two colours.
    """
    groups = Counter((item.noun, item.colour) for item in scene.objects)
    colours_of_noun = Counter(noun for noun, _ in groups)
    described = []
    for (noun, colour), count in sorted(groups.items(), key=lambda group: (group[0][0], group[0][1] or "")):
        say_colour = colours_of_noun[noun] > 1 or rng.random() < colour_probability
        described.append(Things(noun, colour if say_colour else None, count))
    rng.shuffle(described)
    return described


def clear_relation(
    scene: Scene, first: Things, second: Things, among: tuple[Relation, ...] = tuple(_POSITION_PHRASES)
) -> Relation | None:
    """The relation of `among` in which all of `first` clearly stand to all of `second`, if there is one."""
    for relation in among:
        if all(relation_holds(a, relation, b) for a in first.matching(scene) for b in second.matching(scene)):
            return relation
    return None


class CaptionWriter:
    """Writes captions; all choices come from the random generator that is passed in."""

    def __init__(self, parameters: CaptionParameters):
        self.parameters = parameters

    def write(self, scene: Scene, rng: random.Random) -> Caption:
        """A true caption that names every thing in the scene.

        Where the draws make it too long, the background, the relations and then the colours are left out; only a scene
        of very many things makes it longer than `max_caption_words`.
        """
        parameters = self.parameters
        things = describe_things(scene, parameters.colour_probability, rng)
        caption = None
        if len(things) > 1 and rng.random() < parameters.relation_probability:
            caption = self._write_related(scene, things, rng)
        if caption is None or not self._is_short(caption):
            caption = self._write_list(things, rng)
        if not self._is_short(caption):
            caption = self._write_list(describe_things(scene, 0.0, rng), rng)
        if rng.random() < parameters.background_probability:
            longer = self._add_background(caption, scene, rng)
            caption = longer if self._is_short(longer) else caption
        return caption

    def _is_short(self, caption: Caption) -> bool:
        return len(caption.text.split()) <= self.parameters.max_caption_words

    def _write_list(self, things: list[Things], rng: random.Random) -> Caption:
        phrases = [noun_phrase(group) for group in things]
        listing = enumerate_phrases(phrases)
        forms = [listing, f"{rng.choice(_OPENINGS)} {listing}", f"{_there(things[0])} {listing}"]
        if len(things) > 1:
            forms.append(f"{phrases[0]} with {enumerate_phrases(phrases[1:])}")
        return Caption(rng.choice(forms), tuple(things))

    def _write_related(self, scene: Scene, things: list[Things], rng: random.Random) -> Caption | None:
        """A caption that also tells how some of the things relate; None if nothing about them is clear."""
        writers = [self._write_position, self._write_size] if len(things) == 2 else [self._write_positions_of_one]
        if len(things) > 2:
            writers += [self._write_side_by_side, self._write_list_and_position]
        rng.shuffle(writers)
        for write in writers:
            caption = write(scene, things, rng)
            if caption is not None:
                return caption
        return None

    def _write_position(self, scene: Scene, things: list[Things], rng: random.Random) -> Caption | None:
        first, second = things
        relation = clear_relation(scene, first, second)
        if relation is None:
            return None
        a, b, where = noun_phrase(first), noun_phrase(second), rng.choice(_POSITION_PHRASES[relation])
        forms = [
            f"{a} {where} {b}",
            f"{a} {_is(first)} {where} {b}",
            f"{_there(first)} {a} {where} {b}",
            f"{rng.choice(_OPENINGS)} {a} {where} {b}",
            f"{where} {b} {_there(first)} {a}",
        ]
        return Caption(rng.choice(forms), (*things, Related(first, relation, second)))

    def _write_size(self, scene: Scene, things: list[Things], rng: random.Random) -> Caption | None:
        first, second = things
        if first.count > 1 or second.count > 1:
            return None
        relation = clear_relation(scene, first, second, (Relation.BIGGER, Relation.SMALLER))
        if relation is None:
            return None
        larger, smaller = (first, second) if relation is Relation.BIGGER else (second, first)
        big, small = _with_adjective(larger, rng.choice(("big", "large"))), _with_adjective(smaller, "small")
        forms = [f"{big} and {small}", f"{small} and {big}", f"{noun_phrase(smaller)} and a bigger {_bare(larger)}"]
        return Caption(rng.choice(forms), (*things, Related(larger, Relation.BIGGER, smaller)))

    def _write_positions_of_one(self, scene: Scene, things: list[Things], rng: random.Random) -> Caption | None:
        """ "a cat to the left of a dog and above a car": the first thing's place among two others."""
        first, second, third, *others = things
        relations = [clear_relation(scene, first, other) for other in (second, third)]
        if others or None in relations:
            return None
        if relations[0] is relations[1]:
            where = rng.choice(_POSITION_PHRASES[relations[0]])
            text = f"{noun_phrase(first)} {where} {noun_phrase(second)} and {noun_phrase(third)}"
        else:
            places = [
                f"{rng.choice(_POSITION_PHRASES[relation])} {noun_phrase(other)}"
                for relation, other in zip(relations, (second, third), strict=True)
            ]
            text = f"{noun_phrase(first)} {' and '.join(places)}"
        stated = tuple(Related(first, r, other) for r, other in zip(relations, (second, third), strict=True))
        return Caption(text, (*things, *stated))

    def _write_side_by_side(self, scene: Scene, things: list[Things], rng: random.Random) -> Caption | None:
        """ "a cat and a dog are above a car": two things with the same relation to the third."""
        first, second, third, *others = things
        relation = clear_relation(scene, first, third)
        if others or relation is None or clear_relation(scene, second, third) is not relation:
            return None
        pair = f"{noun_phrase(first)} and {noun_phrase(second)}"
        text = f"{pair} are {rng.choice(_POSITION_PHRASES[relation])} {noun_phrase(third)}"
        return Caption(text, (*things, Related(first, relation, third), Related(second, relation, third)))

    def _write_list_and_position(self, scene: Scene, things: list[Things], rng: random.Random) -> Caption | None:
        """ "a black cat, a dog and a car, with the dog below the cat": colours are not said twice without need."""
        first, second = (_without_needless_colour(group, things) for group in rng.sample(things, 2))
        relation = clear_relation(scene, first, second)
        if relation is None:
            return None
        where = rng.choice(_POSITION_PHRASES[relation])
        listing = enumerate_phrases([noun_phrase(group) for group in things])
        text = f"{listing}, with {noun_phrase(first, definite=True)} {where} {noun_phrase(second, definite=True)}"
        return Caption(text, (*things, Related(first, relation, second)))

    def _add_background(self, caption: Caption, scene: Scene, rng: random.Random) -> Caption:
        name = scene.background.name
        if name in PLAIN_BACKGROUNDS:
            phrase = f"on {'an' if name[0] in 'aeiou' else 'a'} {name} background"
        else:
            phrase = rng.choice(_LANDSCAPE_PHRASES[name])
        return Caption(f"{caption.text} {phrase}", (*caption.facts, OnBackground(name)))


def _is(things: Things) -> str:
    return "is" if things.count == 1 else "are"


def _there(things: Things) -> str:
    return f"there {_is(things)}"


def _bare(things: Things) -> str:
    return f"{things.colour} {things.noun}" if things.colour else things.noun


def _with_adjective(things: Things, adjective: str) -> str:
    return f"a {adjective} {_bare(things)}"


def _without_needless_colour(things: Things, among: list[Things]) -> Things:
    """The same things without their colour, unless other things of that noun are mentioned."""
    if sum(group.noun == things.noun for group in among) > 1:
        return things
    return Things(things.noun, None, things.count)
