"""Captions and questions as the published systems read them: lower case, little punctuation, a limit of words.

ViCHA, SIMLA and ALBEF clean texts in the same way; models that were trained on cleaned texts must be given cleaned texts.
"""

import re


_PUNCTUATION = str.maketrans(dict.fromkeys(",.'!?\"()*#:;~", None) | dict.fromkeys("-/", " "))
_SIDE = re.compile(r"\b(?:left|right)")
_WHITESPACE_RUN = re.compile(r"\s{2,}")


def clean_caption(text: str, max_words: int | None) -> str:
    """
    A caption in lower case, without the characters `, . ' ! ? " ( ) * # : ; ~`, with `-` and `/` as spaces, the anonymised
    name `<person>` as a word, runs of white space as one space, and at most `max_words` words.

    Args:
        text: the caption.
        max_words: words (separated by spaces) that are kept, at least 1; None keeps all.

    Returns:
        The cleaned caption; "" when nothing but punctuation was there.

    Raises:
        ValueError: `max_words` is below 1.
    """
    text = _without_punctuation(text).replace("<person>", "person")
    text = _WHITESPACE_RUN.sub(" ", text).rstrip("\n").strip(" ")
    return _first_words(text, max_words)


def clean_question(text: str, max_words: int | None) -> str:
    """
    A question in lower case, without the characters that `clean_caption` removes, with `-` and `/` as spaces, and at most
    `max_words` words. White space inside is kept, so two spaces in a row count as an empty word between them.

    Args, returns and raises: as `clean_caption`.
    """
    return _first_words(_without_punctuation(text).rstrip(" "), max_words)


def names_side(text: str) -> bool:
    """Whether a text says left or right, so that it would be wrong of a mirrored image."""
    return _SIDE.search(text.lower()) is not None


def _without_punctuation(text: str) -> str:
    return text.lower().translate(_PUNCTUATION)


def _first_words(text: str, max_words: int | None) -> str:
    if max_words is None:
        return text
    if max_words < 1:
        raise ValueError(f"max_words={max_words} must be at least 1")
    return " ".join(text.split(" ")[:max_words])
