"""Annotations as validated records: the schema of pretraining and retrieval, and the reading that every task shares."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from PIL import Image
from transformers.utils import logging

from .annotation_sources import AnnotationError, RawRecord, iterate_source, list_sources, shorten
from .image_files import EmbeddedImage, EmbeddedImages, open_image
from .record_storage import PackedRecords
from .text_cleaning import clean_caption


logger = logging.get_logger(__name__)

MAX_PROBLEMS_SHOWN = 10
_RecordType = TypeVar("_RecordType")


@dataclass(frozen=True, slots=True)
class ImageTextRecord:
    """
    A picture with its captions and concepts.

    Attributes:
        image: path of the picture, or a picture inside a dataset.
        captions: one or more captions as written.
        image_id: equal for records of the same picture; numbered from 0 in order of first appearance.
        concepts: the visual concepts without repetitions, in the order given (may be empty).
        where: file and record, for messages.
    """

    image: str | EmbeddedImage
    captions: tuple[str, ...]
    image_id: int
    concepts: tuple[str, ...]
    where: str

    def load_image(self) -> Image.Image:
        """The picture as upright RGB. Raises `ImageReadError`."""
        return open_image(self.image, self.where)


@dataclass
class AnnotationReport:
    """What became of the records that were read: how many were kept, and why others were not, with examples."""

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


class RecordProblem(Exception):
    """
    Raised by a record parser for a record that cannot be used.

    Args:
        field_name: the field, or "" for the record as a whole.
        cause: what is wrong, in words that are the same for all such records (they are counted).
        remedy: what to write instead.
        detail: what was found.
    """

    def __init__(self, field_name: str, cause: str, remedy: str, detail: str = ""):
        super().__init__(field_name, cause, remedy, detail)
        self.label = f"field {field_name!r}: {cause}" if field_name else cause
        self.message = f"{self.label}{f' ({detail})' if detail else ''}; {remedy}"


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
    name in the published files, is read as `concepts`. `image_id` may be of any type. Two records have the same picture
    when their paths are equal, or when their `image_id` is equal and they come from the same source (numbers of different
    corpora may clash). A picture stored inside a Hugging Face dataset has no path to compare: it is a picture of its own
    unless an `image_id` column says otherwise.

    Args:
        sources: one source or a list of sources that are concatenated. A source is the path of a JSON list or of a JSONL
            file (one record per line, suffix .jsonl), a folder written by `Dataset.save_to_disk`, a `DatasetSource` (or
            a mapping with its fields), or a `datasets.Dataset`.
        image_root: folder that relative image paths start from (default: the annotation file's folder; for a dataset
            the current folder).
        on_bad_record: "raise" refuses the annotations and lists the first problems; "skip" leaves the bad records out,
            logs a summary and returns it in the report.
        check_images: whether to look that each picture's file exists. Turn it off where that is slow; a missing file is
            then an error when it is loaded.

    Returns:
        The records in order, with the report.

    Raises:
        AnnotationError: a missing or unreadable file (in both modes), a bad record ("raise"), no record left.
    """
    picture_ids = _PictureIds()
    known_files: dict[str, bool] | None = {} if check_images else None

    def parse(fields: Mapping, raw: RawRecord) -> ImageTextRecord:
        image = _read_image(fields, image_root if image_root is not None else raw.default_root, known_files)
        captions = _read_captions(fields)
        concepts = _read_concepts(fields)
        # Last, so that a skipped record leaves no trace in the numbering.
        image_id = picture_ids.number(image, raw.source, fields.get("image_id"))
        return ImageTextRecord(image, captions, image_id, concepts, raw.where)

    return read_records(sources, parse, on_bad_record=on_bad_record)


