"""Millions of small records in one block of memory."""

import copyreg
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
    writes its reference count. With millions of records and many workers, that multiplies gigabytes. A buffer of bytes
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
        pickler = pickle.Pickler(file, protocol=pickle.HIGHEST_PROTOCOL)
        pickler.dispatch_table = copyreg.dispatch_table | dict.fromkeys(self._shared_types, self._reduce_shared)
        pickler.dump(record)
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

    def _reduce_shared(self, value) -> tuple:
        position = next((index for index, known in enumerate(self._shared) if known is value), len(self._shared))
        if position == len(self._shared):
            self._shared.append(value)
        return _shared_object, (position,)


def _shared_object(position: int):
    raise NotImplementedError("stands in the pickled bytes for a shared object; _Unpickler puts the object there")


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, shared: list):
        super().__init__(file)
        self._shared = shared

    def find_class(self, module: str, name: str):
        if (module, name) == (_shared_object.__module__, _shared_object.__name__):
            return self._shared.__getitem__
        return super().find_class(module, name)
