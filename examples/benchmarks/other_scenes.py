"""Scenes like the demo corpus's, of other things: shapes of easy-VQA, or real photographs.

    pip install "vicha_hf[easy-vqa]"
    python examples/benchmarks/other_scenes.py easy-vqa outputs/easy_vqa_scenes

    apt-get install tuxpaint-stamps-default
    python examples/benchmarks/other_scenes.py photographs outputs/photograph_scenes

The photographs are cut-outs of animals, food and instruments with a name each, from Tux Paint's stamps (GPL-2), a package of Debian. The
shapes are cut out of easy-VQA's images (MIT); its questions tell their names. Nothing of them is part of this repository.

A scene shows two or three different things at random places. Its captions name all of them. Its eight concepts are noisy, as
those of the demo corpus are. A thing that is there is among them with a chance of 63 %, and the others are wrong. The folder gets
`train.json`, `validation.json`, `test.json` and `tokenizer/`.
"""

import argparse
import json
import random
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageChops

from vicha_hf.command_parser import CommandParser
from vicha_hf.demo_corpus.tokenizer import build_tokenizer, save_tokenizer
from vicha_hf.mistakes import run_script
from vicha_hf.whole_files import OutputFolderError, write_whole_file


STAMPS = Path("/usr/share/tuxpaint/stamps")
# Other folders hold drawings as well.
PHOTOGRAPHED = ("animals", "food", "hobbies")
DRAWN = ("cartoon", "toys")
NAME = re.compile(r"An? ([A-Za-z]+(?: [A-Za-z]+){0,2})\.")
SIDE, SIZES, LONGEST_FIRST_CUT = 96, (31, 44), 128
ATTEMPTS = 60
SEEN, NUM_CONCEPTS = 0.63, 8
BACKGROUNDS = ((250, 250, 250), (206, 206, 208), (250, 208, 222), (250, 242, 186), (184, 212, 246), (200, 234, 196))
# How far a pixel of easy-VQA is from the ground where it belongs to the shape.
DIFFERENT = 40
CAPTIONS = ("{all}", "an image of {all}", "there is {all}", "{relation}", "{relation}")


@dataclass
class Thing:
    """A name and its cut-outs, RGBA; those for training may differ from the held-out ones."""

    name: str
    train: list[Image.Image] = field(default_factory=list)
    held_out: list[Image.Image] = field(default_factory=list)

    @property
    def phrase(self) -> str:
        return f"{'an' if self.name[0] in 'aeiou' else 'a'} {self.name}"


@dataclass(frozen=True)
class Scenes:
    """The files in a folder."""

    root: Path

    @property
    def tokenizer(self) -> Path:
        return self.root / "tokenizer"

    def annotations(self, split: str) -> Path:
        return self.root / f"{split}.json"


def photographs(stamps: Path = STAMPS) -> list[Thing]:
    """Photographs with a short name, by name.

    Raises:
        FileNotFoundError: there are none in `stamps`.
    """
    things: dict[str, Thing] = {}
    for file in sorted(path for folder in PHOTOGRAPHED for path in (stamps / folder).rglob("*.png")):
        text = file.with_suffix(".txt")
        if not text.is_file() or set(DRAWN) & set(file.parts):
            continue
        match = NAME.fullmatch(text.read_text(encoding="utf-8").splitlines()[0].strip())
        if match:
            with Image.open(file) as image:
                cut = _cropped(image.convert("RGBA"))
            name = match[1].lower()
            things.setdefault(name, Thing(name)).train.append(cut)
    if not things:
        raise FileNotFoundError(
            f"{stamps} holds no photographs with names: install the package tuxpaint-stamps-default of Debian, or name the "
            "folder of its stamps"
        )
    for thing in things.values():
        thing.held_out = thing.train
    return list(things.values())


def easy_vqa_shapes() -> list[Thing]:
    """easy-VQA's shapes by colour and kind. Its test images are held out."""
    try:
        import easy_vqa
    except ImportError as error:
        raise ImportError("easy-VQA's images come with `pip install vicha_hf[easy-vqa]`.") from error
    things: dict[str, Thing] = {}
    for questions, paths, split in (
        (easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths(), "train"),
        (easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths(), "held_out"),
    ):
        told: dict[int, dict[str, str]] = defaultdict(dict)
        for question, answer, image in zip(*questions, strict=True):
            if question.startswith("what") and "color" in question:
                told[image]["colour"] = answer
            elif question.startswith("what"):
                told[image]["shape"] = answer
        for image, words in sorted(told.items()):
            if len(words) == 2:
                name = f"{words['colour']} {words['shape']}"
                with Image.open(paths[image]) as opened:
                    getattr(things.setdefault(name, Thing(name)), split).append(_shape_of(opened.convert("RGB")))
    return [thing for _, thing in sorted(things.items()) if thing.train and thing.held_out]


KINDS: dict[str, Callable[[Path], list[Thing]]] = {
    "easy-vqa": lambda stamps: easy_vqa_shapes(),
    "photographs": photographs,
}
SIZES_OF_SPLITS = {"train": 8000, "validation": 200, "test": 200}


