"""Annotation files and Hugging Face datasets as validated records of pictures with their captions and concepts."""

import io
import json
import os
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Literal, TypeVar

from PIL import Image
from transformers.utils import logging

from ..models.image_processing_vicha import to_upright_rgb
from .text_cleaning import clean_caption


logger = logging.get_logger(__name__)

MAX_PROBLEMS_SHOWN = 10
_RecordType = TypeVar("_RecordType")


class AnnotationError(ValueError):
    """Annotations that cannot be used; the message names file, record, field and remedy."""


class ImageReadError(RuntimeError):
    """A picture that could not be decoded; the message names the file and the record that asks for it."""


# ---------------------------------------------------------------------------------------------------------------------
# Pictures
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EmbeddedImage:
    """A picture stored inside a Hugging Face dataset, decoded only when it is opened."""

    dataset: object
    row: int
    column: str

    def __str__(self) -> str:
        return f"column {self.column!r}, row {self.row} of the dataset"

    def read_bytes(self) -> bytes:
        return self.dataset[self.row][self.column]["bytes"]


def open_image(image: str | EmbeddedImage, where: str) -> Image.Image:
    """
    Decodes a picture completely, as upright RGB.

    Args:
        image: a path, or a picture inside a dataset.
        where: the record that asks for it, for the error message.

    Raises:
        ImageReadError: the file is missing, truncated, or no picture.
    """
    try:
        with Image.open(io.BytesIO(image.read_bytes()) if isinstance(image, EmbeddedImage) else image) as opened:
            opened.load()
            return to_upright_rgb(opened)
    # Pillow's decoders raise SyntaxError and struct.error for broken files too.
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        raise ImageReadError(
            f"{where}: cannot read the picture {image} ({type(error).__name__}: {error}); replace the file, or remove the "
            "record from the annotations"
        ) from error


# ---------------------------------------------------------------------------------------------------------------------
# Records
# ---------------------------------------------------------------------------------------------------------------------


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
    """What became of the records that were read: nothing is left out silently."""

    num_read: int = 0
    num_kept: int = 0
    causes: Counter = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    @property
    def num_skipped(self) -> int:
        return self.num_read - self.num_kept

    def summary(self) -> str:
        lines = [f"{self.num_kept} of {self.num_read} records kept, {self.num_skipped} skipped"]
        lines += [f"  {count} x {cause}" for cause, count in self.causes.most_common()]
        lines += [f"  e.g. {example}" for example in self.examples]
        return "\n".join(lines)


@dataclass
class Annotations(Generic[_RecordType]):
    """Validated records and the report of how they came about."""

    records: list[_RecordType]
    report: AnnotationReport

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> _RecordType:
        return self.records[index]

    def __iter__(self) -> Iterator[_RecordType]:
        return iter(self.records)


@dataclass(frozen=True)
class DatasetSource:
    """
    A dataset of the `datasets` library.

    Attributes:
        path, name, split: as `datasets.load_dataset` takes them; a folder written by `save_to_disk` is loaded from there.
        columns: which column holds which annotation field, where the names differ, such as `{"caption": "text"}`.
    """

    path: str
    name: str | None = None
    split: str = "train"
    columns: Mapping[str, str] = field(default_factory=dict)


class ProblemInRecord(Exception):
    """Raised by a record parser: which field, a short cause (counted in the report), details and what to do."""

    def __init__(self, field_name: str, cause: str, remedy: str, detail: str = ""):
        super().__init__(field_name, cause, remedy, detail)
        self.field_name, self.cause, self.remedy, self.detail = field_name, cause, remedy, detail

    @property
    def label(self) -> str:
        return f"field {self.field_name!r}: {self.cause}" if self.field_name else self.cause

    def describe(self, where: str) -> str:
        detail = f" ({self.detail})" if self.detail else ""
        return f"{where}: {self.label}{detail}; {self.remedy}"


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _RawRecord:
    value: object
    where: str
    source: str
    default_root: Path
    # A line of a JSONL file that is no JSON.
    problem: ProblemInRecord | None = None


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
    existing: dict[str, bool] = {}

    def parse(raw: _RawRecord) -> ImageTextRecord:
        fields = raw.value
        image = _read_image_field(fields, raw, image_root, existing if check_images else None)
        captions = _read_captions(fields)
        concepts = _read_concepts(fields)
        # Last, so that a skipped record leaves no trace in the numbering.
        image_id = picture_ids.number(image, raw.source, fields.get("image_id"))
        return ImageTextRecord(image, captions, image_id, concepts, raw.where)

    return read_records(sources, parse, on_bad_record=on_bad_record)


