"""Names that an object of JSON gives twice: every decoder keeps the last value, and loses the first without a word."""

import json
import re

from .raw_records import RecordProblem, shorten


# A quotation mark that closes a name, and its colon. One inside a text has a backslash before it.
_NAME_ENDS = {str: re.compile(r'"(?<!\\")[ \t\r\n]*:'), bytes: re.compile(rb'"(?<!\\")[ \t\r\n]*:')}


class RepeatedName(ValueError):
    """
    An object with a name that it gives twice.

    Args:
        name: the name.
        values: the first and the last value.
    """

    def __init__(self, name: str, values: tuple[object, object]):
        first, last = map(shorten, values)
        self.problem = RecordProblem(name, "given twice", "keep one of the two", f"{first}, then {last}")
        super().__init__(self.problem.message)


class NameCheck:
    """A decoder's `object_pairs_hook` that makes plain dicts, and remembers the first name that was given twice."""

    def __init__(self):
        self.found: RepeatedName | None = None

    def __call__(self, pairs: list[tuple[str, object]]) -> dict:
        content = dict(pairs)
        if len(content) < len(pairs) and self.found is None:
            seen: dict[str, object] = {}
            for name, value in pairs:
                if name in seen:
                    self.found = RepeatedName(name, (seen[name], value))
                    break
                seen[name] = value
        return content


def loads_strictly(text: str) -> object:
    """Decodes as `json.loads` does. Raises `RepeatedName` besides its errors."""
    check = NameCheck()
    value = json.loads(text, object_pairs_hook=check)
    if check.found is not None:
        raise check.found
    return value


def may_repeat_names(text: str | bytes, value: object) -> bool:
    """
    Whether an object in a text may give a name twice: the text then has more names than what was decoded from it.

    It takes a fraction of the time of decoding again with [`NameCheck`], which alone is sure: a text that begins with a
    colon looks like a name.

    Args:
        text: of JSON.
        value: what was decoded from it.
    """
    if type(value) is not dict and type(value) is not list:
        return False
    colon, brace = (":", "{") if isinstance(text, str) else (b":", b"{")
    try:
        flat = type(value) is dict and text.count(brace) == 1
        names = len(value) if flat else _num_names(value)
    # Deeper than Python goes.
    except RecursionError:
        return True
    # Every name has a colon, so there can be no fewer; mostly there are no others.
    return text.count(colon) != names and len(_NAME_ENDS[type(text)].findall(text)) != names


def _num_names(value: dict | list) -> int:
    """Names of all objects in a value; plain loops, for they go through every record of a corpus."""
    count, parts = 0, value
    if type(value) is dict:
        count, parts = len(value), value.values()
    for part in parts:
        if type(part) is dict or type(part) is list:
            count += _num_names(part)
    return count
