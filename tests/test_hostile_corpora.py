"""Every kind of broken image and record, through every command that reads a corpus."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from tiny_model_folder import write_model_folder

from vicha_hf.cli import main
from vicha_hf.data.image_files import open_image


def as_jpeg(image):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    return buffer.getvalue()


def bomb(side=60_000):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


PIXELS = np.random.default_rng(0).integers(0, 256, (48, 56, 3), dtype=np.uint8)
BASE = Image.fromarray(PIXELS)
TURNED = Image.Exif()
TURNED[0x0112] = 6
# Odd images that are images, with how they are saved, and their upright size.
ODD_IMAGES = {
    "cmyk.jpg": (BASE.convert("CMYK"), {}, (56, 48)),
    "deep.png": (Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257), {}, (56, 48)),
    "palette.png": (BASE.convert("P"), {}, (56, 48)),
    "alpha.png": (BASE.convert("RGBA"), {}, (56, 48)),
    "animated.gif": (BASE, {"save_all": True, "append_images": [BASE.rotate(180)]}, (56, 48)),
    "turned.jpg": (BASE, {"exif": TURNED}, (48, 56)),
    "pixel.png": (Image.new("RGB", (1, 1)), {}, (1, 1)),
    "mislabelled.jpg": (BASE, {"format": "PNG"}, (56, 48)),
}
JPEG = as_jpeg(BASE.resize((400, 300)))
# What is no usable image, with the cause that is counted.
BROKEN_IMAGES = {
    "truncated.jpg": (JPEG[: len(JPEG) // 2], "field 'image': truncated"),
    "empty.jpg": (b"", "field 'image': an empty file"),
    "page.jpg": (b"<html></html>", "field 'image': a web page, not an image"),
    "bomb.png": (bomb(), "field 'image': too many pixels"),
}
GOOD = {"image": "cmyk.jpg", "caption": "a dog on the grass", "concepts": ["dog"]}
# Fields that differ from a good record's, with the cause that is counted.
BAD_FIELDS = [
    ({"image": "../../etc/hostname"}, "field 'image': outside the image root"),
    ({"image": "none.png"}, "field 'image': file not found"),
    ({"caption": None}, "field 'caption': missing"),
    ({"caption": 7}, "field 'caption': wrong type"),
    ({"caption": " "}, "field 'caption': empty"),
    ({"caption": "a\0b"}, "field 'caption': a NUL character"),
    ({"caption": "\ud83e"}, "field 'caption': a lone surrogate, half a character"),
    ({"concepts": ["a", 3]}, "field 'concepts': wrong type"),
    ({"concepts": [""]}, "field 'concepts': an empty concept"),
]
BAD_LINES = [("[1]", "not an object"), ('{"image": ', "not readable as JSON"), ("[" * 5000, "not readable as JSON")]
# What is odd and yet a record.
ODD_FIELDS = [{"caption": "x" * 100_000}, {"concepts": [f"w{number}" for number in range(500)]}, {"concepts": None}]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Annotations with one of each kind, and a model to read them with."""
    root = tmp_path_factory.mktemp("hostile")
    write_model_folder(root / "model")
    for name, (image, options, _) in ODD_IMAGES.items():
        image.save(root / name, **options)
    for name, (content, _) in BROKEN_IMAGES.items():
        (root / name).write_bytes(content)
    records = [GOOD | {"image": name} for name in (*ODD_IMAGES, *BROKEN_IMAGES)]
    records += [GOOD | fields for fields in (*ODD_FIELDS, *(fields for fields, _ in BAD_FIELDS))]
    lines = [*map(json.dumps, records), *(line for line, _ in BAD_LINES)]
    (root / "hostile.jsonl").write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())
    return root


def test_odd_images_are_images(corpus):
    for name, (_, _, size) in ODD_IMAGES.items():
        image = open_image(str(corpus / name), "a.json, record 0")
        assert (image.mode, image.size) == ("RGB", size), name


COMMANDS = {
    "check": ["data", "check", "{file}", "--num-workers=0", "--no-progress"],
    "pack": ["data", "pack", "{file}", "--output={out}", "--num-workers=0", "--no-progress"],
    "embed": ["concepts", "embed", "--encoder={model}", "--corpus", "{file}", "--output={out}", "--no-progress"],
    "evaluate": ["evaluate", "{model}", "{file}", "--task=retrieval", "--device=cpu", "--output_dir={out}"],
    "index": ["index", "{file}", "{model}", "--output={out}", "--device=cpu"],
}
SKIPPING = {
    "check": [],
    "pack": ["--on-bad-record=skip"],
    "embed": ["--on-bad-record=skip"],
    "evaluate": ["--on_bad_record=skip"],
    "index": ["--on-bad-image=skip"],
}
RAISING = {"index": ["--on-bad-image=raise"]}
USABLE = len(ODD_IMAGES) + len(ODD_FIELDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_names_the_first_bad_record_or_counts_all(name, corpus, tmp_path, capsys, caplog):
    places = {"file": corpus / "hostile.jsonl", "model": corpus / "model", "out": tmp_path / "out"}
    command = [word.format(**places) for word in COMMANDS[name]]
    if name != "check":
        assert main([*command, *RAISING.get(name, [])]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        where, _, message = error.partition(", record ")
        assert where == f"vicha-hf {' '.join(command[: 1 + (name in ('pack', 'embed'))])}: {places['file']}"
        assert message[0].isdigit() and "(line " in message and "field '" in message and "; " in message
    assert main([*command, *SKIPPING[name]]) == (1 if name == "check" else 0)
    printed = capsys.readouterr()
    told = printed.out + printed.err + caplog.text
    # One who embeds images needs no captions, and no concepts.
    for _, cause in [*BAD_FIELDS, *BAD_LINES]:
        assert cause in told or (name == "embed" and ("concepts" in cause or "missing" in cause)), cause
    for broken, (_, cause) in BROKEN_IMAGES.items():
        assert cause in told or broken in told, cause
    if name == "evaluate":
        counted = json.loads((tmp_path / "out/metrics.json").read_text())["rejected_records"]
        assert sum(counted.values()) == len(BROKEN_IMAGES) + len(BAD_FIELDS) + len(BAD_LINES)
        assert len((tmp_path / "out/rejected_records.jsonl").read_text().splitlines()) == sum(counted.values())
    if name in ("check", "pack"):
        assert f"{USABLE} of {USABLE + len(BROKEN_IMAGES) + len(BAD_FIELDS) + len(BAD_LINES)} records usable" in told
