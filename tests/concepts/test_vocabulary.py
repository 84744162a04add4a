"""Nouns of captions, plurals, and vocabularies of one's own."""

import json

import pytest

from vicha_hf.concepts import build_vocabulary, read_vocabulary, write_vocabulary
from vicha_hf.concepts.plurals import singular_of
from vicha_hf.concepts.vocabulary import read_stop_words


def count(*captions, **options):
    return build_vocabulary(captions, **{"min_count": 1} | options)


def test_the_subject_of_a_gerund_is_a_noun():
    """Noun phrases would lose them."""
    found = count("a zebra drinking water", "An airplane flying in the sky.", "a man riding a wave")
    assert {"zebra", "water", "airplane", "sky", "man", "wave"} <= found.keys()


@pytest.mark.parametrize("end", ["", ".", " .", "!", "\n"])
def test_the_end_of_a_caption_does_not_matter(end):
    assert count(f"two people next to a fire hydrant{end}") == {"fire": 1, "hydrant": 1, "people": 1}


def test_plurals_are_merged_where_that_is_safe():
    found = count(
        "a zebra",
        "three zebras",
        "geese and a goose",
        "a leaf",
        "a tree with leaves",
        "two women and a child",
        "a woman",
        "men",
    )
    assert found == {"goose": 2, "leaf": 2, "zebra": 2, "child": 1, "man": 1, "tree": 1, "woman": 2}


def test_what_is_another_thing_than_its_singular_keeps_its_plural():
    found = count(
        "a man wearing glasses and jeans", "a glass of water", "a pair of scissors", "skis and tongs", "a bus"
    )
    assert {"glasses", "glass", "jeans", "scissors", "skis", "tongs", "bus"} <= found.keys()


@pytest.mark.parametrize(
    "plural, singulars, expected",
    [
        ("dogs", (), "dog"),
        ("horses", (), "horses"),
        ("horses", ("horse",), "horse"),
        ("buses", ("bus",), "bus"),
        ("cookies", (), "cookies"),
        ("cookies", ("cookie",), "cookie"),
        ("ponies", ("pony",), "pony"),
        ("knives", (), "knife"),
        ("cacti", ("cactus",), "cactus"),
        ("series", (), "series"),
        ("fire hydrants", (), "fire hydrant"),
        ("wine glasses", ("glass",), "wine glasses"),
    ],
)
def test_singulars(plural, singulars, expected):
    assert singular_of(plural, dict.fromkeys(singulars, 1)) == expected


def test_names_that_a_web_corpus_replaced_are_no_nouns():
    assert count("<PERSON> with <PERSON> at the beach") == {"beach": 1}


def test_what_is_no_word_is_left_out():
    assert count("a 747 jet & a t-shirt", "", "...", "x" * 100_000) == {"jet": 1, "t-shirt": 1}


def test_compounds():
    found = count("a fire hydrant", "fire hydrants", compounds=True)
    assert found == {"fire": 2, "fire hydrant": 2, "hydrant": 2}


def test_order_minimal_count_and_stop_words():
    captions = ["a dog and a cat"] * 3 + ["a photo of a bird"] * 3 + ["a tree"]
    assert list(build_vocabulary(captions).items()) == [("bird", 3), ("cat", 3), ("dog", 3), ("photo", 3)]
    assert list(build_vocabulary(captions, stop_words=["Photo"], min_count=3)) == ["bird", "cat", "dog"]


def test_two_processes_count_as_one():
    captions = [f"a {noun} near two {noun}s" for noun in ("dog", "cat", "car") for _ in range(500)]
    alone = build_vocabulary(iter(captions))
    together = build_vocabulary(iter(captions), num_processes=2)
    assert list(alone.items()) == list(together.items()) == [("car", 1000), ("cat", 1000), ("dog", 1000)]


def test_no_frequent_noun():
    with pytest.raises(ValueError, match="occurs at least min_count=2 times"):
        build_vocabulary(["a dog"])


def test_unknown_language_model():
    with pytest.raises(ValueError, match=r"no language model 'xx_none' \(installed: .*en_core_web_sm"):
        build_vocabulary(["a dog"], language_model="xx_none")


