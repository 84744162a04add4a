"""Texts that say left or right, which are wrong of a mirrored image."""

import re


_SIDE = re.compile(r"\b(?:left|right)")


def names_side(text: str) -> bool:
    """Whether a text says left or right."""
    return _SIDE.search(text.lower()) is not None
