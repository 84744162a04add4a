"""Captions and questions as the published systems read them: lower case, little punctuation, a limit of words.

ViCHA, SIMLA and ALBEF clean texts in the same way; models that were trained on cleaned texts must be given cleaned texts.
The rules are steps of the `tokenizers` library, so a saved tokenizer holds them.
"""

import unicodedata
from functools import cache
from typing import Literal

from tokenizers import Regex, normalizers


TextCleaning = Literal["caption", "question"]
TEXT_CLEANINGS: tuple[str, ...] = ("caption", "question")
# Words kept of a text (ALBEF, arXiv 2107.07651, code: `max_words`).
MAX_WORDS = 30

_REMOVED = ",.'!?\"()*#:;~"
_SPACED = "-/"
# Letters with case, and what may stand between two of them inside a word.
_CASED = r"[\p{Lu}\p{Ll}\p{Lt}]"
_BETWEEN = r"[\p{Mn}\p{Me}\p{Cf}\p{Lm}\p{Sk}'.:\u00b7\u2018\u2019\u2024\u2027]"
_WHITESPACE = r"[\s\x1c-\x1f]"


@cache
def cleaning_steps(kind: TextCleaning, max_words: int | None = MAX_WORDS) -> normalizers.Sequence:
    r"""
    The rules as one normaliser.

    "caption": lower case, the characters `, . ' ! ? " ( ) * # : ; ~` removed, `-` and `/` as spaces, the anonymised name
    `<person>` as a word, runs of white space as one space. "question": lower case and the characters alone; two spaces
    in a row count as an empty word between them.

    Args:
        kind: "caption" or "question".
        max_words: words (separated by spaces) that are kept, at least 1; None keeps all.

    Raises:
        ValueError: an unknown kind, or `max_words` below 1.
    """
    if kind not in TEXT_CLEANINGS:
        raise ValueError(f"text_cleaning={kind!r} is not known: choose one of {', '.join(TEXT_CLEANINGS)}, or None")
    if max_words is not None and (isinstance(max_words, bool) or not isinstance(max_words, int) or max_words < 1):
        raise ValueError(f"max_words={max_words!r} must be an int of at least 1, or None for all words")
    steps = [
        # The library lowers letter by letter; Greek has another small sigma at the end of a word.
        normalizers.Replace(Regex(rf"{_CASED}{_BETWEEN}*\K\u03a3(?!{_BETWEEN}*{_CASED})"), "\u03c2"),
        normalizers.Lowercase(),
        normalizers.Replace(Regex(f"[{_REMOVED}]+"), ""),
        normalizers.Replace(Regex(f"[{_SPACED}]"), " "),
    ]
    if kind == "caption":
        steps += [
            normalizers.Replace("<person>", "person"),
            normalizers.Replace(Regex(_WHITESPACE + "{2,}"), " "),
            normalizers.Replace(Regex(r"\n+\z"), ""),
            normalizers.Replace(Regex(r"\A +"), ""),
        ]
    steps.append(normalizers.Replace(Regex(r" +\z"), ""))
    if max_words is not None:
        steps.append(normalizers.Replace(Regex(rf"\A(?:[^ ]* ){{{max_words - 1}}}[^ ]*\K [\s\S]*"), ""))
    return normalizers.Sequence(steps)


def clean_caption(text: str, max_words: int | None = MAX_WORDS) -> str:
    """A caption after [`cleaning_steps`]; "" where nothing but punctuation was there."""
    return cleaning_steps("caption", max_words).normalize_str(text)


def clean_question(text: str, max_words: int | None = MAX_WORDS) -> str:
    """A question after [`cleaning_steps`]."""
    return cleaning_steps("question", max_words).normalize_str(text)


def is_blank(text: str) -> bool:
    """
    Whether nothing is left of a text for a tokenizer: white space, zero-width and control characters, and marks
    without a letter only.
    """
    return all(unicodedata.category(character)[0] in "ZCM" for character in text)


def holds_words(text: str) -> bool:
    """Whether something is left of a text after cleaning."""
    return not is_blank("".join(character for character in text if character not in _REMOVED + _SPACED))


__all__ = [
    "MAX_WORDS",
    "TEXT_CLEANINGS",
    "TextCleaning",
    "clean_caption",
    "clean_question",
    "cleaning_steps",
    "holds_words",
    "is_blank",
]
