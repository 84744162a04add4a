"""Annotations in text files: JSON lists, JSONL, CSV and TSV."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from .declared_roots import declared_root
from .json_reading import decode_json, decoding_problem, iterate_json_lines, iterate_json_list, read_text_file
from .raw_records import AnnotationError, RawRecord, RecordProblem, RecordSource


JSON_SUFFIXES = (".json",)
JSONL_SUFFIXES = (".jsonl", ".ndjson")
TABLE_DELIMITERS = {".csv": ",", ".tsv": "\t"}
TEXT_SUFFIXES = (*JSON_SUFFIXES, *JSONL_SUFFIXES, *TABLE_DELIMITERS)

# Names that tables of other tools use, in the order in which they are looked for.
_COLUMN_ALIASES = {
    "image": ("file_name", "filename", "filepath", "image_path", "path"),
    "caption": ("text", "title"),
}
# Fields that may hold several texts, written into a cell as a JSON list.
_LIST_FIELDS = ("caption", "concepts", "kwords", "answer", "answers", "images", "bbox", "boxes")
# Concepts are words, so that commas can stand between them.
_COMMA_FIELDS = ("concepts", "kwords")
_LONGEST_CELL = 2**24


def file_fingerprint(paths: Sequence[Path]) -> str:
    """Name, size and time of files, as a text."""
    states = [(str(path.resolve()), *_size_and_time(path)) for path in paths]
    return json.dumps(states)


def _size_and_time(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_size, state.st_mtime_ns


class TextFileSource(RecordSource):
    """
    A file of records, read as its suffix says.

    Args:
        path: of the file.
        columns: which field of the file holds which annotation field, where the names differ.
        image_root: folder that its relative image paths start from; None for the file's own.
    """

    def __init__(self, path: Path, columns: Mapping[str, str | Sequence[str]], image_root: Path | None = None):
        self.path = path
        self.columns = columns
        self.image_root = image_root

    def __str__(self) -> str:
        return str(self.path)

    def fingerprint(self) -> str:
        roots = [str(self.image_root), str(declared_root(self.path))]
        return json.dumps([file_fingerprint([self.path]), self.columns, roots])

    def size_in_bytes(self) -> int:
        return self.path.stat().st_size

    def iterate_records(self) -> Iterator[RawRecord]:
        suffix, name, folder = self.path.suffix.lower(), str(self.path), self.path.parent
        if suffix in JSONL_SUFFIXES:
            found = iterate_json_lines(self.path)
        elif suffix in TABLE_DELIMITERS:
            found = iterate_table(self.path, TABLE_DELIMITERS[suffix])
        else:
            found = ((None, *found) for found in iterate_json_list(self.path))
        allowed = declared_root(self.path)
        for index, (line, value, problem) in enumerate(found):
            if self.columns and isinstance(value, Mapping):
                value, problem = renamed_fields(value, self.columns)
            yield RawRecord(value, name, index, folder, line, problem, self.image_root, allowed)


def renamed_fields(
    value: Mapping, columns: Mapping[str, str | Sequence[str]]
) -> tuple[dict | None, RecordProblem | None]:
    """A record with the annotation's names for its fields, or the problem that one of them is missing."""
    renamed = dict(value)
    for field_name, column in columns.items():
        group = [column] if isinstance(column, str) else list(column)
        missing = next((name for name in group if name not in value), None)
        if missing is not None:
            remedy = "correct `columns` of the source"
            return None, RecordProblem(missing, "missing", remedy, f"the record has {sorted(map(str, value))}")
        renamed[field_name] = value[group[0]] if isinstance(column, str) else [value[name] for name in group]
    return renamed, None


def iterate_table(path: Path, delimiter: str) -> Iterator[tuple[int, dict | None, RecordProblem | None]]:
    """
    (line number from 1, fields, problem) of every row of a table whose first line names the columns.

    A cell of a field that may hold several texts is read as a JSON list where it begins with a bracket; concepts may
    also be separated by commas. Cells without content are left out.

    Raises:
        AnnotationError: no readable file, or no names of columns.
    """
    # Kept whole: quoted cells may span lines. Tables for training at scale are Parquet.
    lines = list(io.StringIO(read_text_file(path), newline=""))
    if not lines:
        raise AnnotationError(f"{path}: the file is empty; write a first line with the names of the columns")
    if delimiter == "," and "," not in lines[0]:
        delimiter = next((other for other in "\t;|" if other in lines[0]), delimiter)
    # In TSV a quotation mark is a character like any other.
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    csv.field_size_limit(_LONGEST_CELL)
    # Strict: a quotation mark that is not closed would swallow the rows behind it without a word.
    rows = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    names = _column_names(next(rows), path)
    while True:
        first_line = rows.line_num + 1
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            detail, remedy = str(error), "correct the row; inside quotation marks one is written twice"
            if rows.line_num == len(lines) and "unexpected end" in detail:
                detail = f"a quotation mark that is not closed before the file ends, at line {rows.line_num}"
            yield first_line, None, RecordProblem("", "not readable as a row", remedy, detail)
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(names):
            detail = f"{len(cells)} cells for {len(names)} columns"
            yield first_line, None, RecordProblem("", "not readable as a row", "give every column a cell", detail)
            continue
        yield first_line, *_row_fields(names, cells)


def _column_names(first_row: Sequence[str], path: Path) -> list[str]:
    """The fields that the columns of a table are for."""
    names = [name.strip() for name in first_row]
    for field_name, aliases in _COLUMN_ALIASES.items():
        if field_name not in names and (alias := next((alias for alias in aliases if alias in names), None)):
            names[names.index(alias)] = field_name
    if again := next((name for name in names if name and names.count(name) > 1), None):
        raise AnnotationError(
            f"{path}: the first line names the column {again!r} twice; give each its own name. Several captions of an image "
            'stand in one cell as a list, such as ["a dog", "a black dog"]'
        )
    if not {"image", "images"} & set(names):
        raise AnnotationError(
            f"{path}: the first line must name the columns, one of them 'image', got {names[:8]}; add such a line, or "
            "name the columns in `columns` of the source"
        )
    return names


def _row_fields(names: Sequence[str], cells: Sequence[str]) -> tuple[dict | None, RecordProblem | None]:
    fields = {}
    for name, cell in zip(names, cells, strict=True):
        try:
            value = _cell_value(name, cell)
        except ValueError as error:
            return None, decoding_problem(error, name, "not readable as a JSON list", "correct the cell")
        if value is not None:
            fields[name] = value
    return fields, None


def _cell_value(name: str, cell: str) -> object:
    text = cell.strip()
    if not text:
        return None
    if name in _LIST_FIELDS and text.startswith("["):
        return decode_json(text)
    if name in _COMMA_FIELDS:
        return [word.strip() for word in text.split(",") if word.strip()]
    return int(text) if name in ("width", "height") and text.isdecimal() else text
