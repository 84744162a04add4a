"""The cleaning of captions and questions step by step in Python, to hold the fast way to."""

import re


_REMOVED = re.compile("[,.'!?\"()*#:;~]")


def clean_caption(text: str, max_words: int | None) -> str:
    """A caption in lower case without punctuation and with single spaces."""
    text = _REMOVED.sub("", text.lower()).replace("-", " ").replace("/", " ").replace("<person>", "person")
    text = re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")
    return text if max_words is None else " ".join(text.split(" ")[:max_words])


def clean_question(text: str, max_words: int | None) -> str:
    """A question in lower case without punctuation."""
    text = _REMOVED.sub("", text.lower()).replace("-", " ").replace("/", " ").rstrip(" ")
    return text if max_words is None else " ".join(text.split(" ")[:max_words])