@pytest.mark.parametrize("suffix", ["json", "parquet"])
def test_what_is_written_is_read(tmp_path, suffix):
    path = tmp_path / f"vocabulary.{suffix}"
    write_vocabulary(path, {"dog": 3, "café": 1})
    assert list(read_vocabulary(path).items()) == [("dog", 3), ("café", 1)]
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_json_holds_words_and_counts(tmp_path):
    write_vocabulary(tmp_path / "vocabulary.json", {"dog": 3})
    assert json.loads((tmp_path / "vocabulary.json").read_text()) == {"dog": 3}


@pytest.mark.parametrize(
    "name, content, expected",
    [
        ("v.txt", "dog\nfire hydrant\n", {"dog": 0, "fire hydrant": 0}),
        ("v.txt", "\ufeffdog\r\ncat", {"dog": 0, "cat": 0}),
        ("v.json", '["dog", "cat"]', {"dog": 0, "cat": 0}),
        ("v.json", '[{"image": "a", "kwords": ["b", "a"]}, {"image": "b", "kwords": ["a"]}]', {"a": 2, "b": 1}),
        ("v.jsonl", '{"image": "a", "concepts": ["dog"]}\n{"image": "b"}\n', {"dog": 1}),
    ],
)
def test_vocabularies_of_ones_own(tmp_path, name, content, expected):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert read_vocabulary(tmp_path / name) == expected


@pytest.mark.parametrize(
    "name, content, problem",
    [
        ("v.txt", "dog\ncat\ndog\n", "line 3: the concept 'dog' stands already in line 1"),
        ("v.txt", "dog\n\ncat\n", "line 2: a blank concept"),
        ("v.txt", "dog\n42\n", "line 2: the concept '42' holds no letter"),
        ("v.txt", "dog\n" + "x" * 100_000, "line 2: a concept of 100000 characters"),
        ("v.txt", "", "an empty vocabulary"),
        ("v.json", '["dog", 42]', "entry 1: a concept is a text, got int 42"),
        ("v.json", '{"dog": 1, "dog": 2}', r"field 'dog': given twice \(int 1, then int 2\); keep one of the two"),
        ("v.json", '[{"concepts": ["dog"], "concepts": ["cat"]}]', "field 'concepts': given twice"),
        ("v.jsonl", '{"kwords": []}\n{"concepts": ["a"], "concepts": ["b"]}', "line 2: field 'concepts': given twice"),
        ("v.json", '{"dog": -1}', "the count of 'dog' must be a number from 0 on"),
        ("v.json", '["dog"', "not readable as JSON"),
        ("v.json", '"dog"', "a vocabulary is a list of words"),
        ("v.json", '[{"image": "a"}]', "no record has 'concepts' or 'kwords'"),
        ("v.json", '[{"kwords": ["dog"]}, {"concepts": "dog"}]', "record 1: field 'concepts': wrong type"),
        ("v.txt", "dog\nca\0t\n", "line 2: field 'concept': a NUL character"),
        ("v.txt", "dog\t5\ncat\t3\n", r"line 1: a tab .* 'dog\\t5'; write the word alone"),
        ("v.json", '["dog", "c\\u2028at"]', "entry 1: a tab or another control character"),
        ("v.csv", "concept,count\ndog,3\n", "a vocabulary is no table"),
        ("v.parquet", "dog", "not readable as Parquet"),
    ],
)
def test_broken_vocabularies_are_refused(tmp_path, name, content, problem):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=problem) as raised:
        read_vocabulary(tmp_path / name)
    assert str(tmp_path / name) in str(raised.value)
    assert len(str(raised.value)) < 500


def test_stop_words_are_lines(tmp_path):
    (tmp_path / "stop.txt").write_bytes(b"\xef\xbb\xbfPhoto\r\n\nfire hydrant\n")
    assert read_stop_words(tmp_path / "stop.txt") == ("Photo", "fire hydrant")
    (tmp_path / "stop.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(ValueError, match=r"stop\.txt: words stand in a text file in UTF-8"):
        read_stop_words(tmp_path / "stop.txt")


def test_a_vocabulary_is_a_list_of_stop_words(tmp_path):
    for name in ("v.json", "v.parquet"):
        write_vocabulary(tmp_path / name, {"photo": 3, "fire hydrant": 1})
        assert read_stop_words(tmp_path / name) == ("photo", "fire hydrant")


def test_a_null_leaves_the_published_concepts(tmp_path):
    (tmp_path / "v.json").write_text('[{"concepts": null, "kwords": ["dog", "cat", "dog"]}, {"kwords": ["dog"]}]')
    assert read_vocabulary(tmp_path / "v.json") == {"dog": 2, "cat": 1}
