"""Sources of annotations: files, folders, patterns, shards and datasets, found and opened as streams of raw records."""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from glob import glob, has_magic
from pathlib import Path

from ..arguments import did_you_mean
from .annotations_refcoco import RefCocoSource
from .declared_roots import declared_root
from .json_reading import require_regular_file
from .raw_records import AnnotationError, RecordSource
from .source_datasets import TableSource, load_dataset_split
from .source_files import TEXT_SUFFIXES, TextFileSource
from .source_folders import ImageFolderSource, find_caption_file, holds_images
from .source_parquet import PARQUET_SUFFIX, load_parquet
from .source_tar import TAR_SUFFIX, TarSource


_NUMBER_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_BRACES = re.compile(r"\{([^{}]*)\}")
_MOST_EXPANDED = 1_000_000


@dataclass(frozen=True)
class CorpusSource:
    """
    A source of annotations with what belongs to it alone.

    Attributes:
        path: a file (JSON, JSONL, CSV, TSV, Parquet, tar), or a pattern of files (`*`, `{00000..00099}`). It may be a folder
            of Parquet files, of tar shards or of images. It may be a folder of `save_to_disk`, or a name on the Hub.
        name: configuration of a dataset of the Hub.
        split: the split of a dataset; of files, the records whose field `split` says so. None takes everything, and of
            a dataset "train" or the only split.
        columns: which column holds which annotation field, where the names differ, such as `{"caption": "text"}`; a field
            that is a list may be put together from several columns: `{"images": ["left", "right"]}`.
        image_root: folder that relative image paths of this source start from.
        weight: how often samples come from this source, relative to the others; None for its share of the records.
        streaming: read from beginning to end instead of by number; possible in training.
    """

    path: str
    name: str | None = None
    split: str | None = None
    columns: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    image_root: str | None = None
    weight: float | None = None
    streaming: bool = False

    def __post_init__(self):
        if not isinstance(self.path, str) or not self.path:
            raise AnnotationError(f"a source's path must be a text, got {self.path!r}")
        if self.weight is not None and not (isinstance(self.weight, int | float) and 0 < self.weight < float("inf")):
            raise AnnotationError(f"{self.path}: weight={self.weight!r} must be a number above 0")

    def __str__(self) -> str:
        return ":".join(part for part in (self.path, self.name, self.split) if part)

    @classmethod
    def from_mapping(cls, mapping: Mapping) -> "CorpusSource":
        """Raises `AnnotationError` for unknown or missing fields."""
        known = [source_field.name for source_field in fields(cls)]
        unknown = [key for key in mapping if key not in known]
        if unknown or "path" not in mapping:
            hint = did_you_mean(str(unknown[0]), known) if "path" in mapping else ""
            raise AnnotationError(
                f"an annotation source as a mapping has 'path' and perhaps others of {known}, but this one has "
                f"{list(mapping)}{hint}; of a DatasetDict choose one split"
            )
        return cls(**{**mapping, "columns": mapping.get("columns") or {}})


@dataclass(frozen=True)
class OpenedSource:
    """
    A source that can be read.

    Attributes:
        records: the reader of its records.
        split: only records whose field `split` says so are wanted; None for all.
        weight: as in `CorpusSource`.
    """

    records: RecordSource
    split: str | None = None
    weight: float | None = None


def list_sources(sources) -> list:
    """One source, or several in a list, as a list. Raises `AnnotationError` where there is none."""
    if isinstance(sources, Sequence) and not isinstance(sources, str | bytes):
        if not sources:
            raise AnnotationError("no annotation source given; name at least one file or dataset")
        return list(sources)
    return [sources]


def open_sources(sources, image_root=None) -> list[OpenedSource]:
    """
    Finds and opens sources.

    Args:
        sources: one source or a list of them. A source is a path as in `CorpusSource`, a `CorpusSource`, or a mapping with
            its fields. It may be a mapping with the fields of a `RefCocoSource`, a `datasets.Dataset`, or a `RecordSource`.
        image_root: folder that relative image paths start from, for all sources or one for each; None for what the
            sources say themselves.

    Raises:
        AnnotationError: a missing file, column or split; a source that can only be streamed.
        TypeError: something else was given.
    """
    sources = list_sources(sources)
    roots = roots_of_sources(sources, image_root)
    return [opened for source, root in zip(sources, roots, strict=True) for opened in _open(source, root)]


def roots_of_sources(sources: Sequence, image_root) -> list:
    """The folder for each source. Raises `AnnotationError` for another number of folders than of sources."""
    if image_root is None or isinstance(image_root, str | os.PathLike):
        return [image_root] * len(sources)
    if len(image_root) != len(sources):
        raise AnnotationError(
            f"image_root names {len(image_root)} folders for {len(sources)} sources; give one for all, or one for each"
        )
    return list(image_root)


def as_corpus_source(source) -> CorpusSource | None:
    """A path or a mapping as a `CorpusSource`; None for a source of another kind."""
    if isinstance(source, CorpusSource):
        return source
    if isinstance(source, Mapping) and "refs" not in source:
        return CorpusSource.from_mapping(source)
    return CorpusSource(os.fspath(source)) if isinstance(source, str | os.PathLike) else None


