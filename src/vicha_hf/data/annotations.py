"""Annotations as validated records: the schema of pretraining and retrieval, and the reading that every task shares."""

import gc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Generic, Literal, NotRequired, TypedDict, TypeVar, Unpack

import numpy as np
from transformers.utils import logging

from .annotation_fields import HashedImageIds, ImageFinder, ImageIds, read_concepts, read_texts
from .annotation_sources import OpenedSource, list_sources, open_sources
from .image_check import find_unreadable, images_of
from .image_record import ImageRecord
from .raw_records import AnnotationError, RawRecord, RecordProblem, shorten
from .read_report import AnnotationReport, shown_fields
from .record_cache import cached_records
from .record_storage import RecordWriter, StoredRecords
from .splits import SplitFilter
from .stored_images import EmbeddedImage


logger = logging.get_logger(__name__)

# What any task reads, besides what `ImageTextRecord` shows.
_KNOWN_FIELDS = frozenset(
    [
        "image",
        "images",
        "image_id",
        "caption",
        "concepts",
        "kwords",
        "kwords1",
        "kwords2",
        "question",
        "question_id",
        "question_type",
        "answer",
        "answers",
        "answer_type",
        "dataset",
        "sentence",
        "label",
        "identifier",
        "ref_id",
        "text",
        "bbox",
        "boxes",
        "split",
        "width",
        "height",
        "concept_scores",
    ]
)
_RecordType = TypeVar("_RecordType")


@dataclass(frozen=True, slots=True)
class ImageTextRecord(ImageRecord):
    """
    An image with its captions and concepts.

    Attributes:
        image: path of the image, or an image inside a dataset.
        captions: one or more captions as written.
        image_id: equal for records of the same image; numbered from 0 in order of first appearance.
        concepts: the visual concepts without repetitions, in the order given (may be empty).
        where: file and record, for messages.
    """

    image: str | EmbeddedImage
    captions: tuple[str, ...]
    image_id: int
    concepts: tuple[str, ...]
    where: str


@dataclass(frozen=True)
class ImageTextParser:
    """
    Makes records of pretraining and retrieval out of a record's fields.

    Args:
        images: finds the images.
        image_ids: numbers them.
    """

    images: ImageFinder
    image_ids: ImageIds | HashedImageIds = field(default_factory=HashedImageIds)

    def __call__(self, fields: Mapping, raw: RawRecord) -> ImageTextRecord:
        """Raises `RecordProblem` for a record that cannot be used."""
        image = self.images.read(fields, raw)
        captions = read_texts(fields, "caption")
        concepts = read_concepts(fields)
        # Last, so that a skipped record leaves no trace in the numbering.
        image_id = self.image_ids.number(image, raw, fields.get("image_id"))
        return ImageTextRecord(image, captions, image_id, concepts, raw.where)


class ReadingOptions(TypedDict):
    """
    Options of every reader.

    Attributes:
        on_bad_record: "raise" (default) refuses the annotations and lists the first problems; "skip" leaves the bad
            records out, logs a summary and returns it in the report.
        check_images: whether to look that each image's file exists (default). Turn it off where that is slow; a missing
            file is then an error when it is loaded.
        decode_images: with "skip", whether to decode every image now, and leave out the records of those that cannot be:
            an evaluation must know its records beforehand. Training finds them when it comes to them.
        splits: only records whose field `split` is one of these; every one of them must occur.
        allow_outside_root: whether absolute paths may lead out of the image root.
        log_report: whether to log the report (default); not where it is printed in the end.
    """

    on_bad_record: NotRequired[Literal["raise", "skip"]]
    check_images: NotRequired[bool]
    decode_images: NotRequired[bool]
    splits: NotRequired[Sequence[str] | None]
    allow_outside_root: NotRequired[bool]
    log_report: NotRequired[bool]


@dataclass
class Annotations(Generic[_RecordType]):
    """
    Validated records in order, and the report of how they came about.

    Attributes:
        records: as they were read, source after source.
        report: of the reading.
        weights: how often samples come from each source, relative to the others; None where records count alike.
        records_of_source: number of records of each source.
    """

    records: StoredRecords[_RecordType]
    report: AnnotationReport
    weights: tuple[float, ...] | None = None
    records_of_source: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> _RecordType:
        return self.records[index]

    def __iter__(self) -> Iterator[_RecordType]:
        return iter(self.records)

    def caption_counts(self) -> np.ndarray:
        """Per record the number of its captions."""
        if "captions" in self.records.layout.columns:
            return self.records.list_lengths("captions")
        return np.ones(len(self), dtype=np.int64)


