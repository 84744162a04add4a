"""easy-VQA's files, from a stand-in of its package: the real data is read where its recipe is run."""

import sys
from types import SimpleNamespace

import pytest
from PIL import Image
from transformers import AutoTokenizer

from vicha_hf.cli import main
from vicha_hf.data.annotations_vqa import read_question_records
from vicha_hf.data.answer_list import read_answer_list
from vicha_hf.demo_corpus import easy_vqa
from vicha_hf.demo_corpus.easy_vqa import build_easy_vqa


ANSWERS = ["circle", "red", "yes", "no"]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Two dozen training images and six test images with three questions each."""
    for split, number in (("train", 24), ("test", 6)):
        (tmp_path / "package" / split).mkdir(parents=True)
        for index in range(number):
            Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / "package" / split / f"{index}.png")

    def questions(number):
        texts = ["what color is the shape?", "what is the red shape?", "is there a circle?"] * number
        numbers = [index for index in range(number) for _ in range(3)]
        return texts, ["red", "circle", "yes"] * number, numbers

    def paths(split, number):
        return {index: str(tmp_path / "package" / split / f"{index}.png") for index in reversed(range(number))}

    stand_in = SimpleNamespace(
        get_train_questions=lambda: questions(24),
        get_test_questions=lambda: questions(6),
        get_train_image_paths=lambda: paths("train", 24),
        get_test_image_paths=lambda: paths("test", 6),
        get_answers=lambda: ANSWERS,
    )
    monkeypatch.setitem(sys.modules, "easy_vqa", stand_in)
    monkeypatch.setattr(easy_vqa, "version", lambda name: "1.0")
    return stand_in


def test_files(package, tmp_path):
    built = build_easy_vqa(tmp_path / "built", progress=False)
    train, validation, test = (
        list(read_question_records(built.annotations(split), for_evaluation=True)) for split in easy_vqa.SPLITS
    )
    assert (len(train), len(validation), len(test)) == (66, 6, 18)
    assert {record.image[-10:] for record in validation} == {"rain/9.png", "ain/19.png"}
    assert len({record.question_id for record in (*train, *validation, *test)}) == 90
    assert [(r.question, r.answers, r.question_type) for r in test[:3]] == [
        ("what color is the shape?", ("red",) * 10, "colour"),
        ("what is the red shape?", ("circle",) * 10, "shape"),
        ("is there a circle?", ("yes",) * 10, "yes/no"),
    ]
    assert train[3].answers == ("red",) and train[3].load_image().getpixel((0, 0)) == (1, 0, 0)
    assert read_answer_list(built.answer_list) == ANSWERS
    tokenizer = AutoTokenizer.from_pretrained(built.tokenizer)
    assert tokenizer.tokenize("is there a circle?") == ["is", "there", "a", "circle", "?"]
    assert built.metadata["questions"] == {"train": 66, "validation": 6, "test": 18}


def test_built_once_and_never_over_something_else(package, tmp_path, capsys):
    built = build_easy_vqa(tmp_path / "built", progress=False)
    (built.root / "train.json").write_text("[]")
    assert build_easy_vqa(tmp_path / "built", progress=False).annotations("train").read_text() == "[]"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty and holds no easy-VQA"):
        build_easy_vqa(tmp_path / "other", progress=False)
    with pytest.raises(ValueError, match="split='dev'"):
        built.annotations("dev")
    assert main(["easy-vqa", "--no-progress", "--output", str(tmp_path / "by_command")]) == 0
    assert "test             18 questions      6 images" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["built", "by_command", "other", "package"]


def test_nothing_is_left_of_an_attempt_that_failed(package, tmp_path):
    package.get_answers = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        build_easy_vqa(tmp_path / "built", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["package"]


def test_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(ImportError, match=r"pip install vicha_hf\[easy-vqa\]"):
        build_easy_vqa(tmp_path / "built")
