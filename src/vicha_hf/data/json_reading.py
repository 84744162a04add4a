"""JSON of any origin: read whole or record by record, in bounded memory, with one clear line for what is no JSON."""

import codecs
import json
import os
import re
import stat
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NoReturn

import orjson

from .json_names import NameCheck, RepeatedName, loads_strictly, may_repeat_names
from .raw_records import AnnotationError, RecordProblem, printable, shorten


# The longest record of a JSON list or JSONL file, in characters. Real ones have thousands.
MAX_RECORD_LENGTH = 16 * 2**20
_CHUNK = 2**20
_WHITESPACE = " \t\n\r"
_ANY_WHITESPACE = re.compile(f"[{_WHITESPACE}]*")
# Places where a part of a list may end, looked at before its records are decoded one by one.
_MOST_CUTS = 8
# Characters around a mistake that are looked at to explain it.
_CONTEXT = 200
_LIST_REMEDY = "write a JSON list of records, or name a file with one record per line *.jsonl"
_CORRECT_IT = "correct the file there"


_ANNOTATION_FILE = "annotation file"


def require_regular_file(path: Path, kind: str = _ANNOTATION_FILE) -> None:
    """Raises `AnnotationError` for what is not there, and for what is no file, such as a pipe, which may never end."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        remedy = "check the path"
        if kind == _ANNOTATION_FILE:
            remedy += ' (a dataset of the Hub is given as {"path": "organisation/name", "split": "train"})'
        raise AnnotationError(f"{kind} not found: {printable(str(path))}; {remedy}") from error
    if not stat.S_ISREG(mode):
        found = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise AnnotationError(f"{path}: no file but {found}; give the {kind} as a file")


def read_text_file(path: str | os.PathLike, kind: str = _ANNOTATION_FILE) -> str:
    """
    The content of a UTF-8 file, without a byte-order mark.

    Raises:
        AnnotationError: not there, no file, or in another encoding.
    """
    path = Path(path)
    require_regular_file(path, kind)
    return _decoded(path.read_bytes(), path)


def lines_of(text: str) -> list[str]:
    """Lines as files have them: other marks that Unicode knows for the end of a line stand inside captions."""
    return text.removesuffix("\n").replace("\r\n", "\n").split("\n") if text else []


def read_json(path: str | os.PathLike, kind: type | tuple[type, ...], wanted: str) -> object:
    """
    The content of a JSON file whose top level is a `kind`.

    Args:
        path: of the file.
        kind: the types that the top level may have.
        wanted: what the file must hold, in words.

    Raises:
        AnnotationError: not there, no JSON, or something else at the top level.
    """
    path = Path(path)
    text = read_text_file(path)
    try:
        content = decode_json(text)
    except RepeatedName as error:
        raise AnnotationError(f"{path}: {error}") from error
    except ValueError as error:
        raise AnnotationError(f"{path}: not readable as JSON ({error}); it must hold {wanted}") from error
    if not isinstance(content, kind):
        raise AnnotationError(f"{path}: the top level is {shorten(content)}; it must hold {wanted}")
    return content


def decode_json(text: str) -> object:
    """Raises `ValueError`, and nothing else, for whatever is no usable JSON; `RepeatedName` where a name stands twice."""
    try:
        return loads_strictly(text)
    except RepeatedName:
        raise
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{_cause(error)}: line {error.lineno} column {error.colno}") from error
    # Python's own limit of digits.
    except ValueError as error:
        raise ValueError("a number of thousands of digits") from error


def decoding_problem(error: ValueError, field_name: str, cause: str, remedy: str, detail: str = "") -> RecordProblem:
    """The problem of a record whose JSON cannot be used: a name given twice, or, in the caller's words, no JSON."""
    if isinstance(error, RepeatedName):
        return error.problem
    return RecordProblem(field_name, cause, remedy, f"{detail}{': ' if detail else ''}{error}")


def _cause(error: json.JSONDecodeError) -> str:
    """Python's message, or the comma too many that it stumbled over: the commonest slip of files written by hand."""
    before = error.doc[max(0, error.pos - _CONTEXT) : error.pos].rstrip(_WHITESPACE)
    behind = error.doc[error.pos : error.pos + _CONTEXT].strip(_WHITESPACE)
    if error.msg == "Extra data":
        return "a comma behind the record" if behind == "," else error.msg
    # From Python 3.13 on, the place is that of the comma.
    closing = behind.removeprefix(",").lstrip(_WHITESPACE)[:1]
    if closing in ("]", "}") and (before.endswith(",") or behind.startswith(",")):
        return f"a comma before the closing {closing}"
    return error.msg


