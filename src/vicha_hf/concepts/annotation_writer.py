"""Annotation files as JSONL or Parquet, seen only when they are whole."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ..data.declared_roots import DeclaredRoot
from ..data.json_writing import json_line
from ..data.raw_records import RecordProblem, shorten
from ..data.stored_images import EmbeddedImage
from ..whole_files import whole_file, write_whole_lines


_ROWS_AT_A_TIME = 1000


@dataclass(frozen=True, slots=True)
class AnnotationRow:
    """
    A record to write.

    Attributes:
        fields: all of it but the image.
        image: its file is named relative to the annotation file; an image inside a dataset is stored in Parquet.
        where: the record, for messages.
    """

    fields: Mapping[str, object]
    image: str | EmbeddedImage
    where: str


def require_annotation_file(path: Path, records: Iterable) -> None:
    """
    Checks that records can be written to a file of this name, before hours are spent on them.

    Args:
        path: of the file.
        records: with `image` and `where`.

    Raises:
        ValueError: it is neither *.jsonl nor *.parquet, or is JSONL and an image lies inside a dataset.
    """
    if path.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"{path}: annotations are written as *.jsonl or *.parquet; choose such a name")
    if path.suffix == ".jsonl":
        for record in records:
            _require_own_file(record)


def write_annotations(path: Path, rows: Callable[[], Iterable[AnnotationRow]]) -> int:
    """
    Writes an annotation file; it appears when it is whole.

    Args:
        path: *.jsonl or *.parquet.
        rows: gives the records; for Parquet it is called twice, since a column has one type for all of them.

    Returns:
        The number of records.

    Raises:
        ValueError: another suffix, an image inside a dataset for JSONL, or values that no column of Parquet holds together.
        OutputFolderError: writing failed.
    """
    require_annotation_file(path, ())
    root = DeclaredRoot(path)
    count = (_write_parquet if path.suffix == ".parquet" else _write_jsonl)(path, rows, root)
    root.write()
    return count


def _write_jsonl(path: Path, rows: Callable[[], Iterable[AnnotationRow]], root: DeclaredRoot) -> int:
    count = 0

    def lines() -> Iterator[str]:
        nonlocal count
        for row in rows():
            _require_own_file(row)
            root.add(row.image)
            count += 1
            yield json_line({"image": root.relative(row.image), **row.fields})

    write_whole_lines(path, lines())
    return count


def _require_own_file(record) -> None:
    if isinstance(record.image, EmbeddedImage):
        raise ValueError(
            f"{record.where}: its image is stored inside the dataset, which JSONL cannot hold; write *.parquet"
        )


def _write_parquet(path: Path, rows: Callable[[], Iterable[AnnotationRow]], root: DeclaredRoot) -> int:
    import pyarrow
    import pyarrow.parquet

    columns = _Columns()
    for row in rows():
        columns.see(row)
    count = 0
    schema = columns.schema()
    with whole_file(path) as unfinished, pyarrow.parquet.ParquetWriter(unfinished, schema) as writer:
        waiting = iter(rows())
        while chunk := list(islice(waiting, _ROWS_AT_A_TIME)):
            for row in chunk:
                if not isinstance(row.image, EmbeddedImage):
                    root.add(row.image)
            writer.write_table(columns.table(chunk, schema, root))
            count += len(chunk)
    return count


class _Columns:
    """The columns that hold all records: first each of them is seen, then they are made."""

    def __init__(self):
        import pyarrow

        self._embedded = False
        words, numbers = pyarrow.list_(pyarrow.string()), pyarrow.list_(pyarrow.float64())
        # A list without entries does not tell what it would hold.
        self._known = {"concepts": words, "concept_scores": numbers, "caption_scores": numbers}
        self._types: dict[str, object] = {}
        self._first: dict[str, object] = {}

    def see(self, row: AnnotationRow) -> None:
        """Takes a record into account. Raises `ValueError` for a value that is of another kind than earlier ones."""
        import pyarrow

        self._embedded |= isinstance(row.image, EmbeddedImage)
        for name, value in row.fields.items():
            try:
                # The array, and not its type alone: that of a number beyond 64 bits is told wrongly.
                kind = pyarrow.array([value], self._known.get(name)).type
                if pyarrow.types.is_struct(kind) and not kind.num_fields:
                    raise pyarrow.ArrowInvalid("an object without fields")
                self._types[name] = _unified(name, self._types.get(name), kind)
            except (pyarrow.ArrowException, OverflowError, UnicodeEncodeError) as error:
                raise ValueError(f"{row.where}: {self._problem(name, value).message}") from error
            if value is not None:
                self._first.setdefault(name, value)

    def _problem(self, name: str, value: object) -> RecordProblem:
        known = f" after {shorten(self._first[name])}" if name in self._first else ""
        return RecordProblem(
            name,
            "no value for one column of Parquet",
            "write all values alike, leave the field out, or write *.jsonl",
            f"got {shorten(value)}{known}",
        )

    def schema(self):
        """Types and names of all columns."""
        import pyarrow
        from datasets import Features, Image

        schema = pyarrow.schema([("image", pyarrow.string()), *self._types.items()])
        if not self._embedded:
            return schema
        # Other readers know the column for one of images by the note that this writes.
        return Features(Features.from_arrow_schema(schema) | {"image": Image()}).arrow_schema

    def table(self, rows: Sequence[AnnotationRow], schema, root: DeclaredRoot):
        """Records as rows of these columns."""
        import pyarrow

        arrays = [pyarrow.array([self._image(row.image, root) for row in rows], schema.field("image").type)]
        for name, kind in self._types.items():
            values = [_as_kind(row.fields.get(name), kind) for row in rows]
            arrays.append(pyarrow.array(values, kind).cast(schema.field(name).type))
        return pyarrow.Table.from_arrays(arrays, schema=schema)

    def _image(self, image: str | EmbeddedImage, root: DeclaredRoot) -> object:
        if isinstance(image, EmbeddedImage):
            return {"bytes": image.read_bytes(), "path": None}
        return {"bytes": None, "path": root.relative(image)} if self._embedded else root.relative(image)


def _unified(name: str, known, kind):
    """The type of a column that holds values of both types."""
    import pyarrow
    from pyarrow import types

    if known is None or known == kind:
        return kind
    pair = (known, kind)
    # What readers take in two forms has one in a column.
    if name == "caption" and any(map(types.is_string, pair)) and any(map(types.is_list, pair)):
        return pyarrow.list_(pyarrow.string())
    if name == "image_id" and any(map(types.is_string, pair)) and any(map(types.is_integer, pair)):
        return pyarrow.string()
    schemas = [pyarrow.schema([(name, one)]) for one in pair]
    return pyarrow.unify_schemas(schemas, promote_options="permissive").field(0).type


def _as_kind(value: object, kind) -> object:
    from pyarrow import types

    if types.is_list(kind) and isinstance(value, str):
        return [value]
    return str(value) if types.is_string(kind) and isinstance(value, int) else value
