import pytest

from vicha_hf.data.text_cleaning import clean_caption, clean_question


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