def read_records(
    sources,
    parse: Callable[[_RawRecord], _RecordType],
    *,
    on_bad_record: Literal["raise", "skip"] = "raise",
) -> Annotations[_RecordType]:
    """
    Reads the records of all sources with a task's own `parse`, which raises `ProblemInRecord` for a bad one. Everything
    else is as in `read_image_text_records`.
    """
    if on_bad_record not in ("raise", "skip"):
        raise ValueError(f'on_bad_record={on_bad_record!r} must be "raise" or "skip"')
    report = AnnotationReport()
    records = []
    names = []
    for source in _as_sources(sources):
        for raw in _iterate_source(source):
            if not names or names[-1] != raw.source:
                names.append(raw.source)
            report.num_read += 1
            try:
                if raw.problem is not None:
                    raise raw.problem
                if not isinstance(raw.value, Mapping):
                    raise ProblemInRecord(
                        "", "not an object", 'write {"image": ..., "caption": ...}', f"got {_short(raw.value)}"
                    )
                records.append(parse(raw))
            except ProblemInRecord as problem:
                report.causes[problem.label] += 1
                if len(report.examples) < MAX_PROBLEMS_SHOWN:
                    report.examples.append(problem.describe(raw.where))
    report.num_kept = len(records)
    if report.num_skipped and on_bad_record == "raise":
        shown = "\n".join(f"  {example}" for example in report.examples)
        more = report.num_skipped - len(report.examples)
        raise AnnotationError(
            f"{report.num_skipped} of {report.num_read} annotation records cannot be used"
            + (f" (the first {len(report.examples)} are shown)" if more else "")
            + f':\n{shown}\nCorrect them, or leave them out with on_bad_record="skip".'
        )
    if not records:
        raise AnnotationError(
            f"no usable record in {', '.join(names) or 'the given sources'}: {report.summary()}"
            if report.num_read
            else f"no record in {', '.join(str(source) for source in _as_sources(sources))}; the file or dataset is empty"
        )
    if report.num_skipped:
        logger.warning("Annotations: %s", report.summary())
    else:
        logger.info("Annotations: %s", report.summary())
    return Annotations(records, report)


def _as_sources(sources) -> list:
    if isinstance(sources, Sequence) and not isinstance(sources, str | bytes):
        if not sources:
            raise AnnotationError("no annotation source given; name at least one file or dataset")
        return list(sources)
    return [sources]


def _iterate_source(source) -> Iterator[_RawRecord]:
    if isinstance(source, Mapping):
        source = DatasetSource(**source)
    if isinstance(source, DatasetSource):
        return _iterate_dataset(_load_dataset(source), _dataset_name(source), source.columns)
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.is_dir():
            return _iterate_source(DatasetSource(str(path)))
        if not path.is_file():
            raise AnnotationError(f"annotation file not found: {path}; check the path")
        return _iterate_jsonl(path) if path.suffix in (".jsonl", ".ndjson") else _iterate_json(path)
    if hasattr(source, "features") and hasattr(source, "with_format"):
        return _iterate_dataset(source, f"dataset {source.info.dataset_name or 'in memory'}", {})
    raise TypeError(
        "an annotation source must be a path, a DatasetSource, a mapping with its fields or a datasets.Dataset, "
        f"got {type(source).__name__}"
    )


def _iterate_json(path: Path) -> Iterator[_RawRecord]:
    try:
        with path.open(encoding="utf-8") as file:
            content = json.load(file)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AnnotationError(
            f"{path}: not readable as JSON ({error}); write a JSON list of records, or name a file with one record per "
            "line *.jsonl"
        ) from error
    if not isinstance(content, list):
        raise AnnotationError(
            f"{path}: the top level must be a list of records, got {_short(content)}; write [record, record, ...]"
        )
    for index, value in enumerate(content):
        yield _RawRecord(value, f"{path}, record {index}", str(path), path.parent)


def _iterate_jsonl(path: Path) -> Iterator[_RawRecord]:
    index = 0
    with path.open("rb") as file:
        for line_number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {line_number} (record {index})"
            value, problem = None, None
            try:
                value = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                problem = ProblemInRecord("", "not readable as JSON", "write one JSON object per line", str(error))
            yield _RawRecord(value, where, str(path), path.parent, problem)
            index += 1


# ---------------------------------------------------------------------------------------------------------------------
# Hugging Face datasets
# ---------------------------------------------------------------------------------------------------------------------


def _load_dataset(source: DatasetSource):
    import datasets

    if (Path(source.path) / "state.json").is_file():
        return datasets.load_from_disk(source.path)
    if (Path(source.path) / "dataset_dict.json").is_file():
        splits = datasets.load_from_disk(source.path)
        if source.split not in splits:
            raise AnnotationError(f"{source.path}: no split {source.split!r}; it has {sorted(splits)}")
        return splits[source.split]
    return datasets.load_dataset(source.path, source.name, split=source.split)


def _dataset_name(source: DatasetSource) -> str:
    return "dataset " + ":".join(part for part in (source.path, source.name, source.split) if part)


