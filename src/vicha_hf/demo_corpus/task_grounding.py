"""Expressions that name exactly one thing in a demo image, with boxes to choose from."""

import random
from collections.abc import Sequence

from .facts import Relation, relation_holds
from .scene import Box, Scene, SceneObject
from .task_scene import POSITION_WORDS, TaskScene, only_thing_in_relation


_COLOUR_PROBABILITY = 0.4
_RELATION_PROBABILITY = 0.3
# Random boxes among the proposals, beside those of all things in the image.
_NUM_DISTRACTORS = 5
_SIDES = {
    Relation.LEFT_OF: "on the left",
    Relation.RIGHT_OF: "on the right",
    Relation.ABOVE: "at the top",
    Relation.BELOW: "at the bottom",
}


def make_expressions(scenes: Sequence[TaskScene], rng: random.Random, *, split: str, first_id: int) -> list[dict]:
    """Records of grounding: one expression for every thing that can be told from the others in its image."""
    records = []
    for shown in scenes:
        boxes = [item.box for item in shown.scene.objects]
        boxes += [_random_box(shown.scene, rng) for _ in range(_NUM_DISTRACTORS)]
        rng.shuffle(boxes)
        for thing in shown.scene.objects:
            text = _expression(thing, shown.scene, rng)
            if text is None:
                continue
            records.append(
                {
                    "ref_id": first_id + len(records),
                    "image": shown.image,
                    "image_id": shown.image_id,
                    "text": text,
                    "bbox": list(thing.box),
                    "boxes": [list(box) for box in boxes],
                    "split": split,
                    "width": shown.scene.image_size,
                    "height": shown.scene.image_size,
                    "concepts": shown.concepts,
                }
            )
    return records


def _expression(thing: SceneObject, scene: Scene, rng: random.Random) -> str | None:
    """None where nothing tells the thing from others like it."""
    alike = [item for item in scene.objects if item.noun == thing.noun]
    same_colour = [item for item in alike if item.colour == thing.colour]
    # Drawn whether needed or not, so that one thing's words do not decide on the next one's.
    say_colour, say_relation = rng.random() < _COLOUR_PROBABILITY, rng.random() < _RELATION_PROBABILITY
    needs_colour = len(alike) > len(same_colour)
    words = f"{thing.colour} {thing.noun}" if thing.colour and (needs_colour or say_colour) else thing.noun
    if len(same_colour) > 1:
        side = _side_among(thing, same_colour)
        return None if side is None else f"the {words} {side}"
    if needs_colour and not thing.colour:
        return None
    relation = _relation_phrase(thing, scene) if say_relation else None
    return f"the {words} {relation}" if relation else f"the {words}"


def _side_among(thing: SceneObject, alike: list[SceneObject]) -> str | None:
    others = [item for item in alike if item is not thing]
    for relation, side in _SIDES.items():
        if all(relation_holds(thing, relation, other) for other in others):
            return side
    return None


def _relation_phrase(thing: SceneObject, scene: Scene) -> str | None:
    """ "left of the dog", where there is one dog and nothing else left of it."""
    for other in scene.objects:
        if sum(item.noun == other.noun for item in scene.objects) > 1 or other is thing:
            continue
        for relation, position in POSITION_WORDS.items():
            if only_thing_in_relation(scene, relation, other) is thing:
                return f"{position} the {other.noun}"
    return None


def _random_box(scene: Scene, rng: random.Random) -> Box:
    """A box of the size of one of the scene's things, anywhere in the image."""
    _, _, width, height = rng.choice(scene.objects).box
    return rng.randint(0, scene.image_size - width), rng.randint(0, scene.image_size - height), width, height
