"""Shards of a stream: what is read from beginning to end, on this machine or another, without knowing how long it is."""

import json
import lzma
import os
import tarfile
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from .annotation_sources import CorpusSource, as_corpus_source, expand_pattern, is_remote, list_sources
from .declared_roots import declared_root
from .json_reading import decode_json, decoding_problem
from .raw_records import AnnotationError, RawRecord, RecordProblem, unreadable_shard
from .source_datasets import BINARY_IMAGE_COLUMNS, require_columns
from .source_files import JSONL_SUFFIXES, renamed_fields
from .source_folders import IMAGE_SUFFIXES
from .source_hub import load_hub_dataset
from .source_parquet import PARQUET_SUFFIX, refuse_repeated_columns
from .source_tar import StrictTarInfo, is_wanted, record_of_members, sample_key
from .stored_images import EmbeddedImage, HeldImage


_ROWS_AT_A_TIME = 64
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
# Of an address, before its shard counts as one that cannot be read: a connection may fail for a moment.
_TRIES_AT_AN_ADDRESS = 3
_SECONDS_BETWEEN_TRIES = 1.0
# What files on this machine raise that are cut off or damaged, besides the errors of pyarrow.
_FILE_ERRORS = (OSError, EOFError, UnicodeDecodeError, tarfile.TarError, zlib.error, lzma.LZMAError)


class ShardReadError(AnnotationError):
    """
    A shard that is gone, cut off or damaged. A loading process hands on the message alone.

    Args:
        message: for people.
        where: the shard, and the first record that was lost.
        problem: as the records behind it are counted.
    """

    def __init__(self, message: str, where: str = "", problem: RecordProblem | None = None):
        super().__init__(message)
        self.where = where
        self.problem = problem

    @classmethod
    def of(cls, shard: object, read: int, error: Exception) -> "ShardReadError":
        """The error of a shard that broke off after `read` records."""
        problem = unreadable_shard(error)
        return cls(f"{shard}: {problem.message}", f"{shard}, from record {read} on", problem)


class StreamShard(ABC):
    """A part of a stream that one reader reads in one go. `str(shard)` names it in messages."""

    @abstractmethod
    def records(self) -> Iterator[RawRecord]:
        """The records, in the same order each time. Raises `ShardReadError` where they break off."""


class _FileShard(StreamShard):
    """
    A file, named by path or address.

    Args:
        path: of the file.
        source: that it belongs to.
        image_root: folder that relative image paths start from.
    """

    def __init__(self, path: str, source: CorpusSource, image_root: str | None):
        self.path = path
        self.columns = source.columns
        root = source.image_root if source.image_root is not None else image_root
        self.image_root = None if root is None else Path(os.path.expanduser(root))
        self.declared_root = None if is_remote(path) else declared_root(Path(path))

    def __str__(self) -> str:
        return self.path

    def records(self) -> Iterator[RawRecord]:
        import pyarrow

        # File systems behind an address raise what they like.
        kinds = Exception if is_remote(self.path) else (*_FILE_ERRORS, pyarrow.ArrowException)
        left = _TRIES_AT_AN_ADDRESS if is_remote(self.path) else 1
        read = 0
        while True:
            try:
                for raw in islice(self._read(), read, None):
                    read += 1
                    yield raw
                return
            # A mistake in the shard's layout, or an extra that is not installed.
            except (AnnotationError, ImportError):
                raise
            except kinds as error:
                left -= 1
                if not left or isinstance(error, FileNotFoundError):
                    raise ShardReadError.of(self, read, error) from error
                time.sleep(_SECONDS_BETWEEN_TRIES)

    @abstractmethod
    def _read(self) -> Iterator[RawRecord]:
        """The records; raises whatever file and decoder raise."""

    def _open(self) -> BinaryIO:
        import fsspec

        return fsspec.open(self.path, "rb").open()

    def _raw(self, value: object, index: int, problem: RecordProblem | None = None, line: int | None = None):
        if value is not None and self.columns:
            value, problem = renamed_fields(value, self.columns)
        folder = Path() if is_remote(self.path) else Path(self.path).parent
        return RawRecord(value, self.path, index, folder, line, problem, self.image_root, self.declared_root)


