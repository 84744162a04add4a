"""Where annotations come from: JSON lists, JSONL files and Hugging Face datasets, as one stream of raw records."""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from .image_files import EmbeddedImage, EmbeddedImages


_ROWS_AT_A_TIME = 1000


class AnnotationError(ValueError):
    """Annotations that cannot be used; the message names file, record, field and remedy."""


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

    def __str__(self) -> str:
        return "dataset " + ":".join(part for part in (self.path, self.name, self.split) if part)


@dataclass(frozen=True, slots=True)
class RawRecord:
    """
    A record as it was found.

    Attributes:
        value: the decoded JSON, or the row of a dataset; None where `syntax_error` is set.
        source: the name of the file or dataset.
        index: position in the source, from 0.
        default_root: folder that relative image paths start from unless the user says otherwise.
        line: line of a JSONL file, from 1.
        syntax_error: why a line of a JSONL file is no JSON.
    """

    value: object
    source: str
    index: int
    default_root: Path
    line: int | None = None
    syntax_error: str | None = None

    @property
    def where(self) -> str:
        line = f" (line {self.line})" if self.line is not None else ""
        return f"{self.source}, record {self.index}{line}"


def list_sources(sources) -> list:
    """One source, or several in a list, as a list. Raises `AnnotationError` where there is none."""
    if isinstance(sources, Sequence) and not isinstance(sources, str | bytes):
        if not sources:
            raise AnnotationError("no annotation source given; name at least one file or dataset")
        return list(sources)
    return [sources]


def iterate_source(source) -> Iterator[RawRecord]:
    """
    The raw records of a path, a `DatasetSource`, a mapping with its fields, or a `datasets.Dataset`.

    Raises:
        AnnotationError: a missing file, an unreadable JSON list, a missing column or split.
        TypeError: something else was given.
    """
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
            value, syntax_error = None, None
            try:
                value = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                syntax_error = str(error)
            yield RawRecord(value, name, index, folder, line_number, syntax_error)
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


def _iterate_dataset(dataset, name: str, columns: Mapping[str, str]) -> Iterator[RawRecord]:
    from datasets import Image as ImageFeature

    for field_name, column in columns.items():
        if column not in dataset.column_names:
            raise AnnotationError(
                f"{name}: no column {column!r} for the field {field_name!r}; choose among {dataset.column_names}"
            )
    dataset = dataset.with_format(None)
    column_of = {column: column for column in dataset.column_names} | dict(columns)
    image_column = column_of.get("image")
    images, paths = None, None
    if image_column is not None and isinstance(dataset.features[image_column], ImageFeature):
        pictures = dataset.select_columns([image_column]).cast_column(image_column, ImageFeature(decode=False))
        images, paths = EmbeddedImages(pictures, image_column), _paths_of_embedded_images(pictures, image_column)
        # Reading the texts must not read gigabytes of pictures.
        column_of = {field_name: column for field_name, column in column_of.items() if column != image_column}
        if not column_of:
            raise AnnotationError(f"{name}: {image_column!r} is the only column; add one of captions")
    row = 0
    for batch in dataset.select_columns(sorted(set(column_of.values()))).iter(batch_size=_ROWS_AT_A_TIME):
        for position in range(len(next(iter(batch.values())))):
            record = {field_name: batch[column][position] for field_name, column in column_of.items()}
            if images is not None:
                record["image"] = next(paths) or EmbeddedImage(images, row)
            yield RawRecord(record, name, row, Path())
            row += 1


def _paths_of_embedded_images(pictures, column: str) -> Iterator[str | None]:
    """Per row the path of a picture that lies in a file of its own; None for one stored in the dataset."""
    import pyarrow.compute

    for batch in pictures.with_format("arrow").iter(batch_size=_ROWS_AT_A_TIME):
        storage = batch[column].combine_chunks()
        is_stored = pyarrow.compute.is_valid(pyarrow.compute.struct_field(storage, "bytes")).to_pylist()
        paths = pyarrow.compute.struct_field(storage, "path").to_pylist()
        for path, stored in zip(paths, is_stored, strict=True):
            yield None if stored else path