class NoUsableRecord(AnnotationError):
    """
    Annotations without a single record that can be used.

    Args:
        message: for people.
        report: of the reading.
    """

    def __init__(self, message: str, report: AnnotationReport):
        super().__init__(message)
        self.report = report


def read_image_text_records(
    sources,
    image_root: str | os.PathLike | Sequence[str] | None = None,
    *,
    for_evaluation: bool = False,
    **options: Unpack[ReadingOptions],
) -> Annotations[ImageTextRecord]:
    """
    Reads and validates the annotations of pretraining and retrieval.

    A record is `{"image": path, "caption": str | [str], "image_id": optional, "concepts": optional [str]}`; `kwords`, the
    name in the published files, is read as `concepts`. `image_id` may be of any type. Two records have the same image
    when their paths are equal, or when their `image_id` is equal and they come from the same source (numbers of different
    corpora may clash). An image stored inside a dataset or shard has no path to compare: it is an image of its own
    unless an `image_id` says otherwise.

    Args:
        sources: one source or a list of sources that are concatenated; see `open_sources`.
        image_root: folder that relative image paths start from, or one for each source (default: the annotation file's
            folder; for a dataset the current folder).
        for_evaluation: whether different images with one `image_id` are a mistake.
        options: see `ReadingOptions`.

    Returns:
        The records in order, with the report.

    Raises:
        AnnotationError: a missing or unreadable file, or a split that does not exist (in both modes), a bad record
            ("raise"), no record left.
    """
    parse = ImageTextParser(ImageFinder.from_options(options), ImageIds(refuse_conflicts=for_evaluation))
    return read_records(sources, image_root, ImageTextRecord, parse, options, {"for_evaluation": for_evaluation})


def read_records(
    sources,
    image_root: str | os.PathLike | Sequence[str] | None,
    record_type: type[_RecordType],
    parse: Callable[[Mapping, RawRecord], _RecordType],
    options: ReadingOptions,
    own_options: Mapping[str, object] | None,
) -> Annotations[_RecordType]:
    """
    Reads the records of all sources for any task.

    Args:
        sources, image_root: as in `read_image_text_records`.
        record_type: the dataclass of the task's records.
        parse: makes a record out of a record's fields, or raises `RecordProblem`.
        options: see `ReadingOptions`.
        own_options: what else decides what `parse` returns, as JSON; None where that cannot be written down.

    Raises:
        AnnotationError: as in `read_image_text_records`.
    """
    on_bad_record = options.get("on_bad_record", "raise")
    if on_bad_record not in ("raise", "skip"):
        raise ValueError(f'on_bad_record={on_bad_record!r} must be "raise" or "skip"')
    opened = open_sources(sources, image_root)

    def build(writer: RecordWriter) -> AnnotationReport:
        report = _read_all(opened, parse, SplitFilter(options.get("splits")), writer)
        _refuse(report, on_bad_record, sources)
        return report

    deciding = {name: value for name, value in sorted(options.items()) if name != "log_report"}
    key = None if own_options is None else [deciding, own_options]
    records, report = cached_records(record_type, opened, key, build)
    if options.get("decode_images") and on_bad_record == "skip":
        records = _leave_out_unreadable(records, report)
        _refuse(report, on_bad_record, sources)
    if options.get("log_report", True):
        log = logger.warning if report.num_skipped else logger.info
        log("Annotations: %s", report.summary())
    _suggest_fields(report)
    return Annotations(records, report, _weights(opened, report), tuple(report.kept_by_source))


