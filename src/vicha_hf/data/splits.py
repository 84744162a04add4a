"""The choice of splits, the same for every task and every kind of source."""

from collections import Counter
from collections.abc import Mapping, Sequence

from .annotation_sources import OpenedSource
from .raw_records import AnnotationError, RecordProblem


class SplitFilter:
    """
    Chooses records by their field `split`. A split that does not exist is an error: it would leave nothing, or everything.

    Args:
        splits: that are wanted of all sources together; None for all.

    Raises:
        AnnotationError: no split is named.
    """

    def __init__(self, splits: Sequence[str] | None):
        splits = [splits] if isinstance(splits, str) else splits
        if splits is not None and not splits:
            raise AnnotationError("splits=[] names no split; name at least one, or leave it out")
        self._wanted = None if splits is None else dict.fromkeys(splits)
        self._seen: Counter[str] = Counter()
        self._own: str | None = None
        self._seen_in_source: Counter[str] = Counter()

    def begin_source(self, source: OpenedSource) -> None:
        """Call before the records of a source."""
        self._own = source.split
        self._seen_in_source = Counter()

    def wants(self, fields: Mapping) -> bool:
        """
        Whether a record is asked for.

        Raises:
            RecordProblem: splits are asked for, and the record names none.
        """
        if self._wanted is None and self._own is None:
            return True
        split = fields.get("split")
        if not isinstance(split, str):
            found = "missing" if split is None else "wrong type"
            raise RecordProblem("split", found, 'write the name of the split, such as "val", or choose no split')
        self._seen_in_source[split] += 1
        return split == self._own if self._own is not None else split in self._wanted

    def end_source(self, source: OpenedSource) -> None:
        """Raises `AnnotationError` where the source has no record of the split that was named for it."""
        if self._own is not None and self._seen_in_source and self._own not in self._seen_in_source:
            raise AnnotationError(_no_such_split(str(source.records), self._own, self._seen_in_source))
        self._seen += self._seen_in_source

    def end(self) -> None:
        """Raises `AnnotationError` for a wanted split that no record has."""
        for split in self._wanted or ():
            if self._seen and split not in self._seen:
                raise AnnotationError(_no_such_split("the annotations", split, self._seen))


def _no_such_split(where: str, split: str, seen: Counter) -> str:
    return f"{where}: no split {split!r}; choose among {sorted(seen)}"
