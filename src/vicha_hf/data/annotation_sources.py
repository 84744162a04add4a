"""Sources of annotations: JSON lists, JSONL files and Hugging Face datasets, as one stream of raw records."""

import json
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from .image_files import EmbeddedImage, EmbeddedImages


_ROWS_AT_A_TIME = 1000
_IMAGE_FIELDS = ("image", "images")


class AnnotationError(ValueError):
    """Annotations that cannot be used; the message names file, record, field and remedy."""


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


@dataclass(frozen=True)
class DatasetSource:
    """
    A dataset of the `datasets` library.

    Attributes:
        path, name, split: as `datasets.load_dataset` takes them; a folder written by `save_to_disk` is loaded from there.
        columns: which column holds which annotation field, where the names differ, such as `{"caption": "text"}`. A
            list may be put together from several columns: `{"images": ["left", "right"]}`.
    """

    path: str
    name: str | None = None
    split: str = "train"
    columns: Mapping[str, str | Sequence[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        return "dataset " + ":".join(part for part in (self.path, self.name, self.split) if part)


@dataclass(frozen=True, slots=True)
class RawRecord:
    """
    A record as it was found.

    Attributes:
        value: the decoded JSON, or the row of a dataset; None where there is a `problem`.
        source: the name of the file or dataset.
        index: position in the source, from 0.
        default_root: folder that relative image paths start from unless the user says otherwise.
        line: line of a JSONL file, from 1.
        problem: why there is no value.
    """

    value: object
    source: str
    index: int
    default_root: Path
    line: int | None = None
    problem: RecordProblem | None = None

    @property
    def where(self) -> str:
        line = f" (line {self.line})" if self.line is not None else ""
        return f"{self.source}, record {self.index}{line}"


class RecordSource(ABC):
    """A source whose files are no list of records, such as those of RefCOCO+."""

    @abstractmethod
    def iterate_records(self) -> Iterator[RawRecord]:
        """The records, in the form that the task's reader expects."""


def list_sources(sources) -> list:
    """One source, or several in a list, as a list. Raises `AnnotationError` where there is none."""
    if isinstance(sources, Sequence) and not isinstance(sources, str | bytes):
        if not sources:
            raise AnnotationError("no annotation source given; name at least one file or dataset")
        return list(sources)
    return [sources]


def iterate_source(source) -> Iterator[RawRecord]:
    """
    The raw records of a path, a `DatasetSource`, a mapping with its fields, a `datasets.Dataset`, or a `RecordSource`.

    Raises:
        AnnotationError: a missing file, an unreadable JSON list, a missing column or split.
        TypeError: something else was given.
    """
    if isinstance(source, RecordSource):
        return source.iterate_records()
    if isinstance(source, Mapping):
        source = _dataset_source(source)
    if isinstance(source, DatasetSource):
        return _iterate_dataset(_load_dataset(source), str(source), source.columns)
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.is_dir():
            return iterate_source(DatasetSource(str(path)))
        if not path.is_file():
            raise AnnotationError(
                f"annotation file not found: {path}; check the path (a dataset of the Hub is given as "
                '{"path": "organisation/name", "split": "train"})'
            )
        return _iterate_jsonl(path) if path.suffix in (".jsonl", ".ndjson") else _iterate_json(path)
    datasets = sys.modules.get("datasets")
    if datasets is not None and isinstance(source, datasets.Dataset):
        return _iterate_dataset(source, f"dataset {source.info.dataset_name or 'in memory'}", {})
    raise TypeError(
        "an annotation source must be a path, a DatasetSource, a mapping with its fields, or a datasets.Dataset (one "
        f"split, not streamed), got {type(source).__name__}"
    )


def _dataset_source(mapping: Mapping) -> DatasetSource:
    known = [dataset_field.name for dataset_field in fields(DatasetSource)]
    unknown = [key for key in mapping if key not in known]
    if unknown or "path" not in mapping:
        raise AnnotationError(
            f"a dataset as an annotation source is a mapping with 'path' and perhaps others of {known}, but this one has "
            f"{list(mapping)}; of a DatasetDict choose one split"
        )
    return DatasetSource(**mapping)


def shorten(value) -> str:
    """Type and beginning of a value, for messages."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def _iterate_json(path: Path) -> Iterator[RawRecord]:
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
            f"{path}: the top level must be a list of records, got {shorten(content)}; write [record, record, ...]"
        )
    name, folder = str(path), path.parent
    for index, value in enumerate(content):
        yield RawRecord(value, name, index, folder)


def _iterate_jsonl(path: Path) -> Iterator[RawRecord]:
    name, folder = str(path), path.parent
    index = 0
    with path.open("rb") as file:
        for line_number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            value, problem = None, None
            try:
                value = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                problem = RecordProblem("", "not readable as JSON", "write one JSON object per line", str(error))
            yield RawRecord(value, name, index, folder, line_number, problem)
            index += 1


def _load_dataset(source: DatasetSource):
    import datasets

    folder = Path(source.path)
    if (folder / "state.json").is_file():
        return datasets.load_from_disk(source.path)
    if (folder / "dataset_dict.json").is_file():
        splits = datasets.load_from_disk(source.path)
        if source.split not in splits:
            raise AnnotationError(f"{source}: no split {source.split!r}; choose among {sorted(splits)}")
        return splits[source.split]
    return datasets.load_dataset(source.path, source.name, split=source.split)


def _iterate_dataset(dataset, name: str, columns: Mapping[str, str | Sequence[str]]) -> Iterator[RawRecord]:
    from datasets import ClassLabel

    for field_name, column in columns.items():
        for missing in [column for column in _as_list(column) if column not in dataset.column_names]:
            raise AnnotationError(
                f"{name}: no column {missing!r} for the field {field_name!r}; choose among {dataset.column_names}"
            )
    dataset = dataset.with_format(None)
    columns_of = {column: [column] for column in dataset.column_names}
    columns_of |= {field_name: _as_list(column) for field_name, column in columns.items()}
    image_columns = {
        column: _iterate_images(dataset, column)
        for field_name in _IMAGE_FIELDS
        for column in columns_of.get(field_name, [])
        if _holds_images(dataset.features[column])
    }
    # Reading the texts must not read gigabytes of images.
    read_columns = sorted(
        {column for group in columns_of.values() for column in group if not _holds_images(dataset.features[column])}
    )
    if not read_columns:
        raise AnnotationError(f"{name}: it has nothing but images ({dataset.column_names}); add a column of texts")
    label_names = {
        column: feature.int2str for column, feature in dataset.features.items() if isinstance(feature, ClassLabel)
    }
    row = 0
    for batch in dataset.select_columns(read_columns).iter(batch_size=_ROWS_AT_A_TIME):
        for position in range(len(next(iter(batch.values())))):
            cells = {column: values[position] for column, values in batch.items()}
            for column, name_of in label_names.items():
                # datasets marks a row without label as -1.
                if cells.get(column) is not None:
                    cells[column] = name_of(cells[column]) if cells[column] >= 0 else None
            cells |= {column: next(images) for column, images in image_columns.items()}
            record = {
                field_name: cells[group[0]] if len(group) == 1 else [cells[column] for column in group]
                for field_name, group in columns_of.items()
                if all(column in cells for column in group)
            }
            yield RawRecord(record, name, row, Path())
            row += 1


def _as_list(column: str | Sequence[str]) -> list[str]:
    return [column] if isinstance(column, str) else list(column)


def _holds_images(feature) -> bool:
    from datasets import Image

    return isinstance(feature, Image) or isinstance(getattr(feature, "feature", None), Image)


def _iterate_images(dataset, column: str) -> Iterator[str | EmbeddedImage | list[str | EmbeddedImage] | None]:
    """
    Yields an image per row, or a list of them where the column holds lists. It is a path if the image has a file of
    its own, else its place in the dataset. A row without an image gives None.
    """
    import pyarrow.compute
    from datasets import Image, List

    in_lists = not isinstance(dataset.features[column], Image)
    undecoded = List(Image(decode=False)) if in_lists else Image(decode=False)
    rows = dataset.select_columns([column]).cast_column(column, undecoded)
    images = EmbeddedImages(rows, column)
    row = 0
    for batch in rows.with_format("arrow").iter(batch_size=_ROWS_AT_A_TIME):
        storage = batch[column].combine_chunks()
        lengths = pyarrow.compute.list_value_length(storage).to_pylist() if in_lists else [1] * len(storage)
        entries = pyarrow.compute.list_flatten(storage) if in_lists else storage
        is_stored = pyarrow.compute.is_valid(pyarrow.compute.struct_field(entries, "bytes")).to_pylist()
        paths = pyarrow.compute.struct_field(entries, "path").to_pylist()
        cells = iter(zip(is_stored, paths, strict=True))
        for length in lengths:
            found = []
            for position in range(length or 0):
                stored, path = next(cells)
                found.append(EmbeddedImage(images, row, position if in_lists else None) if stored else path)
            yield found if in_lists else found[0]
            row += 1
