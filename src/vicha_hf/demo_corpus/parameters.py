"""Everything that determines a demo corpus, each parameter with its default, its bounds and its meaning."""

from dataclasses import MISSING, Field, dataclass, field, fields


_GROUPS = ("scene", "caption", "concept")


def _parameter(default: int | float, help: str, minimum: float = 0, maximum: float | None = None):
    """A dataclass field that is also a command-line option; the bounds are inclusive."""
    return field(default=default, metadata={"help": help, "minimum": minimum, "maximum": maximum})


def _probability(default: float, help: str):
    return _parameter(default, help, 0.0, 1.0)


class _Bounded:
    """Checks every parameter against its bounds and type when the object is made."""

    def __post_init__(self):
        for parameter in fields(self):
            if "help" not in parameter.metadata:
                continue
            value, kind = getattr(self, parameter.name), type(parameter.default)
            low, high = parameter.metadata["minimum"], parameter.metadata["maximum"]
            is_number = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
            if not is_number or value < low or (high is not None and value > high):
                bounds = f"at least {low}" if high is None else f"from {low} to {high}"
                number = "an integer" if kind is int else "a number"
                raise ValueError(f"{parameter.name}={value!r}: must be {number} {bounds}")

    def _check_order(self, smaller: str, larger: str) -> None:
        if getattr(self, smaller) > getattr(self, larger):
            raise ValueError(
                f"{smaller}={getattr(self, smaller)} is above {larger}={getattr(self, larger)}: lower the first or "
                "raise the second"
            )


@dataclass(frozen=True)
class SceneParameters(_Bounded):
    """Parameters of the scenes."""

    image_size: int = _parameter(96, "pixels per side of an image", 32, 2048)
    min_objects: int = _parameter(2, "fewest sprites per scene", 1)
    max_objects: int = _parameter(3, "most sprites per scene; their number is drawn uniformly", 1)
    min_sprite_fraction: float = _parameter(
        0.32, "shortest longer side of a sprite, as a fraction of the image's side", 0.05, 1.0
    )
    max_sprite_fraction: float = _parameter(
        0.46, "longest longer side of a sprite, as a fraction of the image's side", 0.05, 1.0
    )
    repeat_probability: float = _probability(0.15, "chance that a further sprite repeats one that is already there")
    mirror_probability: float = _probability(0.0, "chance that a sprite is flipped left to right")

    def __post_init__(self):
        super().__post_init__()
        self._check_order("min_objects", "max_objects")
        self._check_order("min_sprite_fraction", "max_sprite_fraction")


@dataclass(frozen=True)
class CaptionParameters(_Bounded):
    """Parameters of the captions' wording."""

    colour_probability: float = _probability(
        0.85, "chance that a known colour is said (always said where the noun alone would be ambiguous)"
    )
    relation_probability: float = _probability(0.65, "chance that positions or sizes are said beside the things")
    background_probability: float = _probability(0.3, "chance that the background is said")
    max_caption_words: int = _parameter(13, "longest caption, as long as naming everything in the image allows it", 1)


@dataclass(frozen=True)
class ConceptParameters(_Bounded):
    """The errors of the noisy concept extractor."""

    concepts_per_image: int = _parameter(
        8, "concepts per image, always exactly so many, like the best k of a real extractor", 1, 40
    )
    miss_rate: float = _probability(0.4, "chance that a thing in the image is missing from its concepts")
    lookalike_rate: float = _probability(
        0.5, "chance, per thing in the image, that a noun of its category that is not there is among the concepts"
    )


@dataclass(frozen=True)
class DemoCorpusParameters(_Bounded):
    """Parameters of a whole demo corpus; equal parameters give byte-identical files.

    The evaluation splits do not depend on `num_train`, and a smaller training split is the beginning of a larger one.
    """

    seed: int = _parameter(0, "seed of all random choices")
    num_train: int = _parameter(8000, "training scenes", 1)
    num_validation: int = _parameter(200, "validation scenes")
    num_test: int = _parameter(200, "test scenes")
    num_compositional_test: int = _parameter(
        200, "test scenes with pairs of things that no other split shows together"
    )
    captions_per_training_scene: int = _parameter(
        3, "different captions per training image; evaluation images have one", 1
    )
    held_out_pair_fraction: float = _parameter(
        0.1, "share of all pairs of nouns that only the compositional split shows together", 0.0, 0.5
    )
    scene: SceneParameters = field(default_factory=SceneParameters)
    caption: CaptionParameters = field(default_factory=CaptionParameters)
    concept: ConceptParameters = field(default_factory=ConceptParameters)

    @classmethod
    def options(cls) -> dict[str, Field]:
        """All parameters by name, those of the three groups included; `metadata["help"]` says what each means."""
        own = {f.name: f for f in fields(cls) if f.name not in _GROUPS}
        return own | {f.name: f for kind in cls._group_classes().values() for f in fields(kind)}

    @classmethod
    def from_options(cls, **values: int | float) -> "DemoCorpusParameters":
        """From parameters of this class and its groups mixed: `from_options(seed=1, image_size=64, miss_rate=0.2)`.

        Raises:
            TypeError: for an unknown name.
            ValueError: for a value out of bounds.
        """
        if unknown := sorted(values.keys() - cls.options().keys()):
            raise TypeError(
                f"The demo corpus has no parameter {', '.join(unknown)}; it has {', '.join(cls.options())}"
            )
        groups = {}
        for group, kind in cls._group_classes().items():
            groups[group] = kind(**{f.name: values.pop(f.name) for f in fields(kind) if f.name in values})
        return cls(**values, **groups)

    @classmethod
    def _group_classes(cls) -> dict[str, type]:
        return {f.name: f.default_factory for f in fields(cls) if f.default_factory is not MISSING}
