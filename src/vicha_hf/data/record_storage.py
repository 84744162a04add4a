"""Millions of small records as columns of Apache Arrow: in memory, or in a file that all processes map and share."""

import json
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa

from .json_writing import dump_json
from .raw_records import describe_place
from .stored_images import EmbeddedImage, ImageStore


_RecordType = TypeVar("_RecordType")

# Rows that are written, and found again, together.
ROWS_PER_BATCH = 16_384


class _Column(ABC):
    """Form that the values of one kind have in Arrow."""

    type: pa.DataType

    @abstractmethod
    def encode(self, value):
        """A value as Arrow takes it."""

    @abstractmethod
    def decode(self, value):
        """A value as the record holds it."""

    def encode_all(self, values: Sequence) -> pa.Array:
        """Values as an array."""
        return pa.array([self.encode(value) for value in values], self.type)


class _Plain(_Column):
    def __init__(self, type_: pa.DataType):
        self.type = type_

    def encode(self, value):
        return value

    def decode(self, value):
        return value

    def encode_all(self, values: Sequence) -> pa.Array:
        return pa.array(values, self.type)


class _Json(_Column):
    """Identifiers, which are numbers or texts, and whole records as they were written."""

    type = pa.string()

    def encode(self, value):
        return dump_json(value)

    def decode(self, value):
        return json.loads(value)


class _Tuple(_Column):
    def __init__(self, inner: _Column):
        self._inner = inner
        self.type = pa.list_(inner.type)

    def encode(self, value):
        return None if value is None else [self._inner.encode(one) for one in value]

    def decode(self, value):
        return None if value is None else tuple([self._inner.decode(one) for one in value])

    def encode_all(self, values: Sequence) -> pa.Array:
        if None in values:
            return super().encode_all(values)
        ends = np.cumsum([0, *map(len, values)], dtype=np.int32)
        flat = self._inner.encode_all([one for value in values for one in value])
        return pa.ListArray.from_arrays(ends, flat, type=self.type)


class _Place(_Column):
    """File and record: the name of the file is written once."""

    type = pa.struct([("source", pa.int32()), ("index", pa.int64()), ("line", pa.int64())])

    def __init__(self, sources: list[str]):
        self._sources = sources
        self._positions: dict[str, int] = {name: position for position, name in enumerate(sources)}

    def encode(self, value: str):
        return dict(zip(("source", "index", "line"), self._numbers(value), strict=True))

    def encode_all(self, values: Sequence[str]) -> pa.Array:
        columns = zip(*map(self._numbers, values), strict=True)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, self.type, strict=True)]
        return pa.StructArray.from_arrays(arrays, fields=list(self.type))

    def _numbers(self, value: str) -> tuple[int, int, int | None]:
        name, _, number = value.rpartition(", record ")
        index, _, line = number.partition(" (line ")
        if name not in self._positions:
            self._positions[name] = len(self._sources)
            self._sources.append(name)
        return self._positions[name], int(index), int(line[:-1]) if line else None

    def decode(self, value) -> str:
        return describe_place(self._sources[value["source"]], value["index"], value["line"])


class _ImageReference(_Column):
    """A path, or two numbers within one of the stores."""

    type = pa.struct([("path", pa.string()), ("store", pa.int32()), ("first", pa.int64()), ("second", pa.int64())])

    def __init__(self, stores: list[ImageStore]):
        self._stores = stores
        self._positions: dict[tuple[int, str], int] = {}

    def encode(self, value: str | EmbeddedImage):
        if isinstance(value, str):
            return {"path": value}
        store = value.images
        key = (store.source_index, store.key)
        if key not in self._positions:
            self._positions[key] = len(self._stores)
            self._stores.append(store)
        return {"store": self._positions[key], "first": value.first, "second": value.second}

    def encode_all(self, values: Sequence[str | EmbeddedImage]) -> pa.Array:
        if not all(type(value) is str for value in values):
            return super().encode_all(values)
        paths, *numbers = self.type
        arrays = [pa.array(values, paths.type), *(pa.nulls(len(values), field.type) for field in numbers)]
        return pa.StructArray.from_arrays(arrays, fields=[paths, *numbers])

    def decode(self, value) -> str | EmbeddedImage:
        if value["path"] is not None:
            return value["path"]
        return EmbeddedImage(self._stores[value["store"]], value["first"], value["second"])


class RecordLayout(Generic[_RecordType]):
    """
    The columns of a record type, from the types of its fields.

    Args:
        record_type: a dataclass of texts, numbers, identifiers, images, places (`where`), and tuples of them.
        sources: names of the files that records come from; grows while records are written.
        stores: of images that have no files of their own; grows likewise.
    """

    def __init__(self, record_type: type[_RecordType], sources: list[str], stores: list[ImageStore]):
        self.record_type = record_type
        self.sources = sources
        self.stores = stores
        hints = typing.get_type_hints(record_type)
        place, image = _Place(sources), _ImageReference(stores)
        self.columns = {
            one.name: place if one.name == "where" else _column_of(hints[one.name], image)
            for one in fields(record_type)
        }
        self.schema = pa.schema([(name, column.type) for name, column in self.columns.items()])

    def encode(self, records: Sequence[_RecordType]) -> pa.RecordBatch:
        """Records as a batch of rows."""
        arrays = [
            column.encode_all([getattr(record, name) for record in records]) for name, column in self.columns.items()
        ]
        return pa.record_batch(arrays, schema=self.schema)

    def decode_row(self, batch: pa.RecordBatch, row: int) -> _RecordType:
        """One row as a record."""
        cells = (batch.column(position)[row].as_py() for position in range(len(self.columns)))
        return self.record_type(
            *[column.decode(cell) for column, cell in zip(self.columns.values(), cells, strict=True)]
        )

    def decode(self, batch: pa.RecordBatch) -> Iterator[_RecordType]:
        """All rows as records, in less time for each."""
        cells = [batch.column(position).to_pylist() for position in range(len(self.columns))]
        for row in zip(*cells, strict=True):
            yield self.record_type(
                *[column.decode(cell) for column, cell in zip(self.columns.values(), row, strict=True)]
            )