def iterate_json_list(path: Path) -> Iterator[tuple[object, RecordProblem | None]]:
    """
    (element, problem) of a JSON list, one after the other: memory holds one of them and a part of the text.

    Raises:
        AnnotationError: no JSON list of records; the message says at which line and column.
    """
    require_regular_file(path)
    with path.open("rb") as file:
        window = _TextWindow(file, path)
        start = window.skip_whitespace()
        if start != "[":
            _refuse_top_level(path, window)
        window.position += 1
        if window.skip_whitespace() == "]":
            window.position += 1
        else:
            while True:
                for value in window.decode_values():
                    yield value, None
                yield window.decode_value()
                separator = window.skip_whitespace()
                window.position += 1
                if separator == "]":
                    break
                if separator != ",":
                    raise window.problem("expected ',' or ']' after a record", -1, _LIST_REMEDY)
                window.skip_whitespace()
        if window.skip_whitespace():
            raise window.problem("extra data after the list", 0, _LIST_REMEDY)


def iterate_json_lines(path: Path) -> Iterator[tuple[int, object, RecordProblem | None]]:
    """
    (line number from 1, decoded value, problem) of every line that is not blank.

    Raises:
        AnnotationError: not there, no file, or in UTF-16.
    """
    require_regular_file(path)
    with path.open("rb") as file:
        _refuse_other_encodings(file.read(4), path)
        file.seek(0)
        number, remedy = 0, "write one JSON object per line"
        while line := file.readline(MAX_RECORD_LENGTH):
            number += 1
            if len(line) == MAX_RECORD_LENGTH and not line.endswith(b"\n"):
                _skip_line(file)
                detail = f"more than {MAX_RECORD_LENGTH} bytes"
                yield number, None, RecordProblem("", "a line that is too long", remedy, detail)
                continue
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            try:
                value = orjson.loads(line)
                if not may_repeat_names(line, value):
                    yield number, value, None
                    continue
            except orjson.JSONDecodeError:
                # What it refuses is decoded again, for the message, and because Python's decoder takes more: NaN, half characters.
                pass
            try:
                value, problem = decode_json(line.decode("utf-8")), None
            except UnicodeDecodeError as error:
                cause, detail = "not encoded as UTF-8", f"byte {line[error.start]:#04x}"
                value, problem = None, RecordProblem("", cause, "save the file as UTF-8", detail)
            except ValueError as error:
                value, problem = None, decoding_problem(error, "", "not readable as JSON", remedy)
            yield number, value, problem


def _skip_line(file) -> None:
    while part := file.readline(_CHUNK):
        if part.endswith(b"\n"):
            return


def _decoded(content: bytes, path: Path) -> str:
    _refuse_other_encodings(content[:4], path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise AnnotationError(_not_utf8(path, content[error.start], line)) from error


def _not_utf8(path: Path, byte: int, line: int) -> str:
    return (
        f"{path}: not readable as JSON or text: byte {byte:#04x} in line {line} is not UTF-8 (Latin-1?); save the file "
        "as UTF-8"
    )


def _refuse_other_encodings(start: bytes, path: Path) -> None:
    marks = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}
    name = next((name for mark, name in marks.items() if start.startswith(mark)), None)
    # Text without a mark has no zero bytes unless it is wide.
    if name is None and len(start) >= 2 and 0 in start[:2]:
        name = "UTF-16 or UTF-32"
    if name is not None:
        raise AnnotationError(f"{path}: not readable as JSON or text: encoded as {name}; save the file as UTF-8")


def _refuse_top_level(path: Path, window: "_TextWindow") -> NoReturn:
    text = window.rest(MAX_RECORD_LENGTH)
    if not text.strip():
        raise AnnotationError(f"{path}: not readable as JSON (the file is empty); {_LIST_REMEDY}")
    if text.startswith("version https://git-lfs"):
        raise AnnotationError(f"{path}: a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`")
    try:
        content = decode_json(text)
    except ValueError as error:
        # An object of an owner's own format may well be longer than what was looked at.
        if len(text) < MAX_RECORD_LENGTH or not text.startswith("{"):
            raise AnnotationError(f"{path}: not readable as JSON ({error}); {_LIST_REMEDY}") from error
        content = {}
    hint = ""
    if isinstance(content, dict):
        hint = " (files in their owners' own formats are converted by `vicha-hf data import`)"
    raise AnnotationError(
        f"{path}: the top level must be a list of records, got {shorten(content)}; write [record, record, ...]{hint}"
    )


def _repeats_names(text: str) -> bool:
    try:
        loads_strictly(text)
    # Whatever else there is to say, decoding one by one says it.
    except (ValueError, RecursionError):
        return True
    return False


