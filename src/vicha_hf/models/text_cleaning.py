"""Captions and questions as the published systems read them: lower case, little punctuation, a limit of words.

ViCHA, SIMLA and ALBEF clean texts in the same way; models that were trained on cleaned texts must be given cleaned texts.
The rules are steps of the `tokenizers` library. A saved tokenizer holds them, so that a pipeline, or another program that
opens the tokenizer alone, reads texts as the processor does.
"""

import json
import re
import unicodedata
from functools import cache
from typing import Literal

from tokenizers import Regex, normalizers, processors
from transformers import PreTrainedTokenizerBase, TokenizersBackend


TextCleaning = Literal["caption", "question"]
TEXT_CLEANINGS: tuple[str, ...] = ("caption", "question")
# Words kept of a text (ALBEF, arXiv 2107.07651, code: `max_words`).
MAX_WORDS = 30

_REMOVED = ",.'!?\"()*#:;~"
_SPACED = "-/"
# Letters with case, and what may stand between two of them inside a word.
_CASED = r"[\p{Lu}\p{Ll}\p{Lt}]"
_BETWEEN = r"[\p{Mn}\p{Me}\p{Cf}\p{Lm}\p{Sk}'.:\u00b7\u2018\u2019\u2024\u2027]"
_NUMBER = re.compile(r"\d+")
_LETTER_OR_DIGIT = re.compile(r"[^\W_]")
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
    if _LETTER_OR_DIGIT.search(text):
        return False
    return all(unicodedata.category(character)[0] in "ZCM" for character in text)


def holds_words(text: str) -> bool:
    """Whether something is left of a text after cleaning."""
    if _LETTER_OR_DIGIT.search(text):
        return True
    return not is_blank("".join(character for character in text if character not in _REMOVED + _SPACED))


def reading_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    *,
    text_cleaning: TextCleaning | None,
    max_words: int | None = None,
    final_sep: bool = True,
    max_length: int,
) -> TokenizersBackend:
    """
    A copy of a tokenizer that reads texts as a model was trained on them; the same object where it does so already.

    Cleaned texts are words throughout: "[SEP]" in a text becomes letters. Without cleaning it stays the special token.

    Args:
        tokenizer: a BERT-like fast tokenizer, or what this function made of one.
        text_cleaning: which of [`cleaning_steps`] go before the tokenizer's own normaliser; None for none.
        max_words: words that the cleaning keeps.
        final_sep: whether texts end with [SEP].
        max_length: tokens kept of a text where the caller asks for truncation, special tokens included.

    Raises:
        TypeError: a tokenizer without a `tokenizers` backend.
        ValueError: a tokenizer without [CLS] or [SEP], an unknown `text_cleaning`.
    """
    if not isinstance(tokenizer, TokenizersBackend):
        raise TypeError(
            f"the tokenizer must be a fast one (of the `tokenizers` library), got {type(tokenizer).__name__}"
        )
    steps = [] if text_cleaning is None else [cleaning_steps(text_cleaning, max_words)]
    copy = TokenizersBackend(
        tokenizer_object=tokenizer.backend_tokenizer,
        **tokenizer.special_tokens_map,
        model_max_length=max_length,
        # [CLS] must stay the first token: the models read it there.
        padding_side="right",
        truncation_side=tokenizer.truncation_side,
        clean_up_tokenization_spaces=tokenizer.clean_up_tokenization_spaces,
        split_special_tokens=text_cleaning is not None,
        model_input_names=list(tokenizer.model_input_names),
    )
    backend = copy.backend_tokenizer
    own = _own_normalizer(tokenizer)
    steps += [] if own is None else [own]
    backend.normalizer = normalizers.Sequence(steps) if len(steps) > 1 else steps[0] if steps else None
    backend.post_processor = _template(tokenizer, final_sep)
    return tokenizer if _serialized(copy) == _serialized(tokenizer) else copy


def _own_normalizer(tokenizer: TokenizersBackend) -> normalizers.Normalizer | None:
    """The normaliser of the tokenizer that a reading tokenizer was made of."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    state = json.loads(tokenizer.backend_tokenizer.to_str())["normalizer"]
    # The library flattens sequences inside sequences.
    steps = state["normalizers"] if state is not None and state["type"] == "Sequence" else []
    for kind in TEXT_CLEANINGS:
        cleaning = _steps_of(kind, None)
        if steps[: len(cleaning)] == cleaning:
            limit = _steps_of(kind, MAX_WORDS)[-1]
            start = len(cleaning)
            start += len(steps) > start and _limits_words(steps[start], limit)
            own = [normalizer[index] for index in range(start, len(steps))]
            return normalizers.Sequence(own) if len(own) > 1 else own[0] if own else None
    return normalizer


def _steps_of(kind: TextCleaning, max_words: int | None) -> list[dict]:
    return json.loads(cleaning_steps(kind, max_words).__getstate__())["normalizers"]


def _limits_words(step: dict, example: dict) -> bool:
    """Whether a step keeps a number of words, as an example with another number does."""
    return _NUMBER.sub("", json.dumps(step)) == _NUMBER.sub("", json.dumps(example))


def _template(tokenizer: TokenizersBackend, final_sep: bool) -> processors.TemplateProcessing:
    for name in ("cls_token", "sep_token"):
        if getattr(tokenizer, name) is None:
            raise ValueError(f"the tokenizer has no {name}; use a BERT-like tokenizer")
    cls, sep = tokenizer.cls_token, tokenizer.sep_token
    end = f" {sep}" if final_sep else ""
    return processors.TemplateProcessing(
        single=f"{cls} $A{end}",
        pair=f"{cls} $A {sep} $B:1{f' {sep}:1' if final_sep else ''}",
        special_tokens=[(cls, tokenizer.cls_token_id), (sep, tokenizer.sep_token_id)],
    )


def _serialized(tokenizer: TokenizersBackend) -> tuple:
    # The backend's own truncation and padding are those of its last call.
    state = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    options = (type(tokenizer), tokenizer.model_max_length, tokenizer.padding_side, tokenizer.split_special_tokens)
    return (json.dumps(state, sort_keys=True), *options)


__all__ = [
    "MAX_WORDS",
    "TEXT_CLEANINGS",
    "TextCleaning",
    "clean_caption",
    "clean_question",
    "cleaning_steps",
    "holds_words",
    "is_blank",
    "reading_tokenizer",
]
