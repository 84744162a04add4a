"""Content of a demo image: the schema that captions, concepts, questions and boxes are all derived from."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import combinations


Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Background:
    """A plain tint, or a sky above a ground.

    Attributes:
        name: the word for it, a key of `layout.BACKGROUNDS`.
        upper: RGB of the top of the image.
        lower: RGB of the bottom; equal to `upper` for a plain tint.
        horizon: height of the sky in pixels; None for a plain tint.
    """

    name: str
    upper: tuple[int, int, int]
    lower: tuple[int, int, int]
    horizon: int | None = None


@dataclass(frozen=True)
class SceneObject:
    """One sprite in an image.

    Attributes:
        noun, colour, category: as in `Sprite`.
        box: `(x, y, width, height)` in pixels from the top left; exactly the visible pixels.
        mirrored: drawn flipped left to right.
    """

    noun: str
    colour: str | None
    category: str
    box: Box
    mirrored: bool = False

    @property
    def sprite_name(self) -> str:
        return f"{self.colour} {self.noun}" if self.colour else self.noun

    @property
    def size(self) -> int:
        """The longer side in pixels."""
        return max(self.box[2:])

    @property
    def centre(self) -> tuple[float, float]:
        x, y, width, height = self.box
        return x + width / 2, y + height / 2


def noun_pairs(nouns: Iterable[str]) -> frozenset[tuple[str, str]]:
    """All pairs of different nouns, each pair sorted."""
    return frozenset(combinations(sorted(set(nouns)), 2))


@dataclass(frozen=True)
class Scene:
    """An image of `image_size` x `image_size` pixels; its objects never overlap."""

    objects: tuple[SceneObject, ...]
    background: Background
    image_size: int

    @property
    def content_key(self) -> str:
        """Canonical text of what is shown, e.g. `"2 x black cat, 1 x red apple"`, whatever the layout or background.

        Two splits never share one, which is stricter than sharing no image.
        """
        counts = Counter(item.sprite_name for item in self.objects)
        return ", ".join(f"{count} x {name}" for name, count in sorted(counts.items()))

    @property
    def nouns(self) -> tuple[str, ...]:
        """The different nouns, sorted."""
        return tuple(sorted({item.noun for item in self.objects}))

    @property
    def noun_pairs(self) -> frozenset[tuple[str, str]]:
        """Pairs of different nouns that occur together, each pair sorted."""
        return noun_pairs(self.nouns)

    def to_record(self) -> dict:
        """JSON-ready fields of an annotation record; `from_record` reads them back."""
        return {
            "objects": [asdict(item) | {"box": list(item.box)} for item in self.objects],
            "scene": {
                "image_size": self.image_size,
                "content": self.content_key,
                "background": {
                    "name": self.background.name,
                    "upper": list(self.background.upper),
                    "lower": list(self.background.lower),
                    "horizon": self.background.horizon,
                },
            },
        }

    @classmethod
    def from_record(cls, record: dict) -> "Scene":
        """The scene of an annotation record, so that other tasks can be derived from a corpus on disk."""
        background = record["scene"]["background"]
        return cls(
            objects=tuple(SceneObject(**(fields | {"box": tuple(fields["box"])})) for fields in record["objects"]),
            background=Background(
                background["name"], tuple(background["upper"]), tuple(background["lower"]), background["horizon"]
            ),
            image_size=record["scene"]["image_size"],
        )
