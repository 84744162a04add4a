"""The account of a reading: how many records were kept, and why others were not."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path


MAX_PROBLEMS_SHOWN = 10
# Records with the same fault differ in little but their names.
MAX_SHOWN_OF_A_CAUSE = 3
# In the folder of a run or an evaluation: the records that it did without, and why.
REJECTS_FILE = "rejected_records.jsonl"


@dataclass(frozen=True)
class RejectedRecord:
    """
    A record that was left out.

    Attributes:
        record: file and number.
        cause: the fault, in words that are the same for all such records.
        message: the fault with what was found and the remedy.
    """

    record: str
    cause: str
    message: str


# Names that a message lists of the fields that nothing reads.
_SHOWN_FIELDS = 10


def shown_fields(names: Sequence[str]) -> str:
    """The first names of a list for a message, and how many more there are."""
    more = f" and {len(names) - _SHOWN_FIELDS} more" if len(names) > _SHOWN_FIELDS else ""
    return ", ".join(map(repr, names[:_SHOWN_FIELDS])) + more


@dataclass
class AnnotationReport:
    """
    Account of a reading: records that were read and kept, and why others were not.

    Attributes:
        num_read, num_kept: records.
        causes: records that were left out, by cause.
        rejected: each of them.
        notes: what was mended in records that were kept, by kind.
        kept_by_source: records that were kept, of each source.
        unknown_fields: names of fields that nothing reads, with the number of records that have them.
    """

    num_read: int = 0
    num_kept: int = 0
    causes: Counter = field(default_factory=Counter)
    rejected: list[RejectedRecord] = field(default_factory=list)
    notes: Counter = field(default_factory=Counter)
    unknown_fields: Counter = field(default_factory=Counter)
    kept_by_source: list[int] = field(default_factory=list)

    def as_mapping(self) -> dict:
        """The report in plain values. (`dataclasses.asdict` would count the entries of counters.)"""
        counters = {name: dict(getattr(self, name)) for name in ("causes", "notes", "unknown_fields")}
        numbers = {name: getattr(self, name) for name in ("num_read", "num_kept", "kept_by_source")}
        return {**numbers, **counters, "rejected": [asdict(one) for one in self.rejected]}

    @classmethod
    def from_mapping(cls, mapping: Mapping) -> "AnnotationReport":
        """The report that `as_mapping` made into a mapping."""
        counters = {name: Counter(mapping[name]) for name in ("causes", "notes", "unknown_fields")}
        rejected = [RejectedRecord(**one) for one in mapping["rejected"]]
        numbers = {name: mapping[name] for name in ("num_read", "num_kept", "kept_by_source")}
        return cls(**numbers, **counters, rejected=rejected)

    @property
    def num_skipped(self) -> int:
        """Records that were left out."""
        return self.num_read - self.num_kept

    @property
    def misses_images(self) -> bool:
        """Whether records were left out because of their images."""
        return any("'image" in cause for cause in self.causes)

    def reject(self, where: str, cause: str, message: str) -> None:
        """Counts a record that is left out."""
        self.causes[cause] += 1
        self.rejected.append(RejectedRecord(where, cause, message))

    def summary(self) -> str:
        """Counts, counts per cause, and the first examples of each cause, one per line."""
        lines = [f"{self.num_kept} of {self.num_read} records usable, {self.num_skipped} not"]
        lines += [f"  {count} x {cause}" for cause, count in self.causes.most_common()]
        lines += [f"  e.g. {one.record}: {one.message}" for one in self._examples()]
        lines += [f"  mended: {count} x {note}" for note, count in self.notes.most_common()]
        return "\n".join(lines)

    def counts_in_a_line(self) -> str:
        """Counts and counts per cause, for a message that names an example itself."""
        causes = ", ".join(f"{count} x {cause}" for cause, count in self.causes.most_common())
        return f"{self.num_kept} of {self.num_read} records usable, {self.num_skipped} not: {causes}"

    def _examples(self) -> list[RejectedRecord]:
        shown, of_cause = [], Counter()
        for one in self.rejected:
            of_cause[one.cause] += 1
            if of_cause[one.cause] <= MAX_SHOWN_OF_A_CAUSE:
                shown.append(one)
            if len(shown) == MAX_PROBLEMS_SHOWN:
                break
        return shown

    def rejects_as_jsonl(self) -> str:
        """The records that were left out, one JSON object per line."""
        return "".join(_line(one) for one in self.rejected)


class RejectsFile:
    """
    A JSONL file of the records that were left out, to which several processes may write at once.

    Args:
        path: of the file, in a folder that exists.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._counted_size, self._count = 0, 0
        self._added: set[int] = set()

    def add(self, rejected: RejectedRecord) -> None:
        """Adds a record that turned out to be unusable. A stream comes to it again in every pass; that adds nothing."""
        key = hash((rejected.record, rejected.cause))
        if key in self._added:
            return
        self._added.add(key)
        # One call of `write`, at the end of the file wherever that is by then: lines of several processes do not mix.
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(descriptor, _line(rejected).encode())
        finally:
            os.close(descriptor)

    def joined_with(self, report: AnnotationReport) -> str:
        """The content of the file with the records that the report names, each once."""
        before = self.path.read_text(encoding="utf-8") if self.path.is_file() else ""
        lines = dict.fromkeys((report.rejects_as_jsonl() + before).split("\n"))
        return "".join(f"{line}\n" for line in lines if line)

    def count(self) -> int:
        """Records in the file. It is read only where it has grown."""
        size = self.path.stat().st_size if self.path.is_file() else 0
        if size != self._counted_size:
            self._counted_size, self._count = size, sum(self.counts().values())
        return self._count

    def records(self) -> list[RejectedRecord]:
        """The records; one that was tried several times is there once."""
        if not self.path.is_file():
            return []
        # Messages may hold what Unicode counts as an end of a line.
        lines = self.path.read_text(encoding="utf-8").split("\n")
        entries = [json.loads(line) for line in lines if line]
        return list({(entry["record"], entry["cause"]): RejectedRecord(**entry) for entry in entries}.values())

    def counts(self) -> dict[str, int]:
        """Records by cause."""
        return dict(Counter(one.cause for one in self.records()).most_common())


def _line(rejected: RejectedRecord) -> str:
    return json.dumps(asdict(rejected), ensure_ascii=False) + "\n"
