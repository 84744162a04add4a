"""
Answers of visual question answering as the official tool normalises them before it compares.

Reference:
    [1] Antol et al., VQA, arXiv 1505.00468, section 2; every departure of the official evaluation from what its rules
        say (listed at the functions) is kept: results must be comparable.
"""

import re


_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
# The official expression is meant to spare periods after digits too, but does not.
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32
_ARTICLES = frozenset(("a", "an", "the"))
_NUMBERS = {"none": "0"} | {
    word: str(number)
    for number, word in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    )
}
_CONTRACTED = [
    "ain't",
    "aren't",
    "can't",
    "could've",
    "couldn't",
    "didn't",
    "doesn't",
    "don't",
    "hadn't",
    "hasn't",
    "haven't",
    "he'd",
    "he's",
    "how'd",
    "how'll",
    "how's",
    "isn't",
    "it'd",
    "it'll",
    "ma'am",
    "mightn't",
    "might've",
    "mustn't",
    "must've",
    "needn't",
    "not've",
    "o'clock",
    "oughtn't",
    "shan't",
    "should've",
    "shouldn't",
    "somebody'll",
    "somebody's",
    "someone'd",
    "someone'll",
    "someone's",
    "something'd",
    "something'll",
    "that's",
    "there'd",
    "there're",
    "there's",
    "they'd",
    "they'll",
    "they're",
    "they've",
    "'twas",
    "wasn't",
    "we've",
    "weren't",
    "what'll",
    "what're",
    "what's",
    "what've",
    "when's",
    "where'd",
    "where's",
    "where've",
    "who'd",
    "who'll",
    "who's",
    "who've",
    "why'll",
    "why're",
    "why's",
    "won't",
    "would've",
    "wouldn't",
    "y'all",
    "you'd",
    "you'll",
    "you're",
    "you've",
    "couldn't've",
    "hadn't've",
    "he'd've",
    "it'd've",
    "mightn't've",
    "she'd've",
    "shouldn't've",
    "somebody'd've",
    "someone'd've",
    "something'd've",
    "there'd've",
    "they'd've",
    "we'd've",
    "who'd've",
    "wouldn't've",
    "you'd've",
    "y'all'll",
    "y'all'd've",
    "'ow's'at",
]
# Every form with one of its apostrophes forgotten. The official table has this one the wrong way round.
_CONTRACTIONS = {
    word[:position] + word[position + 1 :]: word
    for word in _CONTRACTED
    for position, character in enumerate(word)
    if character == "'"
} | {"somebody'd": "somebodyd"}


def normalize_punctuation(text: str) -> str:
    """
    Punctuation becomes a space. It becomes nothing where it stands beside a space, or anywhere in a text with a number
    like 1,000. Periods go unless a digit follows (the first 32 of them).
    """
    result = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if beside_space or _COMMA_IN_NUMBER.search(text) else " ")
    return _PERIOD.sub("", result, count=_MOST_PERIODS)


def normalize_words(text: str) -> str:
    """Lower case, number words up to ten as digits, no articles, apostrophes of contractions restored."""
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def one_line(answer: str) -> str:
    """Line breaks and tabs as spaces, no white space around."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


def normalize_answer(answer: str) -> str:
    """One line, with both normalisations."""
    return normalize_words(normalize_punctuation(one_line(answer)))
