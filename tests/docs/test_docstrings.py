"""The style of docstrings, as CONTRIBUTING describes it."""

import re
from pathlib import Path

import pytest
from prose import Docstring, read_docstrings, words


ROOT = Path(__file__).parents[2]
DOCSTRINGS = [
    docstring
    for folder in ("src/vicha_hf", "examples")
    for file in sorted((ROOT / folder).rglob("*.py"))
    for docstring in read_docstrings(file)
]
LONGEST_SENTENCE = 30
# A question word announces what the reader wants to be told; other words of the list begin a subordinate clause.
NO_OPENINGS = {
    *("What", "How", "Where", "Why", "Which", "Who", "When"),
    *("If", "That", "As", "In", "On", "For", "To", "With", "By", "Once", "This", "These", "Here"),
}


def test_docstrings_are_found():
    assert len(DOCSTRINGS) > 900


def test_a_docstring_opens_with_a_noun_or_a_verb():
    openings = [
        docstring.place for docstring in DOCSTRINGS if re.split(r"[\s:,.]", docstring.text.strip())[0] in NO_OPENINGS
    ]
    assert not openings


def test_sentences_of_docstrings_are_short():
    long = [
        f"{docstring.place}: {words(sentence)} words: {sentence}"
        for docstring in DOCSTRINGS
        for passage in docstring.passages()
        for sentence in passage.sentences()
        if words(sentence) > LONGEST_SENTENCE
    ]
    assert not long


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Scores pairs. Higher is better.", [2, 3]),
        ("Scores pairs.\n\nArgs:\n    images: [B, 3], see `the other one`.\n    k: candidates.", [2, 5, 2]),
        ("Scores pairs of\nimages.\n\n```python\n>>> one two three four\n```", [4]),
    ],
)
def test_sentences_are_counted(text, count):
    passages = Docstring("here", text).passages()
    assert [words(sentence) for passage in passages for sentence in passage.sentences()] == count