def _iterate_dataset(dataset, name: str, columns: Mapping[str, str]) -> Iterator[_RawRecord]:
    from datasets import Image as ImageFeature

    for field_name, column in columns.items():
        if column not in dataset.column_names:
            raise AnnotationError(
                f"{name}: no column {column!r} for the field {field_name!r}; it has {dataset.column_names}"
            )
    column_of = {column: column for column in dataset.column_names} | dict(columns)
    image_column = column_of.get("image")
    embedded = image_column is not None and isinstance(dataset.features[image_column], ImageFeature)
    text_columns = {field_name: column for field_name, column in column_of.items() if column != image_column}
    paths = None
    if embedded:
        dataset = dataset.cast_column(image_column, ImageFeature(decode=False))
        paths = _embedded_image_paths(dataset, image_column)
    elif image_column is not None:
        text_columns["image"] = image_column
    # Without the image column: reading a row must not read its picture.
    texts = dataset.select_columns(sorted(set(text_columns.values())))
    for row in range(len(dataset)):
        values = texts[row]
        record = {field_name: values[column] for field_name, column in text_columns.items()}
        if paths is not None:
            record["image"] = next(paths) or EmbeddedImage(dataset, row, image_column)
        yield _RawRecord(record, f"{name}, record {row}", name, Path())


def _embedded_image_paths(dataset, column: str) -> Iterator[str | None]:
    """Per row the path of a picture that lies in a file of its own, None for one stored in the dataset."""
    import pyarrow.compute as compute

    for batch in dataset.select_columns([column]).with_format("arrow").iter(batch_size=1000):
        storage = batch[column].combine_chunks()
        stored = compute.is_valid(compute.struct_field(storage, "bytes")).to_pylist()
        for path, is_stored in zip(compute.struct_field(storage, "path").to_pylist(), stored, strict=True):
            yield None if is_stored else path


# ---------------------------------------------------------------------------------------------------------------------
# Fields
# ---------------------------------------------------------------------------------------------------------------------


def _read_image_field(
    fields: Mapping, raw: _RawRecord, image_root: str | os.PathLike | None, existing: dict[str, bool] | None
) -> str | EmbeddedImage:
    image = _required(fields, "image", 'give the path of the picture: "image": "images/1.jpg"')
    if isinstance(image, EmbeddedImage):
        return image
    if not isinstance(image, str):
        raise ProblemInRecord("image", "wrong type", "write the path as a string", f"got {_short(image)}")
    if not image.strip():
        raise ProblemInRecord("image", "empty", "give the path of the picture")
    path = os.path.normpath(os.path.join(image_root if image_root is not None else raw.default_root, image))
    if existing is not None:
        if path not in existing:
            existing[path] = os.path.isfile(path)
        if not existing[path]:
            raise ProblemInRecord(
                "image", "file not found", "add the file, or set image_root to the folder that paths start from", path
            )
    return path


def _read_captions(fields: Mapping) -> tuple[str, ...]:
    remedy = "write a text, or a list of texts"
    value = _required(fields, "caption", remedy)
    captions = [value] if isinstance(value, str) else value
    if not isinstance(captions, list | tuple):
        raise ProblemInRecord("caption", "wrong type", remedy, f"got {_short(value)}")
    if not captions:
        raise ProblemInRecord("caption", "empty", remedy, "an empty list")
    for caption in captions:
        if not isinstance(caption, str):
            raise ProblemInRecord("caption", "wrong type", remedy, f"got {_short(caption)}")
        # Punctuation alone is cleaned away later and would leave an empty text.
        if not clean_caption(caption, max_words=1).strip():
            raise ProblemInRecord("caption", "empty", remedy, f"{caption!r} holds no word")
    return tuple(captions)


def _read_concepts(fields: Mapping) -> tuple[str, ...]:
    name = "kwords" if "concepts" not in fields and "kwords" in fields else "concepts"
    remedy = 'write a list of words, such as ["dog", "grass"], or leave the field out'
    value = fields.get(name)
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise ProblemInRecord(name, "wrong type", remedy, f"got {_short(value)}")
    for concept in value:
        if not isinstance(concept, str):
            raise ProblemInRecord(name, "wrong type", remedy, f"got {_short(concept)}")
        if not concept.strip():
            raise ProblemInRecord(name, "an empty concept", remedy, f"{concept!r}")
    # Interned: a vocabulary of some ten thousand words is shared by millions of records.
    return tuple(dict.fromkeys(sys.intern(concept.strip()) for concept in value))


def _required(fields: Mapping, name: str, remedy: str):
    if fields.get(name) is None:
        found = f"the record has {sorted(fields)}" if name not in fields else "its value is null"
        raise ProblemInRecord(name, "missing", remedy, found)
    return fields[name]


def _short(value) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


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
