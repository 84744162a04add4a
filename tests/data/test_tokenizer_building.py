"""A tokenizer made for a corpus, by the command and by a run that was given none."""

import json
import shutil
import subprocess
import sys

import pytest
from transformers import AutoTokenizer, BertTokenizer

from vicha_hf.cli import main as vicha_hf_command
from vicha_hf.data.tokenizer_building import MOST_SPLIT_WORDS, build_tokenizer, iterate_raw_texts


RECORDS = [
    {"image": "a.png", "caption": ["A blackbird, singing!", "the bird on a branch"], "concepts": ["yellow beak"]},
    {"image": "b.png", "question": "How many blackbirds?", "answer": ["two", "two birds"]},
    {"image": "c.png", "question": "Why?", "answers": [{"answer": "because"}]},
    {"images": ["a.png", "b.png"], "sentence": "One image has a tree", "label": "True"},
    "no object",
]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.json"
    path.write_text(json.dumps(RECORDS * 3))
    return path


def test_the_words_of_every_task_are_whole(corpus):
    tokenizer = build_tokenizer(iterate_raw_texts(str(corpus)))
    assert isinstance(tokenizer, BertTokenizer)
    assert tokenizer.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    for word in ("blackbird", "Blackbirds", "branch", "beak", "two", "because", "tree"):
        assert tokenizer.tokenize(word) == [word.lower()]
    assert "[UNK]" not in tokenizer.tokenize("zyzzyva 42 (new)?")
    assert tokenizer("a bird")["input_ids"][0] == tokenizer.cls_token_id
    assert tokenizer("a bird")["input_ids"][-1] == tokenizer.sep_token_id


def test_the_size_follows_the_corpus():
    few = build_tokenizer([f"word{number}" for number in range(50)] * 3)
    many_words = [f"{chr(97 + a)}{chr(97 + b)}{chr(97 + c)}x" for a in range(26) for b in range(26) for c in range(2)]
    many = build_tokenizer(many_words * 3)
    assert len(few) < len(many)
    split = sum(len(many.tokenize(word)) > 1 for word in many_words)
    assert split <= MOST_SPLIT_WORDS * len(many_words)
    with pytest.raises(ValueError, match="vocab_size=20 is not possible"):
        build_tokenizer(many_words, vocab_size=20)
    with pytest.raises(ValueError, match="no text"):
        build_tokenizer(["", "  "])


def test_the_command_gives_the_same_files_in_every_process(corpus, tmp_path):
    for name in ("first", "second"):
        command = [
            "-m",
            "vicha_hf.cli",
            "tokenizer",
            str(corpus),
            "--output",
            str(tmp_path / name),
            "--vocab-size",
            "150",
        ]
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
    first, second = (AutoTokenizer.from_pretrained(tmp_path / name).get_vocab() for name in ("first", "second"))
    assert first == second and len(first) == 150


def test_mistakes_of_the_command_are_one_line(corpus, tmp_path, capsys):
    assert vicha_hf_command(["tokenizer", str(tmp_path / "nowhere.json"), "--output", str(tmp_path / "out")]) == 1
    assert "nowhere.json" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    assert vicha_hf_command(["tokenizer", str(corpus), "--output", str(tmp_path / "full")]) == 1
    assert "other things" in capsys.readouterr().err
    (tmp_path / "model").mkdir()
    for name in ("tokenizer.json", "config.json"):
        (tmp_path / "model" / name).write_text("mine")
    assert vicha_hf_command(["tokenizer", str(corpus), "--output", str(tmp_path / "model")]) == 1
    assert "other things than a tokenizer, such as config.json" in capsys.readouterr().err
    assert (tmp_path / "model/tokenizer.json").read_text() == "mine"


def test_a_full_disk_is_one_line(corpus, small_disk, capsys):
    (small_disk / "filled").write_bytes(bytes(shutil.disk_usage(small_disk).free - 8192))
    assert vicha_hf_command(["tokenizer", str(corpus), "--output", str(small_disk / "out")]) == 1
    assert "out could not be written to" in capsys.readouterr().err.splitlines()[-1]


def test_records_that_cannot_be_read_are_told(corpus, tmp_path, capsys):
    command = ["tokenizer", str(corpus), "--output", str(tmp_path / "out")]
    for _ in range(2):
        assert vicha_hf_command(command) == 0
        assert "record 4: not an object" in capsys.readouterr().out
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"caption": "a dog"},\n{"caption": "a cat"},\n')
    assert vicha_hf_command(["tokenizer", str(lines), "--output", str(tmp_path / "none")]) == 1
    assert "record 0 (line 1): not readable as JSON (a comma behind the record" in capsys.readouterr().err
