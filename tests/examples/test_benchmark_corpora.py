"""The corpus of drawings, and the recall of corpora of several sizes, from stand-ins for what is downloaded and trained."""

import io
import json
import subprocess
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from vicha_hf.data.annotations import read_image_text_records
from vicha_hf.whole_files import MADE_BY, OutputFolderError


COLUMNS = ["hexcode", "group", "subgroups", "annotation", "tags", "openmoji_tags", "skintone"]
ROWS = [
    ["1F34E", "food-drink", "food-fruit", "red apple", "fruit, red, diet, health", "teacher", ""],
    ["1F40B", "animals-nature", "animal-marine", "whale", "beach, ocean, whale", "sea, big", ""],
    ["1F989", "animals-nature", "animal-bird", "owl", "bird, wise, night", "", ""],
    ["1F69C", "travel-places", "transport-ground", "tractor", "vehicle, farm", "field", ""],
    ["1F3E0", "travel-places", "place-building", "house", "building, home", "garden, family", ""],
    # Left out: a person, an hour, another tone, too few words, and a drawing that is not there.
    ["1F474", "people-body", "person", "old man", "adult, bald, wise", "", ""],
    ["1F550", "travel-places", "time", "one o'clock", "hour, clock, noon", "", ""],
    ["1F34F", "food-drink", "food-fruit", "green apple", "fruit, diet, health", "", "1"],
    ["1F68C", "travel-places", "transport-ground", "bus", "bus", "", ""],
    ["FFFFF", "objects", "tool", "nothing", "hammer, nail, wood", "", ""],
]


@pytest.fixture
def archive(tmp_path):
    table = "\n".join(",".join(f'"{value}"' for value in row) for row in [COLUMNS, *ROWS]).encode()
    with tarfile.open(tmp_path / "openmoji.tgz", "w:gz") as package:
        member = tarfile.TarInfo("package/data/openmoji.csv")
        member.size = len(table)
        package.addfile(member, io.BytesIO(table))
    return tmp_path / "openmoji.tgz"


def test_the_corpus_of_drawings(archive, script, tmp_path, capsys):
    main = script("benchmarks/own_drawings")
    splits = {"train": 2, "validation": 1, "test": 2}
    options = [f"--{name}={count}" for name, count in splits.items()]
    main([str(archive), str(tmp_path / "one"), *options])
    assert "by the words of the concepts alone R@1 is" in capsys.readouterr().out
    seen, words = [], {row[3]: row[4].split(", ") + row[5].split(", ") for row in ROWS}
    for split, count in splits.items():
        records = list(read_image_text_records(tmp_path / "one" / f"{split}.json"))
        assert len(records) == count
        for record in records:
            (name,) = [name for name in words if name in record.captions[0]]
            seen.append(name)
            assert record.concepts and len(record.captions) == (2 if split == "train" else 1)
            with Image.open(Path(record.image)) as image:
                assert image.size == (128, 128) and len(set(image.convert("RGB").get_flattened_data())) > 2
    assert sorted(seen) == sorted(row[3] for row in ROWS[:5])
    main([str(archive), str(tmp_path / "two"), *options])
    assert (tmp_path / "one/test.json").read_bytes() == (tmp_path / "two/test.json").read_bytes()
    with pytest.raises(SystemExit):
        main([str(archive), str(tmp_path / "three"), "--test=9"])
    assert not (tmp_path / "three").exists()
    (tmp_path / "two/test.json").write_text("mine")
    with pytest.raises(OutputFolderError, match="is there already"):
        main([str(archive), str(tmp_path / "two"), *options])
    assert (tmp_path / "two/test.json").read_text() == "mine"
    assert "there are 5 drawings in all" in capsys.readouterr().err


def test_the_corpus_of_icons(script, tmp_path):
    """Variants, second icons of one first word and icons of one tag are left out; no caption tells a colour."""
    icons = [
        # name, the icon that it is a variant of, aliases, tags, deprecated
        ("home", "home", ["house"], ["Places", "Home Automation"], False),
        ("home-outline", "home", ["house-outline"], ["Places"], False),
        ("home-city", "home-city", ["house-city"], ["Places"], False),
        ("abacus", "abacus", [], ["Math"], False),
        ("web", "web", ["language", "internet"], [], False),
        ("old", "old", ["ancient", "aged"], [], True),
        ("pig", "pig", [], ["Animal", "Food / Drink"], False),
    ]
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><path d="M4,4H20V20H4Z"/></svg>'
    files = {f"package/svg/{name}.svg": svg for name, *_ in icons}
    files["package/meta.json"] = json.dumps(
        [
            {"id": name, "baseIconId": base, "name": name, "aliases": aliases, "tags": tags, "deprecated": deprecated}
            for name, base, aliases, tags, deprecated in icons
        ]
    )
    with tarfile.open(tmp_path / "svg.tgz", "w:gz") as package:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            package.addfile(member, io.BytesIO(text.encode()))
    module = script("benchmarks/own_drawings").__globals__
    drawings = module["read_drawings"](tmp_path / "svg.tgz")
    assert {drawing.name: drawing.tags for drawing in drawings} == {
        "home": ("places", "house"),
        "web": ("language", "internet"),
        "pig": ("animal", "food", "drink"),
    }
    assert drawings[0].image.getpixel((64, 64)) == (0, 0, 0) and drawings[0].image.getpixel((2, 2)) == (255, 255, 255)
    assert not any("colour" in phrase for drawing in drawings for phrase in drawing.phrases)


def test_corpus_sizes(script, tmp_path, monkeypatch, capsys):
    main = script("benchmarks/corpus_sizes")
    commands = []

    def demo(command, check):
        commands.append(command)
        folder = Path(command[command.index("--output_dir") + 1])
        folder.mkdir(parents=True)
        size = float(folder.name)
        figures = {f"r1_{way}{stage}": size / 10 for way in ("i2t", "t2i") for stage in ("", "_itc_only")}
        without = {"conditions": {"test_without_concepts": dict.fromkeys(figures, 1.0)}}
        (folder / "metrics.json").write_text(json.dumps({**figures, "chance_r1": 0.5, **without}))

    monkeypatch.setattr(subprocess, "run", demo)
    options = ["--sizes", "20", "40", "--steps", "3", "--output_dir", str(tmp_path / "runs")]
    plot = tmp_path / "sizes.svg"
    rows = main([*options, "--json", str(tmp_path / "sizes.json"), "--plot", str(plot)])
    assert "re-ranked, with concepts" in plot.read_text()
    assert [row["similarity_i2t"] for row in rows] == [2.0, 4.0]
    assert json.loads((tmp_path / "sizes.json").read_text()) == {"benchmark": "corpus_sizes", "rows": rows}
    assert MADE_BY in plot.read_text()
    assert "    20: 2.0 / 2.0; 0.5; 2.0 / 2.0; 1.0 / 1.0" in capsys.readouterr().out
    assert "num_train=40" in commands[1] and commands[1][commands[1].index("--max_steps") + 1] == "3"
