"""Sentences that demo images entail, contradict or leave open."""

import random
from collections.abc import Iterator, Sequence

from .scene import SceneObject
from .sprites import SPRITES_BY_NOUN
from .task_scene import TaskScene, sample_balanced, with_noun, without_noun


# Items per sentence and label: in training, in evaluation.
_COLOUR_LIMITS = (40, 4)
_PLACE_LIMITS = (9, 1)
# A thing is on the left when its centre lies in this share of the image's width; on the right, at the top and at the
# bottom alike. What lies between is neither stated nor contradicted.
_CLEARLY_ON_ONE_SIDE = 0.4
_PLACES = {"on the left": (0, False), "on the right": (0, True), "at the top": (1, False), "at the bottom": (1, True)}


def make_sentences(scenes: Sequence[TaskScene], rng: random.Random, *, is_training: bool) -> list[dict]:
    """
    Records of visual entailment about the scenes; every sentence has each of the three labels equally often.

    A sentence says something of *the* cat: true or false of an image with one cat, left open by an image without any.
    """
    which = 0 if is_training else 1
    sampled = [*_say_colours(scenes, _COLOUR_LIMITS[which], rng), *_say_places(scenes, _PLACE_LIMITS[which], rng)]
    return [
        {"image": shown.image, "sentence": sentence, "label": label, "concepts": shown.concepts}
        for sentence, label, shown in sampled
    ]


def _say_colours(scenes: Sequence[TaskScene], limit: int, rng: random.Random) -> Iterator[tuple[str, str, TaskScene]]:
    for noun, showing in with_noun(scenes).items():
        sprites = SPRITES_BY_NOUN[noun]
        for sprite in sprites if len(sprites) > 1 else ():
            candidates = {"entailment": [], "contradiction": [], "neutral": without_noun(scenes, noun)}
            for shown in showing:
                if (thing := shown.single(noun)) is not None:
                    candidates["entailment" if thing.colour == sprite.colour else "contradiction"].append(shown)
            for label, shown in sample_balanced(candidates, limit, rng):
                yield f"the {noun} is {sprite.colour}", label, shown


def _say_places(scenes: Sequence[TaskScene], limit: int, rng: random.Random) -> Iterator[tuple[str, str, TaskScene]]:
    for noun, showing in with_noun(scenes).items():
        absent = without_noun(scenes, noun)
        present = [(shown, thing) for shown in showing if (thing := shown.single(noun)) is not None]
        for place, (axis, is_far) in _PLACES.items():
            candidates = {"entailment": [], "contradiction": [], "neutral": absent}
            for shown, thing in present:
                far = _is_on_far_side(thing, axis, shown.scene.image_size)
                if far is not None:
                    candidates["entailment" if far is is_far else "contradiction"].append(shown)
            for label, shown in sample_balanced(candidates, limit, rng):
                yield f"the {noun} is {place}", label, shown


def _is_on_far_side(thing: SceneObject, axis: int, image_size: int) -> bool | None:
    """Whether the thing is on the right (axis 0) or at the bottom (axis 1); None where it is near the middle."""
    position = thing.centre[axis] / image_size
    if _CLEARLY_ON_ONE_SIDE < position < 1 - _CLEARLY_ON_ONE_SIDE:
        return None
    return position > 0.5
