"""Scenes of easy-VQA's shapes and of photographs, from stand-ins for the packages, and the corpora that time to quality takes."""

import sys
from argparse import Namespace
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image, ImageDraw
from transformers import AutoTokenizer

from vicha_hf.data.annotations import read_image_text_records


NAMES = {
    "animals/birds/owl": "An owl.",
    "animals/fox": "A red fox.",
    "food/pear": "A pear.",
    "hobbies/cello": "A cello.",
}
LEFT_OUT = {
    "animals/cartoon/bear": "A bear.",
    "food/corn": "Eat your corn!",
    "symbols/star": "A star.",
    "food/nuts/almond": None,
}
BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"
SIZES = ["--train=6", "--held_out=4"]


@pytest.fixture
def stamps(tmp_path):
    for number, (path, text) in enumerate({**NAMES, **LEFT_OUT}.items()):
        file = tmp_path / "stamps" / f"{path}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGBA", (60, 50))
        image.paste((25 * number, 40, 90, 255), (10, 20, 40, 40))
        image.save(file)
        if text is not None:
            file.with_suffix(".txt").write_text(f"{text}\nfr.utf8=Une chose.\n", encoding="utf-8")
    return tmp_path / "stamps"


@pytest.fixture
def easy_vqa(tmp_path, monkeypatch):
    """Four shapes, each in a training and in a test image, and an image whose colour no question tells."""
    shapes = [("red", "circle"), ("blue", "circle"), ("red", "triangle"), ("blue", "rectangle")]
    questions, paths = ([], [], []), {}
    for number, (colour, shape) in enumerate([*shapes, (None, "circle")]):
        image = Image.new("RGB", (64, 64), (240, 235, 230))
        ImageDraw.Draw(image).rectangle((20, 20, 39, 29), fill=colour or "black")
        paths[number] = str(tmp_path / f"{number}.png")
        image.save(paths[number])
        told = [
            (f"what color is the {shape}?", colour),
            ("what shape is present?", shape),
            ("is there a circle?", "no"),
        ]
        for question, answer in told:
            if answer is not None:
                for column, value in zip(questions, (question, answer, number), strict=True):
                    column.append(value)
    package = SimpleNamespace()
    for split in ("train", "test"):
        setattr(package, f"get_{split}_questions", lambda: questions)
        setattr(package, f"get_{split}_image_paths", lambda: paths)
    monkeypatch.setitem(sys.modules, "easy_vqa", package)
    return {f"{colour} {shape}" for colour, shape in shapes}


def check_corpus(folder, names):
    """Records are readable, captions name what is shown, held-out scenes differ, concepts are names."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    for split, count, num_captions in (("train", 6, 3), ("validation", 4, 1), ("test", 4, 1)):
        records = list(read_image_text_records(folder / f"{split}.json"))
        assert len(records) == count
        contents = Counter()
        for record in records:
            named = {frozenset(name for name in names if name in caption) for caption in record.captions}
            assert len(record.captions) == num_captions and len(named) == 1
            (shown,) = named
            assert len(shown) in (2, 3)
            contents[shown] += 1
            assert set(record.concepts) <= names and len(record.concepts) == len(set(record.concepts)) > 0
            assert tokenizer.unk_token_id not in tokenizer(list(record.captions) + list(record.concepts)).input_ids[0]
            with Image.open(Path(record.image)) as image:
                assert image.size == (96, 96)
                # The smallest thing is 31 x 16 pixels, at least.
                ground = max(count for count, _ in image.getcolors(96 * 96))
                assert 96 * 96 - ground >= 400 * len(shown)
        assert split == "train" or set(contents.values()) == {1}


def test_scenes_of_photographs(stamps, script, tmp_path, capsys):
    main = script("benchmarks/other_scenes")
    main(["photographs", str(tmp_path / "one"), "--stamps", str(stamps), *SIZES])
    assert "14 scenes of 4 things" in capsys.readouterr().out
    check_corpus(tmp_path / "one", {"owl", "red fox", "pear", "cello"})
    main(["photographs", str(tmp_path / "two"), "--stamps", str(stamps), *SIZES])
    assert (tmp_path / "one/train.json").read_bytes() == (tmp_path / "two/train.json").read_bytes()
    with pytest.raises(FileNotFoundError, match="holds no photographs with names: install the package tuxpaint"):
        main(["photographs", str(tmp_path / "three"), "--stamps", str(tmp_path / "nowhere"), *SIZES])
    # Other sizes would replace the scenes that are there.
    before = (tmp_path / "two/train.json").read_bytes()
    with pytest.raises(OSError, match="holds other things, or unfinished scenes"):
        main(["photographs", str(tmp_path / "two"), "--stamps", str(stamps), *SIZES, "--seed=1"])
    assert (tmp_path / "two/train.json").read_bytes() == before


def test_scenes_of_easy_vqa(easy_vqa, script, tmp_path, capsys):
    main = script("benchmarks/other_scenes")
    main(["easy-vqa", str(tmp_path / "shapes"), *SIZES])
    assert "14 scenes of 4 things" in capsys.readouterr().out
    check_corpus(tmp_path / "shapes", easy_vqa)
    # The shape is cut out, not the ground around it.
    cuts = [cut for thing in main.__globals__["easy_vqa_shapes"]() for cut in thing.train]
    assert {cut.size for cut in cuts} == {(20, 10)} and {cut.getchannel("A").getextrema() for cut in cuts} == {
        (255, 255)
    }


def test_time_to_quality_takes_each_kind_of_corpus(stamps, script, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = script("benchmarks/time_to_quality").__globals__
    for split, count in (("train", 6), ("validation", 4), ("test", 4)):
        monkeypatch.setitem(module["build_scenes"].__globals__["SIZES_OF_SPLITS"], split, count)
    folder = tmp_path / "scenes"
    named = Namespace(train=None, corpus=["photographs", f"stamps={stamps}"], corpus_dir=folder)
    corpus = module["find_corpus"](named)
    assert (corpus.train, corpus.test, corpus.tokenizer) == (
        folder / "train.json",
        folder / "test.json",
        folder / "tokenizer",
    )
    assert len(read_image_text_records(corpus.train)) == 6
    own = Namespace(train=corpus.train, test=corpus.test, tokenizer=corpus.tokenizer)
    assert module["find_corpus"](own) == corpus
    with pytest.raises(SystemExit) as stopped:
        module["main"](["--train", str(corpus.train)])
    assert stopped.value.code == 2 and "--train, --test and --tokenizer belong together" in capsys.readouterr().err
