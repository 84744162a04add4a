import random

import pytest
import text_cleaning_obvious as obvious

from vicha_hf.models.text_cleaning import clean_caption, clean_question, cleaning_steps, holds_words, is_blank


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('A Dog\'s life, (in) #3 "parts": one; two* ~ three?!', "a dogs life in 3 parts one two three"),
        ("black-and-white photo / sketch", "black and white photo sketch"),
        ("<person> meets <PERSON>", "person meets person"),
        ("  spaces \t\n everywhere  \n", "spaces everywhere"),
        ("a\tsingle tab stays", "a\tsingle tab stays"),
        ("100% & $5 [brackets] stay", "100% & $5 [brackets] stay"),
        (" ?! ", ""),
    ],
)
def test_caption(text, expected):
    assert clean_caption(text, max_words=30) == expected


def test_caption_is_cut_after_cleaning():
    assert clean_caption("one - two/three four five", max_words=3) == "one two three"


@pytest.mark.parametrize(
    ("text", "max_words", "expected"),
    [
        ("What's on the cat's left-hand side?  ", 30, "whats on the cats left hand side"),
        ("<person> stays a tag", 30, "<person> stays a tag"),
        ("  inner  spaces  count as words ", 5, "  inner  spaces"),
        ("a newline at the end stays?\n", 30, "a newline at the end stays\n"),
    ],
)
def test_question(text, max_words, expected):
    assert clean_question(text, max_words) == expected


@pytest.mark.parametrize("clean", [clean_caption, clean_question])
def test_no_words_left_is_refused(clean):
    with pytest.raises(ValueError, match="max_words=0"):
        clean("a dog", max_words=0)


ODD = [
    *"aB cD-/.,'!?\"()*#:;~ \t\n<>éİßΣσςΑΟ\u200b\x1c\x85\u3000\u0301",
    "😀",
    "  ",
    "word ",
    "<person>",
    "<PERSON>",
    "[SEP]",
]


@pytest.mark.parametrize("kind", ["caption", "question"])
def test_odd_strings_are_cleaned_as_by_the_obvious_way(kind):
    draw = random.Random(0)
    clean = {"caption": obvious.clean_caption, "question": obvious.clean_question}[kind]
    for _ in range(4000):
        text = "".join(draw.choice(ODD) for _ in range(draw.randrange(60)))
        max_words = draw.choice([None, 1, 2, 5, 30])
        assert cleaning_steps(kind, max_words).normalize_str(text) == clean(text, max_words), text


def test_every_letter_is_lowered_as_python_does():
    # Python 3.11 knows fewer letters than the library.
    letters = [chr(code) for code in range(0x10000) if chr(code).lower() != chr(code)]
    assert len(letters) > 1000
    assert [clean_caption(letter) for letter in letters] == [letter.lower() for letter in letters]


@pytest.mark.parametrize("kind", ["answer", "", None])
def test_an_unknown_cleaning_is_refused(kind):
    with pytest.raises(ValueError, match="choose one of caption, question"):
        cleaning_steps(kind)


@pytest.mark.parametrize("text", ["", " \t\n", "\u200b", "\ufeff\u2060", "\u0301", "\ufe0f", "\x00\x1c"])
def test_blank_texts(text):
    assert is_blank(text) and not holds_words(text)


def test_punctuation_is_visible_but_no_word():
    assert not is_blank("?!") and not holds_words(" ?! -/\u200b")
    assert holds_words("a") and holds_words("\u200b😀") and holds_words("&")
