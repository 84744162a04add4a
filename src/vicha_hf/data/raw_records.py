"""Records as they are found in a source, before any task reads them, and the problems that they can have."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .stored_images import ImageStore


class AnnotationError(ValueError):
    """Annotations that cannot be used; the message names file, record, field and remedy."""


class RecordProblem(Exception):
    """
    Raised by a record parser for a record that cannot be used.

    Args:
        field_name: the field, or "" for the record as a whole.
        cause: the fault, in words that are the same for all such records (they are counted).
        remedy: what to write instead.
        detail: what was found.
    """

    def __init__(self, field_name: str, cause: str, remedy: str, detail: str = ""):
        super().__init__(field_name, cause, remedy, detail)
        self.label = f"field {field_name!r}: {cause}" if field_name else cause
        self.message = printable(f"{self.label}{f' ({detail})' if detail else ''}; {remedy}")


# Not frozen: there are millions of them, and freezing makes them several times slower to make.
@dataclass(slots=True)
class RawRecord:
    """
    A record as it was found.

    Attributes:
        value: the decoded JSON, or the row of a table; None where there is a `problem`.
        source: the name of the file or dataset.
        index: position in the source, from 0.
        default_root: folder that relative image paths start from unless the user says otherwise.
        line: line of a text file, from 1.
        problem: why there is no value.
        image_root: the folder that the source itself was given for its images.
        declared_root: another folder that the images may lie in.
        notes: what a parser has mended in the record, in words that are the same for all such records.
    """

    value: object
    source: str
    index: int
    default_root: Path
    line: int | None = None
    problem: RecordProblem | None = None
    image_root: Path | None = None
    declared_root: Path | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def where(self) -> str:
        """File and record, for messages."""
        return describe_place(self.source, self.index, self.line)


class RecordSource(ABC):
    """A source of raw records. `str(source)` names it in messages."""

    @abstractmethod
    def iterate_records(self) -> Iterator[RawRecord]:
        """The records, in the form that the task's reader expects."""

    def fingerprint(self) -> str | None:
        """A text that changes whenever the content does; None where that cannot be told without reading it."""
        return None

    def size_in_bytes(self) -> int:
        """About how much there is to read; small sources are not worth a cache."""
        return 0

    def image_store(self, key: str) -> ImageStore:
        """The store of that key among those that hold the images of this source. Raises `KeyError` for another key."""
        raise KeyError(key)


def unreadable_shard(error: Exception, remedy: str = "write or download it again") -> RecordProblem:
    """The problem of the records in a shard, or behind a place in it, that is gone, cut off or damaged."""
    detail = " ".join(f"{type(error).__name__}: {error}".split())
    return RecordProblem("", "the shard cannot be read to its end", remedy, detail)


def describe_place(source: str, index: int, line: int | None = None) -> str:
    """File and record of an annotation, for messages."""
    return f"{source}, record {index}{f' (line {line})' if line is not None else ''}"


def shorten(value: object) -> str:
    """Type and beginning of a value, for messages."""
    try:
        text = repr(value)
    # A number of thousands of digits, or a list in lists in lists.
    except (ValueError, RecursionError):
        text = "too large to be shown"
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def printable(text: str) -> str:
    """A text that any terminal and log can hold: lone surrogates are written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