def _read_all(
    opened: Sequence[OpenedSource], parse: Callable, splits: SplitFilter, writer: RecordWriter
) -> AnnotationReport:
    report = AnnotationReport()
    with _no_garbage_collection():
        _read_each(opened, parse, splits, writer, report)
    splits.end()
    report.num_kept = len(writer)
    return report


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Millions of new objects would set off the search for circles among them, again and again, and there are none."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _read_each(
    opened: Sequence[OpenedSource],
    parse: Callable,
    splits: SplitFilter,
    writer: RecordWriter,
    report: AnnotationReport,
) -> None:
    for number, source in enumerate(opened):
        before = len(writer)
        for raw, value in _wanted_fields(source, splits):
            report.num_read += 1
            try:
                if isinstance(value, RecordProblem):
                    raise value
                record = parse(value, raw)
            except RecordProblem as problem:
                report.reject(raw.where, problem.label, problem.message)
            else:
                for image in images_of(record):
                    if isinstance(image, EmbeddedImage):
                        image.images.source_index = number
                writer.append(record)
                if raw.notes:
                    report.notes.update(raw.notes)
                if not value.keys() <= _KNOWN_FIELDS:
                    report.unknown_fields.update(value.keys() - _KNOWN_FIELDS)
        report.kept_by_source.append(len(writer) - before)


def iterate_fields(
    sources, image_root: str | os.PathLike | Sequence[str] | None = None, splits: Sequence[str] | None = None
) -> Iterator[tuple[RawRecord, Mapping | RecordProblem]]:
    """
    The fields of all records as they were written, one by one and of any task, or the problem that there are none.

    Args:
        sources, image_root: as in `read_image_text_records`.
        splits: as in `ReadingOptions`.

    Raises:
        AnnotationError: a missing or unreadable file, or a split that does not exist.
    """
    split_filter = SplitFilter(splits)
    for source in open_sources(sources, image_root):
        yield from _wanted_fields(source, split_filter)
    split_filter.end()


def _wanted_fields(source: OpenedSource, splits: SplitFilter) -> Iterator[tuple[RawRecord, Mapping | RecordProblem]]:
    splits.begin_source(source)
    for raw in source.records.iterate_records():
        try:
            value = fields_of(raw)
            if not splits.wants(value):
                continue
        except RecordProblem as problem:
            value = problem
        yield raw, value
    splits.end_source(source)


def _refuse(report: AnnotationReport, on_bad_record: str, sources: object) -> None:
    if report.num_skipped and on_bad_record == "raise":
        first = report.rejected[0]
        raise AnnotationError(
            f'{first.record}: {first.message}. Correct the bad records, or leave them out with on_bad_record="skip". '
            f"{report.counts_in_a_line()}."
        )
    if not report.num_kept:
        message = f"no usable record in {', '.join(map(str, list_sources(sources)))}: {report.summary()}"
        raise NoUsableRecord(message, report)


def _leave_out_unreadable(records: StoredRecords, report: AnnotationReport) -> StoredRecords:
    unreadable = find_unreadable(records)
    if not unreadable:
        return records
    for index, error in unreadable.items():
        report.reject(records[index].where, f"field 'image': {error.cause}", error.message)
    bounds = np.cumsum(report.kept_by_source)
    for index in unreadable:
        report.kept_by_source[int(np.searchsorted(bounds, index, side="right"))] -= 1
    report.num_kept -= len(unreadable)
    return records.take([index for index in range(len(records)) if index not in unreadable])


def _weights(opened: Sequence[OpenedSource], report: AnnotationReport) -> tuple[float, ...] | None:
    if all(source.weight is None for source in opened):
        return None
    kept = report.kept_by_source
    return tuple(
        0.0 if not count else float(count if source.weight is None else source.weight)
        for source, count in zip(opened, kept, strict=True)
    )


def _suggest_fields(report: AnnotationReport) -> None:
    others = []
    for name, count in sorted(report.unknown_fields.items(), key=lambda item: str(item[0])):
        if close := get_close_matches(str(name), _KNOWN_FIELDS, n=1, cutoff=0.8):
            logger.warning("%d records have a field %r, which nothing reads; is it %r?", count, name, close[0])
        else:
            others.append(str(name))
    if others:
        logger.info("Fields that nothing reads: %s", shown_fields(others))


def fields_of(raw: RawRecord) -> Mapping:
    """The fields of a record. Raises `RecordProblem` where it has none."""
    if raw.problem is not None:
        raise raw.problem
    if not isinstance(raw.value, Mapping):
        raise RecordProblem("", "not an object", 'write {"image": ..., ...}', f"got {shorten(raw.value)}")
    return raw.value