class TarShard(_FileShard):
    """A tar file, whose members of one name are neighbours."""

    def _read(self) -> Iterator[RawRecord]:
        with self._open() as file, tarfile.open(fileobj=file, mode="r|*", tarinfo=StrictTarInfo) as archive:
            for index, (key, members) in enumerate(self._groups(archive)):
                try:
                    yield self._raw(self._record(key, members), index)
                except RecordProblem as problem:
                    yield self._raw(None, index, problem)

    def _groups(self, archive: tarfile.TarFile) -> Iterator[tuple[str, dict[str, bytes]]]:
        finished: set[str] = set()
        current, members = None, {}
        for member in archive:
            key, suffix = sample_key(member.name)
            if member.isfile() and is_wanted(suffix):
                if key != current:
                    if current is not None:
                        yield current, members
                        finished.add(current)
                    if key in finished:
                        raise AnnotationError(
                            f"{self.path}: the members named {key!r} do not lie together, as a stream needs them; write the "
                            "shard with sorted names (tar --sort=name), or read it from this machine without streaming"
                        )
                    current, members = key, {}
                members[suffix] = archive.extractfile(member).read()
            archive.members = []
        if current is not None:
            yield current, members

    def _record(self, key: str, members: Mapping[str, bytes]) -> dict:
        content = next((one for suffix, one in members.items() if suffix in IMAGE_SUFFIXES), None)
        image = None if content is None else EmbeddedImage(HeldImage(content, f"{key} of {self.path}"), 0)
        return record_of_members(
            {name: one for name, one in members.items() if name not in IMAGE_SUFFIXES}, image, key
        )


class JsonLinesShard(_FileShard):
    """A JSONL file; images are paths."""

    def _read(self) -> Iterator[RawRecord]:
        with self._open() as file:
            for index, line in enumerate(line for line in file if line.strip()):
                value, problem = None, None
                try:
                    value = decode_json(line.decode("utf-8-sig"))
                except ValueError as error:
                    remedy = "write one JSON object per line"
                    problem = decoding_problem(error, "", "not readable as JSON", remedy)
                yield self._raw(value, index, problem)


class ParquetShard(_FileShard):
    """A Parquet file, read by row groups."""

    def _read(self) -> Iterator[RawRecord]:
        import pyarrow.parquet

        with self._open() as file:
            table, index = pyarrow.parquet.ParquetFile(file), 0
            refuse_repeated_columns(table.schema_arrow, self.path)
            # Group by group: a damaged one would take those before it along.
            for group in range(table.num_row_groups):
                for batch in table.iter_batches(batch_size=_ROWS_AT_A_TIME, row_groups=[group]):
                    for row in batch.to_pylist():
                        yield self._raw(_with_image(row, f"row {index} of {self.path}"), index)
                        index += 1


class DatasetShard(StreamShard):
    """
    One shard of a streamed Hugging Face dataset. It is never shuffled, counted or given an epoch by that library.

    Args:
        dataset: an `IterableDataset`, with images undecoded: a decoded image would be compressed again.
        number: of the shard; None for the dataset as a whole.
        name: of the dataset.
        columns: which column holds which annotation field.
    """

    def __init__(self, dataset, number: int | None, name: str, columns: Mapping[str, str | Sequence[str]]):
        self._dataset = dataset
        self._number = number
        self._name = name
        self._columns = columns

    def __str__(self) -> str:
        return self._name if self._number is None else f"{self._name}, shard {self._number}"

    def records(self) -> Iterator[RawRecord]:
        import pyarrow
        from datasets.exceptions import DatasetsError

        read = 0
        try:
            for raw in self._read():
                read += 1
                yield raw
        except (*_FILE_ERRORS, pyarrow.ArrowException, DatasetsError) as error:
            raise ShardReadError.of(self, read, error) from error

    def _read(self) -> Iterator[RawRecord]:
        shard = self._dataset
        if self._number is not None:
            shard = shard.shard(num_shards=shard.num_shards, index=self._number)
        # Plain iteration would share the rows among loading processes once more.
        batches = shard.iter(batch_size=_ROWS_AT_A_TIME)
        rows = (
            dict(zip(batch, cells, strict=True)) for batch in batches for cells in zip(*batch.values(), strict=True)
        )
        for index, row in enumerate(rows):
            value, problem = _with_image(row, f"row {index} of {self}"), None
            if self._columns:
                value, problem = renamed_fields(value, self._columns)
            yield RawRecord(value, str(self), index, Path(), None, problem)


