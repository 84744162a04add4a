"""Annotations as validated records: the schema of pretraining and retrieval, and the reading that every task shares."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from PIL import Image
from transformers.utils import logging

from .annotation_fields import ImageFinder, ImageIds, read_concepts, read_texts
from .annotation_sources import AnnotationError, RawRecord, RecordProblem, iterate_source, list_sources, shorten
from .image_files import EmbeddedImage, EmbeddedImages, open_image
from .record_storage import PackedRecords


logger = logging.get_logger(__name__)

MAX_PROBLEMS_SHOWN = 10
_RecordType = TypeVar("_RecordType")


@dataclass(frozen=True, slots=True)
class ImageTextRecord:
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

    def load_image(self) -> Image.Image:
        """The image as upright RGB. Raises `ImageReadError`."""
        return open_image(self.image, self.where)


@dataclass
class AnnotationReport:
    """Counts of the records that were kept and of those that were not, by cause, with examples."""

    num_read: int = 0
    num_kept: int = 0
    causes: Counter = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    @property
    def num_skipped(self) -> int:
        """Records that were left out."""
        return self.num_read - self.num_kept

    def summary(self) -> str:
        """Counts, counts per cause, and the first examples, one per line."""
        lines = [f"{self.num_kept} of {self.num_read} records usable, {self.num_skipped} not"]
        lines += [f"  {count} x {cause}" for cause, count in self.causes.most_common()]
        lines += [f"  e.g. {example}" for example in self.examples]
        return "\n".join(lines)


@dataclass
class Annotations(Generic[_RecordType]):
    """Validated records in order, and the report of how they came about."""

    records: Sequence[_RecordType]
    report: AnnotationReport

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> _RecordType:
        return self.records[index]

    def __iter__(self) -> Iterator[_RecordType]:
        return iter(self.records)


def read_image_text_records(
    sources,
    image_root: str | os.PathLike | None = None,
    *,
    on_bad_record: Literal["raise", "skip"] = "raise",
    check_images: bool = True,
) -> Annotations[ImageTextRecord]:
    """
    Reads and validates the annotations of pretraining and retrieval.

    A record is `{"image": path, "caption": str | [str], "image_id": optional, "concepts": optional [str]}`; `kwords`, the
    name in the published files, is read as `concepts`. `image_id` may be of any type. Two records have the same image
    when their paths are equal, or when their `image_id` is equal and they come from the same source (numbers of different
    corpora may clash). An image stored inside a Hugging Face dataset has no path to compare: it is an image of its own
    unless an `image_id` column says otherwise.

    Args:
        sources: one source or a list of sources that are concatenated. A source is the path of a JSON list or of a
            JSONL file (one record per line, suffix .jsonl), or a folder written by `Dataset.save_to_disk`. It may also
            be a `DatasetSource`, a mapping with its fields, or a `datasets.Dataset`.
        image_root: folder that relative image paths start from (default: the annotation file's folder; for a dataset
            the current folder).
        on_bad_record: "raise" refuses the annotations and lists the first problems; "skip" leaves the bad records out,
            logs a summary and returns it in the report.
        check_images: whether to look that each image's file exists. Turn it off where that is slow; a missing file is
            then an error when it is loaded.

    Returns:
        The records in order, with the report.

    Raises:
        AnnotationError: a missing or unreadable file (in both modes), a bad record ("raise"), no record left.
    """
    images, image_ids = ImageFinder(image_root, check_images), ImageIds()

    def parse(fields: Mapping, raw: RawRecord) -> ImageTextRecord:
        image = images.read(fields, raw.default_root)
        captions = read_texts(fields, "caption")
        concepts = read_concepts(fields)
        # Last, so that a skipped record leaves no trace in the numbering.
        image_id = image_ids.number(image, raw.source, fields.get("image_id"))
        return ImageTextRecord(image, captions, image_id, concepts, raw.where)

    return read_records(sources, parse, on_bad_record=on_bad_record)


def read_records(
    sources,
    parse: Callable[[Mapping, RawRecord], _RecordType | None],
    *,
    on_bad_record: Literal["raise", "skip"] = "raise",
) -> Annotations[_RecordType]:
    """
    Reads the records of all sources for any task. `parse(fields, raw)` makes a task's record out of a record's fields,
    or raises `RecordProblem`. It returns None for a record that was not asked for, which is not counted. Everything
    else is as in `read_image_text_records`.
    """
    if on_bad_record not in ("raise", "skip"):
        raise ValueError(f'on_bad_record={on_bad_record!r} must be "raise" or "skip"')
    sources = list_sources(sources)
    report = AnnotationReport()
    records = PackedRecords(shared_types=(EmbeddedImages,))
    for source in sources:
        for raw in iterate_source(source):
            try:
                record = parse(_fields_of(raw), raw)
            except RecordProblem as problem:
                report.causes[problem.label] += 1
                if len(report.examples) < MAX_PROBLEMS_SHOWN:
                    report.examples.append(f"{raw.where}: {problem.message}")
            else:
                if record is None:
                    continue
                records.append(record)
            report.num_read += 1
    report.num_kept = len(records)
    if report.num_skipped and on_bad_record == "raise":
        raise AnnotationError(
            f'the annotations have bad records; correct them, or leave them out with on_bad_record="skip".\n'
            f"{report.summary()}"
        )
    if not records:
        raise AnnotationError(f"no usable record in {', '.join(map(str, sources))}: {report.summary()}")
    if report.num_skipped:
        logger.warning("Annotations: %s", report.summary())
    else:
        logger.info("Annotations: %s", report.summary())
    return Annotations(records, report)


def _fields_of(raw: RawRecord) -> Mapping:
    if raw.problem is not None:
        raise raw.problem
    if not isinstance(raw.value, Mapping):
        raise RecordProblem("", "not an object", 'write {"image": ..., ...}', f"got {shorten(raw.value)}")
    return raw.value
