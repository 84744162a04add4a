"""Records of any content as JSON that a file can hold."""

import json


_ENCODER = json.JSONEncoder(ensure_ascii=False)


def dump_json(value: object) -> str:
    """A value as JSON; half a character, which UTF-8 cannot hold, stays escaped."""
    text = _ENCODER.encode(value)
    return text if text.isascii() or _is_utf8(text) else json.dumps(value)


def json_line(record: object) -> str:
    """A record as a line of JSONL."""
    return dump_json(record) + "\n"


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