def read_records(
    sources,
    parse: Callable[[Mapping, RawRecord], _RecordType],
    *,
    on_bad_record: Literal["raise", "skip"] = "raise",
) -> Annotations[_RecordType]:
    """
    Reads the records of all sources for any task. `parse(fields, raw)` makes a task's record out of a record's fields,
    or raises `RecordProblem`; everything else is as in `read_image_text_records`.
    """
    if on_bad_record not in ("raise", "skip"):
        raise ValueError(f'on_bad_record={on_bad_record!r} must be "raise" or "skip"')
    sources = list_sources(sources)
    report = AnnotationReport()
    records = PackedRecords(shared_types=(EmbeddedImages,))
    for source in sources:
        for raw in iterate_source(source):
            report.num_read += 1
            try:
                records.append(parse(_fields_of(raw), raw))
            except RecordProblem as problem:
                report.causes[problem.label] += 1
                if len(report.examples) < MAX_PROBLEMS_SHOWN:
                    report.examples.append(f"{raw.where}: {problem.message}")
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
    if raw.syntax_error is not None:
        raise RecordProblem("", "not readable as JSON", "write one JSON object per line", raw.syntax_error)
    if not isinstance(raw.value, Mapping):
        raise RecordProblem("", "not an object", 'write {"image": ..., "caption": ...}', f"got {shorten(raw.value)}")
    return raw.value


def _read_image(
    fields: Mapping, image_root: str | os.PathLike, known_files: dict[str, bool] | None
) -> str | EmbeddedImage:
    remedy = 'give the path of the picture, such as "images/1.jpg"'
    image = _required(fields, "image", remedy)
    if isinstance(image, EmbeddedImage):
        return image
    if not isinstance(image, str):
        raise RecordProblem("image", "wrong type", remedy, f"got {shorten(image)}")
    if not image.strip():
        raise RecordProblem("image", "empty", remedy)
    path = os.path.normpath(os.path.join(image_root, image))
    if known_files is not None:
        if path not in known_files:
            known_files[path] = os.path.isfile(path)
        if not known_files[path]:
            raise RecordProblem(
                "image", "file not found", "add the file, or set image_root to the folder that paths start from", path
            )
    return path


def _read_captions(fields: Mapping) -> tuple[str, ...]:
    remedy = "write a text, or a list of texts"
    value = _required(fields, "caption", remedy)
    captions = [value] if isinstance(value, str) else value
    if not isinstance(captions, list | tuple):
        raise RecordProblem("caption", "wrong type", remedy, f"got {shorten(value)}")
    if not captions:
        raise RecordProblem("caption", "empty", remedy, "an empty list")
    for caption in captions:
        if not isinstance(caption, str):
            raise RecordProblem("caption", "wrong type", remedy, f"got {shorten(caption)}")
        # Punctuation alone is cleaned away later and would leave an empty text.
        if not clean_caption(caption, max_words=1).strip():
            raise RecordProblem("caption", "empty", remedy, f"{caption!r} holds no word")
    return tuple(captions)


def _read_concepts(fields: Mapping) -> tuple[str, ...]:
    name = "kwords" if fields.get("concepts") is None and "kwords" in fields else "concepts"
    remedy = 'write a list of words, such as ["dog", "grass"], or leave the field out'
    value = fields.get(name)
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise RecordProblem(name, "wrong type", remedy, f"got {shorten(value)}")
    concepts = {}
    for concept in value:
        if not isinstance(concept, str):
            raise RecordProblem(name, "wrong type", remedy, f"got {shorten(concept)}")
        concept = concept.strip()
        if not concept:
            raise RecordProblem(name, "an empty concept", remedy)
        concepts[concept] = None
    return tuple(concepts)


def _required(fields: Mapping, name: str, remedy: str):
    if fields.get(name) is None:
        found = f"the record has {sorted(fields)}" if name not in fields else "its value is null"
        raise RecordProblem(name, "missing", remedy, found)
    return fields[name]


class _PictureIds:
    """Numbers pictures 0, 1, ... in order of first appearance."""

    def __init__(self):
        self._by_key: dict[object, int] = {}
        self._count = 0

    def number(self, image: str | EmbeddedImage, source: str, image_id) -> int:
        keys = []
        if isinstance(image, str):
            keys.append(image)
        if image_id is not None:
            keys.append((source, json.dumps(image_id, sort_keys=True, default=repr)))
        # The path decides where both are known: it is the picture itself.
        number = next((self._by_key[key] for key in keys if key in self._by_key), None)
        if number is None:
            number = self._count
            self._count += 1
        for key in keys:
            self._by_key.setdefault(key, number)
        return number
