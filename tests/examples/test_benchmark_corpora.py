"""The corpus of drawings, and the recall of corpora of several sizes, from stand-ins for what is downloaded and trained."""

import io
import json
import subprocess
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from vicha_hf.data.annotations import read_image_text_records


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
    assert "there are 5 drawings in all" in capsys.readouterr().err


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
    assert json.loads((tmp_path / "sizes.json").read_text()) == rows
    assert "    20: 2.0 / 2.0; 0.5; 2.0 / 2.0; 1.0 / 1.0" in capsys.readouterr().out
    assert "num_train=40" in commands[1] and commands[1][commands[1].index("--max_steps") + 1] == "3"