def stream_shards(source: object, image_root: str | None = None) -> list[StreamShard]:
    """
    The shards of a source.

    Args:
        source: as in `open_sources`, or a `datasets.IterableDataset`.
        image_root: folder that relative image paths start from, unless the source has its own.

    Raises:
        AnnotationError: a source that cannot be streamed.
    """
    spec = as_corpus_source(source)
    if spec is None:
        if hasattr(source, "num_shards") and hasattr(source, "decode"):
            return _dataset_shards(source, "streamed dataset", {})
        raise AnnotationError(f"a source of type {type(source).__name__} cannot be streamed; name a path or a dataset")
    paths = expand_pattern(spec.path)
    if len(paths) == 1 and os.path.isdir(paths[0]):
        folder = Path(paths[0])
        found = sorted(folder.glob("*.tar")) or sorted(folder.glob(f"*{PARQUET_SUFFIX}"))
        if not found:
            raise AnnotationError(f"{folder}: the folder holds no tar shards and no Parquet files to stream")
        paths = [str(path) for path in found]
    kinds = [_kind_of(path) for path in paths]
    if len(paths) == 1 and kinds[0] is None:
        if os.path.exists(paths[0]) or PurePosixPath(paths[0]).suffix:
            raise AnnotationError(f"{paths[0]}: only *.tar, *.parquet and *.jsonl files can be streamed")
        return _hub_shards(spec)
    for path, kind in zip(paths, kinds, strict=True):
        if kind is None or not (is_remote(path) or os.path.isfile(path)):
            problem = "no such file" if kind else "only *.tar, *.parquet and *.jsonl files can be streamed"
            raise AnnotationError(f"{path}: {problem}")
    if spec.split is not None:
        raise AnnotationError(
            f"{spec}: of files that are streamed no split can be chosen; name the files of the split"
        )
    return [kind(path, spec, image_root) for path, kind in zip(paths, kinds, strict=True)]


def wants_streaming(sources: object) -> bool:
    """Whether any of the sources has to be read as a stream, or is meant to be."""
    for source in list_sources(sources):
        if hasattr(source, "num_shards") and hasattr(source, "decode"):
            return True
        spec = as_corpus_source(source)
        if spec is not None and (spec.streaming or is_remote(spec.path)):
            return True
    return False


def describe_shards(shards: Sequence[StreamShard]) -> str:
    """A text that changes with the shards; the folder of files on this machine does not count."""
    names = [str(shard) if is_remote(str(shard)) else PurePosixPath(str(shard)).name for shard in shards]
    return json.dumps(names)


def _kind_of(path: str) -> type[_FileShard] | None:
    # An address may end in a query.
    name = path.split("?")[0].lower() if is_remote(path) else path.lower()
    if name.endswith(TAR_SUFFIXES):
        return TarShard
    if name.endswith(PARQUET_SUFFIX):
        return ParquetShard
    return JsonLinesShard if name.endswith(JSONL_SUFFIXES) else None


def _hub_shards(spec: CorpusSource) -> list[StreamShard]:
    dataset = load_hub_dataset(spec.path, spec.name, spec.split, streaming=True)
    return _dataset_shards(dataset, f"dataset {spec}", spec.columns)


def _dataset_shards(dataset, name: str, columns: Mapping[str, str | Sequence[str]]) -> list[StreamShard]:
    if dataset.features is None:
        raise AnnotationError(
            f"{name}: the types of its columns are not known, as after `map`, so its images cannot be kept as they are; "
            "give `map` the argument `features`, or use `cast`"
        )
    require_columns(columns, list(dataset.features), name)
    undecoded = dataset.decode(False)
    if _counts_rows(undecoded._ex_iterable):
        return [DatasetShard(undecoded, None, name, columns)]
    return [DatasetShard(undecoded, number, name, columns) for number in range(undecoded.num_shards)]


def _counts_rows(steps) -> bool:
    """Whether a step of a dataset depends on how many rows came before: of a shard it gives other rows than of the whole.

    `skip(10)` of two shards would leave out five rows of each.
    """
    from datasets import iterable_dataset as library

    counting = (
        library.TakeExamplesIterable,
        library.SkipExamplesIterable,
        library.CyclingMultiSourcesExamplesIterable,
    )
    if isinstance(steps, counting):
        return True
    below = [getattr(steps, "ex_iterable", None), *getattr(steps, "ex_iterables", ())]
    return any(_counts_rows(one) for one in below if one is not None)


def _with_image(row: Mapping, place: str) -> dict:
    """A row whose encoded image is taken for what it is."""
    record = dict(row)
    name = next((column for column in BINARY_IMAGE_COLUMNS if record.get(column) is not None), None)
    if name is None:
        return record
    value = record[name]
    if isinstance(value, Mapping):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    record["image"] = EmbeddedImage(HeldImage(value, place), 0) if isinstance(value, bytes) else value
    return record


def skip_records(records: Iterator[RawRecord], count: int) -> Iterator[RawRecord]:
    """The records behind the first `count`."""
    return islice(records, count, None)