class _TextWindow:
    """A part of a text file that moves forward."""

    def __init__(self, file, path: Path):
        start = file.read(4)
        _refuse_other_encodings(start, path)
        file.seek(len(codecs.BOM_UTF8) if start.startswith(codecs.BOM_UTF8) else 0)
        self._file = file
        self._path = path
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._names = NameCheck()
        self._json = json.JSONDecoder(object_pairs_hook=self._names)
        self._ended = False
        # Where the window begins: lines before it, and characters of its first line before it.
        self._line, self._column = 1, 0
        self.text = ""
        self.position = 0
        # Of a window that holds what cannot be decoded at once.
        self._one_by_one_until = 0

    def skip_whitespace(self) -> str:
        """Moves to the next character that is none, and returns it; "" at the end."""
        while True:
            while self.position < len(self.text):
                if self.text[self.position] not in _WHITESPACE:
                    return self.text[self.position]
                self.position += 1
            if not self._read_more(_CHUNK):
                return ""

    def decode_values(self) -> list[object]:
        """
        Values of the window that commas follow, many at once; the position moves behind the last of these commas. None
        where they have to be decoded one by one.
        """
        if self.position < self._one_by_one_until:
            return []
        # Whatever lies in front of a comma is a row of whole values if it can be decoded as such.
        for cut, comma in islice(self._ends_of_objects(), _MOST_CUTS):
            text = f"[{self.text[self.position : cut]}]"
            try:
                values = orjson.loads(text)
            except orjson.JSONDecodeError:
                continue
            if may_repeat_names(text, values) and _repeats_names(text):
                break
            self.position = comma + 1
            self.skip_whitespace()
            return values
        # Nothing of this window is searched again: that would take time by the square of its length.
        self._one_by_one_until = len(self.text)
        return []

    def _ends_of_objects(self) -> Iterator[tuple[int, int]]:
        """Ends of the objects that a comma follows, last first, each with the place of its comma."""
        end = len(self.text)
        while (end := self.text.rfind("}", self.position, end)) >= 0:
            comma = _ANY_WHITESPACE.match(self.text, end + 1).end()
            if self.text.startswith(",", comma):
                yield end + 1, comma

    def decode_value(self) -> tuple[object, RecordProblem | None]:
        """The value that begins at the position, which moves behind it, or why it cannot be used."""
        size = _CHUNK
        while True:
            self._names.found = None
            try:
                value, end = self._json.raw_decode(self.text, self.position)
                # A number at the end of the window may go on behind it.
                if end < len(self.text) or not self._read_more(_CHUNK):
                    self.position = end
                    repeated = self._names.found
                    return (value, None) if repeated is None else (None, repeated.problem)
            except json.JSONDecodeError as error:
                too_long = len(self.text) - self.position > MAX_RECORD_LENGTH
                if too_long or not self._read_more(size):
                    raise self.problem(_cause(error), error.pos - self.position) from error
                size *= 2
            except RecursionError as error:
                raise self.problem("nested too deeply") from error
            except ValueError as error:
                raise self.problem("a number of thousands of digits") from error

    def rest(self, limit: int) -> str:
        """The text behind the position, up to `limit` characters."""
        while len(self.text) - self.position < limit and self._read_more(_CHUNK):
            pass
        return self.text[self.position : self.position + limit]

    def problem(self, what: str, shift: int = 0, remedy: str = _CORRECT_IT) -> AnnotationError:
        """The error that says where in the file something is wrong."""
        before = self.text[: self.position + shift]
        line = self._line + before.count("\n")
        column = len(before) - before.rfind("\n") if "\n" in before else self._column + len(before) + 1
        return AnnotationError(f"{self._path}: not readable as JSON ({what}: line {line} column {column}); {remedy}")

    def _read_more(self, size: int) -> bool:
        if self._ended:
            return False
        content = self._file.read(size)
        try:
            more = self._decoder.decode(content, final=not content)
        except UnicodeDecodeError as error:
            line = self._line + self.text.count("\n") + content.count(b"\n", 0, error.start)
            raise AnnotationError(_not_utf8(self._path, error.object[error.start], line)) from error
        self._ended = not content
        if self.position > _CHUNK:
            dropped = self.text[: self.position]
            breaks = dropped.count("\n")
            self._column = len(dropped) - dropped.rfind("\n") - 1 if breaks else self._column + len(dropped)
            self._line += breaks
            self._one_by_one_until = max(0, self._one_by_one_until - self.position)
            self.text, self.position = self.text[self.position :], 0
        self.text += more
        return bool(more) or bool(content)
