"""Parts that all importers share: the account of what was left out, and the search for images."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ...models.text_cleaning import holds_words
from ..annotation_fields import is_whole_text
from ..json_reading import iterate_json_lines
from ..raw_records import AnnotationError, shorten


@dataclass(frozen=True)
class ImportOptions:
    """
    Options of an import.

    Attributes:
        images: folder of the images; None takes the names as they are published and looks for no file.
        splits: only records of these splits; None for all.
    """

    images: Path | None = None
    splits: frozenset[str] | None = None


@dataclass
class Account:
    """
    Records that were taken, and those that were left out, by cause.

    Attributes:
        taken: records.
        left_out: by cause, in words that are the same for all such records.
    """

    taken: int = 0
    left_out: Counter = field(default_factory=Counter)

    def leave_out(self, cause: str, count: int = 1) -> None:
        """Counts records that are not taken."""
        self.left_out[cause] += count

    def summary(self) -> str:
        """The counts, a line for each cause."""
        lines = [f"{self.taken} records taken, {sum(self.left_out.values())} left out"]
        lines += [f"  {count} x {cause}" for cause, count in self.left_out.most_common()]
        return "\n".join(lines)


class ImageLocator:
    """
    Finds published images in a user's folder, whatever folders the publisher had above them.

    Args:
        images: the user's folder; None leaves names as they are.
        account: where images that are not there are counted.
    """

    def __init__(self, images: Path | None, account: Account):
        self._images = images
        self._account = account
        # Images of one source lie alike: what was left out of the last path is tried first.
        self._last_dropped = 0

    def find(self, *names: str) -> str | None:
        """
        The path of an image below the user's folder.

        Args:
            names: published paths of it, any of which may be there; of each the longest end that exists counts.

        Returns:
            The path below the folder, or the first name as it is where no folder is known; None, and counted, where the
            image is not there.
        """
        if self._images is None:
            return names[0]
        for name in names:
            parts = [part for part in PurePosixPath(name).parts if part not in ("/", "..", ".")]
            drops = sorted(range(len(parts)), key=lambda dropped: (dropped != self._last_dropped, dropped))
            for dropped in drops:
                path = "/".join(parts[dropped:])
                if os.path.isfile(self._images / path):
                    self._last_dropped = dropped
                    return path
        self._account.leave_out("image file not found")
        return None


RecordsOf = Callable[[Sequence[Path], ImportOptions, Account], Iterator[dict]]


@dataclass(frozen=True)
class Importer:
    """
    An importer.

    Attributes:
        name: as the command line knows it.
        files: the files that it takes, in words.
        read: makes records, in the schema of the task, out of the files.
        min_files, max_files: how many there must be; `max_files` None for any number.
        has_splits: whether the files tell splits, so that one can be chosen.
        license: of what the owners publish, in words, as they state it.
    """

    name: str
    files: str
    read: RecordsOf
    min_files: int = 1
    max_files: int | None = None
    has_splits: bool = False
    license: str = "not stated"

    def check(self, sources: Sequence[Path], options: ImportOptions) -> None:
        """Raises `AnnotationError` for a number of files, or a split, that cannot be."""
        too_many = self.max_files is not None and len(sources) > self.max_files
        if len(sources) < self.min_files or too_many:
            raise AnnotationError(f"{self.name} takes {self.files}; got {len(sources)} files")
        if options.splits is not None and not self.has_splits:
            raise AnnotationError(
                f"{self.name}: the files name no splits; leave --split out, and import the file of each split by itself"
            )


class SplitChoice:
    """
    Chooses records by split and finds out which splits there are.

    Args:
        options: of the import.
        account: where records of other splits are counted.
    """

    def __init__(self, options: ImportOptions, account: Account):
        self._wanted = options.splits
        self._account = account
        self._seen: set[str] = set()

    def wants(self, split: object, count: int = 1) -> bool:
        """Whether a record of that split is asked for; `count` are counted otherwise."""
        self._seen.add(str(split))
        if self._wanted is None or (isinstance(split, str) and split in self._wanted):
            return True
        self._account.leave_out("another split", count)
        return False

    def end(self) -> None:
        """Raises `AnnotationError` for a split that does not occur."""
        for split in sorted(self._wanted or ()):
            if split not in self._seen:
                raise AnnotationError(f"no split {split!r}; choose among {sorted(self._seen)}")


def usable_text(value: object) -> str | None:
    """A text without white space around it; None where there is none, or one that readers refuse whatever it is for."""
    if not isinstance(value, str) or not is_whole_text(value):
        return None
    return value.strip() or None


def usable_words(value: object) -> str | None:
    """A usable text with at least one word in it, as captions, questions and sentences have."""
    text = usable_text(value)
    return text if text is not None and holds_words(text) else None


def usable_id(value: object) -> str | int | None:
    """A text or whole number that tells records apart; None where it is neither."""
    return value if isinstance(value, (str, int)) and not isinstance(value, bool) else None


def entries_of(content: Mapping, name: str, path: Path) -> list:
    """
    A list within a file.

    Raises:
        AnnotationError: it is not there.
    """
    entries = content.get(name) if isinstance(content, Mapping) else None
    if not isinstance(entries, list):
        found = sorted(content)[:10] if isinstance(content, Mapping) else shorten(content)
        raise AnnotationError(f"{path}: field {name!r}: no list; is it the file of another importer? It has {found}")
    return entries


def objects(entries: Sequence, account: Account) -> Iterator[dict]:
    """The entries that are JSON objects; others are counted."""
    for entry in entries:
        if isinstance(entry, dict):
            yield entry
        else:
            account.leave_out("no JSON object")


def json_lines(path: Path, account: Account) -> Iterator[dict]:
    """The objects of a JSONL file; lines that hold none are counted."""
    for _, value, problem in iterate_json_lines(path):
        if problem is not None:
            account.leave_out(problem.label)
        elif not isinstance(value, dict):
            account.leave_out("no JSON object")
        else:
            yield value