def expand_pattern(path: str) -> list[str]:
    """The paths or addresses that a pattern stands for, in order; a path without one stands for itself."""
    expanded = _expand_braces(os.path.expanduser(path))
    found = []
    for one in expanded:
        # A file's own name may look like a pattern.
        if has_magic(one) and not is_remote(one) and not os.path.lexists(one):
            matches = sorted(glob(one, recursive=True))
            if not matches:
                raise AnnotationError(f"annotation file not found: nothing matches {one}; check the pattern")
            found += matches
        else:
            found.append(one)
    return found


def is_remote(path: str) -> bool:
    """Whether a path is an address on another machine."""
    return "://" in path


def _expand_braces(path: str) -> list[str]:
    match = _BRACES.search(path)
    if match is None or os.path.lexists(path):
        return [path]
    inner = match[1]
    if numbers := _NUMBER_RANGE.fullmatch(inner):
        first, last = numbers.groups()
        if int(last) - int(first) >= _MOST_EXPANDED:
            raise AnnotationError(
                f"{path}: {{{inner}}} stands for more than {_MOST_EXPANDED} files; correct the range"
            )
        width = len(first) if first.startswith("0") or len(first) == len(last) else 0
        choices = [str(number).zfill(width) for number in range(int(first), int(last) + 1)]
    else:
        choices = inner.split(",")
    return [
        rest for choice in choices for rest in _expand_braces(path[: match.start()] + choice + path[match.end() :])
    ]


def _open(source, image_root) -> list[OpenedSource]:
    if isinstance(source, RecordSource):
        return [OpenedSource(source)]
    if isinstance(source, Mapping) and "refs" in source:
        return [OpenedSource(RefCocoSource.from_mapping(source))]
    spec = as_corpus_source(source)
    if spec is None:
        datasets = sys.modules.get("datasets")
        if datasets is not None and isinstance(source, datasets.Dataset):
            name = f"dataset {source.info.dataset_name or 'in memory'}"
            return [OpenedSource(TableSource(source, name, {}, image_root=_root(image_root)))]
        raise TypeError(
            "an annotation source must be a path, a CorpusSource, a mapping with its fields, or a datasets.Dataset (one "
            f"split, not streamed), got {type(source).__name__}"
        )
    root = _root(spec.image_root if spec.image_root is not None else image_root)
    if spec.streaming:
        raise AnnotationError(
            f"{spec}: streaming is possible in training only (data.train of the scripts); leave it out here"
        )
    return [OpenedSource(records, split, spec.weight) for records, split in _open_paths(spec, root)]


def _root(image_root) -> Path | None:
    if image_root is None:
        return None
    root = Path(os.path.expanduser(image_root))
    if not root.is_dir():
        raise AnnotationError(f"image_root={str(image_root)!r} is no folder; name the one that image paths start from")
    return root


def _open_paths(spec: CorpusSource, root: Path | None) -> list[tuple[RecordSource, str | None]]:
    """Readers, each with the split that remains to be chosen among its records."""
    paths = expand_pattern(spec.path)
    if remote := next((path for path in paths if is_remote(path)), None):
        raise AnnotationError(
            f"{remote}: shards on another machine can only be streamed, in training (data.train); download them to read "
            "them here"
        )
    suffixes = {Path(path).suffix.lower() for path in paths}
    if suffixes == {TAR_SUFFIX}:
        return [(TarSource([Path(path) for path in paths], spec.columns), spec.split)]
    if suffixes == {PARQUET_SUFFIX} and all(os.path.isfile(path) for path in paths):
        return [(_parquet([Path(path) for path in paths], spec, root), spec.split)]
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            found += _open_folder(path, spec, root)
        elif path.suffix.lower() in TEXT_SUFFIXES:
            require_regular_file(path)
            found.append((TextFileSource(path, spec.columns, root), spec.split))
        elif path.exists() or path.suffix or len(paths) > 1:
            require_regular_file(path)
            raise AnnotationError(
                f"{path}: an unknown kind of annotation file; give *{', *'.join(TEXT_SUFFIXES)}, *{PARQUET_SUFFIX} or "
                f"*{TAR_SUFFIX}"
            )
        else:
            found.append((_dataset(spec, root), None))
    return found


def _dataset(spec: CorpusSource, root: Path | None) -> TableSource:
    dataset = load_dataset_split(os.path.expanduser(spec.path), spec.name, spec.split)
    return TableSource(dataset, f"dataset {spec}", spec.columns, image_root=root)


def _parquet(paths: list[Path], spec: CorpusSource, root: Path | None) -> TableSource:
    name = str(paths[0]) if len(paths) == 1 else f"{len(paths)} files from {paths[0]} on"
    table, damaged = load_parquet(paths)
    return TableSource(table, name, spec.columns, paths[0].parent, root, declared_root(paths[0]), damaged)


def _open_folder(folder: Path, spec: CorpusSource, root: Path | None) -> list[tuple[RecordSource, str | None]]:
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        return [(_dataset(spec, root), None)]
    # img2dataset leaves a log of its downloads as Parquet beside the shards.
    shards = sorted(folder.glob(f"*{TAR_SUFFIX}"))
    if shards:
        return [(TarSource(shards, spec.columns), spec.split)]
    tables = sorted(folder.glob(f"*{PARQUET_SUFFIX}"))
    if tables and find_caption_file(folder) is None:
        return [(_parquet(tables, spec, root), spec.split)]
    if holds_images(folder):
        return [(ImageFolderSource(folder, root), spec.split)]
    raise AnnotationError(
        f"{folder}: the folder holds no images, Parquet files or tar shards, and no saved dataset; name the annotation "
        "file itself"
    )
