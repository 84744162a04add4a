"""Millions of small records in one block of memory."""

import io
import pickle
from array import array
from collections.abc import Sequence
from typing import Generic, TypeVar


_RecordType = TypeVar("_RecordType")


class PackedRecords(Sequence, Generic[_RecordType]):
    """
    An append-only sequence of records, each pickled into one shared buffer.

    A list of Python objects is copied into every data-loading process bit by bit, because merely looking at an object
    writes its reference count; with millions of records and many workers that multiplies gigabytes. A buffer of bytes
    stays shared, and is a fraction of the size.

    Args:
        shared_types: classes whose instances are large and common to many records (a dataset): each instance is kept
            once beside the buffer.
    """

    def __init__(self, shared_types: tuple[type, ...] = ()):
        self._shared_types = shared_types
        self._shared: list = []
        self._buffer = bytearray()
        self._ends = array("Q", [0])

    def append(self, record: _RecordType) -> None:
        file = io.BytesIO()
        _Pickler(file, self._shared, self._shared_types).dump(record)
        self._buffer += file.getbuffer()
        self._ends.append(len(self._buffer))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> _RecordType:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index %= len(self)
        view = memoryview(self._buffer)[self._ends[index] : self._ends[index + 1]]
        return _Unpickler(io.BytesIO(view), self._shared).load()


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, shared: list, shared_types: tuple[type, ...]):
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._shared = shared
        self._shared_types = shared_types

    def persistent_id(self, value):
        if not isinstance(value, self._shared_types):
            return None
        for position, known in enumerate(self._shared):
            if known is value:
                return position
        self._shared.append(value)
        return len(self._shared) - 1


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, shared: list):
        super().__init__(file)
        self._shared = shared

    def persistent_load(self, position):
        return self._shared[position]