def _column_of(hint: object, image: _ImageReference) -> _Column:
    if isinstance(hint, types.UnionType):
        kinds = set(typing.get_args(hint)) - {types.NoneType}
        if kinds == {str, EmbeddedImage}:
            return image
        if kinds == {int, str}:
            return _Json()
        (only,) = kinds
        return _column_of(only, image)
    if typing.get_origin(hint) is tuple:
        inner = {one for one in typing.get_args(hint) if one is not Ellipsis}
        (only,) = inner
        return _Tuple(_column_of(only, image))
    if typing.get_origin(hint) is Mapping:
        return _Json()
    return _Plain({str: pa.string(), int: pa.int64(), float: pa.float64()}[hint])


class RecordWriter(Generic[_RecordType]):
    """
    Collects records.

    Args:
        record_type: as in `RecordLayout`.
        path: file to write them to as they come; None keeps them in memory.
    """

    def __init__(self, record_type: type[_RecordType], path: Path | None = None):
        self.layout = RecordLayout(record_type, [], [])
        self._path = path
        self._file = pa.OSFile(str(path), "wb") if path is not None else None
        self._writer = pa.ipc.new_file(self._file, self.layout.schema) if path is not None else None
        self._batches: list[pa.RecordBatch] = []
        self._waiting: list[_RecordType] = []
        self._count = 0

    def append(self, record: _RecordType) -> None:
        """Adds a record at the end."""
        self._waiting.append(record)
        self._count += 1
        if len(self._waiting) == ROWS_PER_BATCH:
            self._flush()

    def __len__(self) -> int:
        return self._count

    def finish(self) -> "StoredRecords[_RecordType]":
        """The records. Nothing can be appended any more."""
        self._flush()
        if self._path is None:
            return StoredRecords(self.layout, self._batches)
        self._writer.close()
        self._file.close()
        return open_records(self.layout.record_type, self._path, self.layout.sources, self.layout.stores)

    def _flush(self) -> None:
        if self._waiting:
            batch = self.layout.encode(self._waiting)
            self._waiting = []
            if self._writer is not None:
                self._writer.write_batch(batch)
            else:
                self._batches.append(batch)


class StoredRecords(Sequence, Generic[_RecordType]):
    """
    A sequence of records that are made when they are asked for.

    A list of Python objects is copied into every data-loading process bit by bit, because merely looking at an object
    writes its reference count. Arrow's buffers stay shared, and a mapped file is in memory once for all processes.

    Args:
        layout: of the records.
        batches: their rows.
        path: the file that is mapped; None where the rows lie in memory.
    """

    def __init__(self, layout: RecordLayout[_RecordType], batches: Sequence[pa.RecordBatch], path: Path | None = None):
        self.layout = layout
        self.path = path
        self._batches = list(batches)
        self._ends = np.cumsum([batch.num_rows for batch in self._batches], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> _RecordType:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index %= len(self)
        number = int(np.searchsorted(self._ends, index, side="right"))
        batch = self._batches[number]
        return self.layout.decode_row(batch, index - int(self._ends[number]) + batch.num_rows)

    def __iter__(self) -> Iterator[_RecordType]:
        for batch in self._batches:
            for start in range(0, batch.num_rows, 1024):
                yield from self.layout.decode(batch.slice(start, 1024))

    def list_lengths(self, column: str) -> np.ndarray:
        """Per record the number of entries in a column of lists, without making the records."""
        import pyarrow.compute

        lengths = [pyarrow.compute.list_value_length(batch.column(column)).to_numpy() for batch in self._batches]
        return np.concatenate(lengths) if lengths else np.zeros(0, dtype=np.int64)

    def take(self, indices: Sequence[int]) -> "StoredRecords[_RecordType]":
        """The records at these indices, in memory."""
        table = pa.Table.from_batches(self._batches, self.layout.schema)
        chosen = table.take(pa.array(indices, pa.int64())).combine_chunks()
        return StoredRecords(self.layout, chosen.to_batches())

    def __reduce__(self) -> tuple:
        if self.path is None:
            return _restore_batches, (
                self.layout.record_type,
                self.layout.sources,
                self.layout.stores,
                self._batches,
            )
        return open_records, (self.layout.record_type, self.path, self.layout.sources, self.layout.stores)


def open_records(
    record_type: type[_RecordType], path: Path, sources: list[str], stores: list[ImageStore]
) -> StoredRecords[_RecordType]:
    """The records of a file of `RecordWriter`, mapped into memory."""
    reader = pa.ipc.open_file(pa.memory_map(str(path), "r"))
    batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
    return StoredRecords(RecordLayout(record_type, sources, stores), batches, path)


def _restore_batches(
    record_type: type[_RecordType], sources: list[str], stores: list[ImageStore], batches: list[pa.RecordBatch]
) -> StoredRecords[_RecordType]:
    return StoredRecords(RecordLayout(record_type, sources, stores), batches)