def build_scenes(
    things: Sequence[Thing], root: Path, sizes: Mapping[str, int] = SIZES_OF_SPLITS, seed: int = 0
) -> Scenes:
    """
    Writes scenes of the things, or leaves those that an earlier call finished.

    Args:
        things: four at least.
        root: folder.
        sizes: number of scenes by split. Held-out scenes have one caption, and no two of them show the same things.
        seed: of everything that is drawn.

    Raises:
        OutputFolderError: the folder holds anything else.
    """
    scenes = Scenes(root)
    description = root / "scenes.json"
    made_of = {"things": sorted(thing.name for thing in things), "sizes": dict(sizes), "seed": seed}
    if description.is_file() and json.loads(description.read_text(encoding="utf-8")) == made_of:
        return scenes
    if root.exists() and any(root.iterdir()):
        raise OutputFolderError(f"{root} holds other things, or unfinished scenes: name another folder, or delete it.")
    rng, texts, number = random.Random(seed), [], 0
    for split, count in sizes.items():
        (root / "images" / split).mkdir(parents=True, exist_ok=True)
        records, known = [], set()
        while len(records) < count:
            shown = rng.sample(things, rng.choice((2, 3)))
            names = frozenset(thing.name for thing in shown)
            image, boxes = _painted(shown, split, rng)
            if image is None or (split != "train" and names in known):
                continue
            known.add(names)
            file = f"images/{split}/{len(records):05d}.png"
            image.save(root / file)
            captions = [_caption(shown, boxes, rng) for _ in range(3 if split == "train" else 1)]
            records.append(
                {"image": file, "image_id": number, "caption": captions, "concepts": _concepts(shown, things, rng)}
            )
            number += 1
        if split == "train":
            texts = [caption for record in records for caption in record["caption"]]
        write_whole_file(scenes.annotations(split), json.dumps(records) + "\n")
    words = sorted({word for thing in things for word in thing.name.split()})
    save_tokenizer(build_tokenizer(texts, words), scenes.tokenizer)
    write_whole_file(description, json.dumps(made_of) + "\n")
    return scenes


def _painted(shown: Sequence[Thing], split: str, rng: random.Random) -> tuple[Image.Image | None, list[tuple]]:
    """The things where they do not touch, and their boxes; no image where there was no room."""
    image = Image.new("RGB", (SIDE, SIDE), rng.choice(BACKGROUNDS))
    boxes: list[tuple[int, int, int, int]] = []
    for thing in shown:
        cut = rng.choice(thing.train if split == "train" else thing.held_out)
        scale = rng.randint(*SIZES) / max(cut.size)
        cut = cut.resize([max(4, round(scale * length)) for length in cut.size])
        for _ in range(ATTEMPTS):
            left, top = (rng.randint(0, SIDE - length) for length in cut.size)
            box = (left, top, left + cut.width, top + cut.height)
            if all(box[2] < x or right < left or box[3] < y or bottom < top for x, y, right, bottom in boxes):
                break
        else:
            return None, []
        boxes.append(box)
        image.paste(cut, box[:2], cut)
    return image, boxes


def _caption(shown: Sequence[Thing], boxes: Sequence[tuple[int, int, int, int]], rng: random.Random) -> str:
    order = rng.sample(range(len(shown)), len(shown))
    phrases = [shown[index].phrase for index in order]
    one, other = boxes[order[0]], boxes[order[1]]
    if one[2] < other[0] or other[2] < one[0]:
        where = "to the left of" if one[0] < other[0] else "to the right of"
    else:
        where = "above" if one[1] < other[1] else "below"
    relation = f"{phrases[0]} {where} {phrases[1]}" + (f", and {phrases[2]}" if len(phrases) == 3 else "")
    listed = f"{', '.join(phrases[:-1])} and {phrases[-1]}"
    return rng.choice(CAPTIONS).format(all=listed, relation=relation)


def _concepts(shown: Sequence[Thing], things: Sequence[Thing], rng: random.Random) -> list[str]:
    present = [thing.name for thing in shown]
    seen = [name for name in present if rng.random() < SEEN]
    absent = [thing.name for thing in things if thing.name not in present]
    found = seen + rng.sample(absent, min(len(absent), NUM_CONCEPTS - len(seen)))
    rng.shuffle(found)
    return found


def _cropped(cut: Image.Image) -> Image.Image:
    """The visible part of a cut-out, no larger than any scene needs."""
    cut = cut.crop(cut.getchannel("A").getbbox())
    cut.thumbnail((LONGEST_FIRST_CUT, LONGEST_FIRST_CUT))
    return cut


def _shape_of(image: Image.Image) -> Image.Image:
    ground = Image.new("RGB", image.size, image.getpixel((0, 0)))
    red, green, blue = ImageChops.difference(image, ground).split()
    distance = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    image.putalpha(distance.point(lambda value: 255 * (value > DIFFERENT)))
    return _cropped(image)


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("output", type=Path, help="folder of the corpus")
    parser.add_argument("--stamps", type=Path, default=STAMPS, help="of the photographs (default: %(default)s)")
    parser.add_argument("--train", type=int, default=SIZES_OF_SPLITS["train"], help="scenes (default: %(default)s)")
    parser.add_argument(
        "--held_out", type=int, default=SIZES_OF_SPLITS["test"], help="validation and test each (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    arguments = parser.parse_args(argv)
    things = KINDS[arguments.kind](arguments.stamps)
    sizes = {"train": arguments.train, "validation": arguments.held_out, "test": arguments.held_out}
    build_scenes(things, arguments.output, sizes, arguments.seed)
    print(f"{arguments.output}: {sum(sizes.values())} scenes of {len(things)} things")


if __name__ == "__main__":
    sys.exit(run_script(main))
