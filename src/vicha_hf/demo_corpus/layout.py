"""Draws scenes at random: which things, how large, where, on what background."""

import random

from .parameters import SceneParameters
from .scene import Background, Box, Scene, SceneObject, noun_pairs
from .sprites import NOUNS, SPRITES_BY_NOUN, Sprite, SpriteLibrary


# name -> (RGB at the top, RGB at the bottom). Light, because the sprites are drawn with dark outlines.
PLAIN_BACKGROUNDS = {
    "white": (250, 250, 250),
    "grey": (206, 206, 208),
    "pink": (250, 208, 222),
    "yellow": (250, 242, 186),
    "blue": (184, 212, 246),
    "green": (200, 234, 196),
}
LANDSCAPES = {
    "meadow": ((198, 226, 250), (150, 204, 120)),
    "beach": ((176, 222, 250), (238, 218, 164)),
    "snow": ((164, 190, 222), (246, 248, 252)),
}
BACKGROUNDS = (*PLAIN_BACKGROUNDS, *LANDSCAPES)

_TINT_JITTER = 8
_PLACING_ATTEMPTS = 60
_ARRANGING_ATTEMPTS = 50
_SCENE_ATTEMPTS = 200


class SceneSampler:
    """Draws scenes that avoid the held-out pairs of nouns, or that contain a given one.

    Args:
        parameters: see `SceneParameters`.
        library: gives the sprites' exact extents.
        held_out_pairs: sorted pairs of nouns that `sample` never shows together.
    """

    def __init__(
        self, parameters: SceneParameters, library: SpriteLibrary, held_out_pairs: frozenset[tuple[str, str]]
    ):
        self.parameters = parameters
        self.library = library
        self.held_out_pairs = held_out_pairs

    def sample(self, rng: random.Random) -> Scene:
        """A scene without any held-out pair.

        Raises:
            ValueError: when the sprites are too large or too many for the image.
        """
        for _ in range(_SCENE_ATTEMPTS):
            sprites = self._choose_sprites(rng, required=())
            if noun_pairs(sprite.noun for sprite in sprites) & self.held_out_pairs:
                continue
            scene = self._arrange(sprites, rng)
            if scene is not None:
                return scene
        raise self._no_room()

    def sample_with_pair(self, rng: random.Random, pair: tuple[str, str]) -> Scene:
        """A scene in which both nouns of `pair` occur; raises as `sample`."""
        for _ in range(_SCENE_ATTEMPTS):
            scene = self._arrange(self._choose_sprites(rng, required=pair), rng)
            if scene is not None:
                return scene
        raise self._no_room()

    def _no_room(self) -> ValueError:
        p = self.parameters
        return ValueError(
            f"No scene found in {_SCENE_ATTEMPTS} attempts with max_objects={p.max_objects} and max_sprite_fraction="
            f"{p.max_sprite_fraction}: ask for fewer or smaller sprites, or lower held_out_pair_fraction"
        )

    def _choose_sprites(self, rng: random.Random, required: tuple[str, ...]) -> list[Sprite]:
        parameters = self.parameters
        number = max(rng.randint(parameters.min_objects, parameters.max_objects), len(required))
        chosen = [rng.choice(SPRITES_BY_NOUN[noun]) for noun in required]
        while len(chosen) < number:
            if chosen and rng.random() < parameters.repeat_probability:
                chosen.append(rng.choice(chosen))
            else:
                chosen.append(rng.choice(SPRITES_BY_NOUN[rng.choice(NOUNS)]))
        rng.shuffle(chosen)
        return chosen

    def _arrange(self, sprites: list[Sprite], rng: random.Random) -> Scene | None:
        """The sprites at random sizes and places; None when no room is found.

        The same sprites are tried again and again: if others took their place, flat and thin things, which fit in more
        easily, would appear more often.
        """
        for _ in range(_ARRANGING_ATTEMPTS):
            scene = self._place(sprites, rng)
            if scene is not None:
                return scene
        return None

    def _place(self, sprites: list[Sprite], rng: random.Random) -> Scene | None:
        """Puts the sprites where they do not touch; None when there was no room for the drawn sizes."""
        parameters = self.parameters
        objects: list[SceneObject] = []
        for sprite in sprites:
            fraction = rng.uniform(parameters.min_sprite_fraction, parameters.max_sprite_fraction)
            mirrored = rng.random() < parameters.mirror_probability
            size = max(4, round(fraction * parameters.image_size))
            width, height = self.library.image(sprite.name, size, mirrored).size
            box = self._free_box(width, height, [item.box for item in objects], rng)
            if box is None:
                return None
            objects.append(SceneObject(sprite.noun, sprite.colour, sprite.category, box, mirrored))
        return Scene(tuple(objects), self._choose_background(rng), parameters.image_size)

    def _free_box(self, width: int, height: int, taken: list[Box], rng: random.Random) -> Box | None:
        side = self.parameters.image_size
        gap = max(1, side // 48)
        for _ in range(_PLACING_ATTEMPTS):
            x, y = rng.randint(0, side - width), rng.randint(0, side - height)
            if all(
                x + width + gap <= left or left + w + gap <= x or y + height + gap <= top or top + h + gap <= y
                for left, top, w, h in taken
            ):
                return x, y, width, height
        return None

    def _choose_background(self, rng: random.Random) -> Background:
        def jitter(colour: tuple[int, int, int]) -> tuple[int, int, int]:
            shift = rng.randint(-_TINT_JITTER, _TINT_JITTER)
            return tuple(min(255, max(0, channel + shift)) for channel in colour)

        name = rng.choice(BACKGROUNDS)
        if name in PLAIN_BACKGROUNDS:
            colour = jitter(PLAIN_BACKGROUNDS[name])
            return Background(name, colour, colour)
        sky, ground = LANDSCAPES[name]
        horizon = round(rng.uniform(0.35, 0.6) * self.parameters.image_size)
        return Background(name, jitter(sky), jitter(ground), horizon)
