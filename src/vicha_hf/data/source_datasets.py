"""Annotations in Hugging Face datasets, which the `datasets` library memory-maps."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from .raw_records import AnnotationError, RawRecord, RecordSource, unreadable_shard
from .source_hub import load_hub_dataset, split_name
from .stored_images import DatasetImages, EmbeddedImage, ImageStore


_ROWS_AT_A_TIME = 1000
_IMAGE_FIELDS = ("image", "images")
# Columns that hold encoded images under the name of their format, as img2dataset writes them.
BINARY_IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp")


def load_dataset_split(path: str, name: str | None, split: str | None):
    """
    One split of a dataset of the Hub, or of a folder.

    Args:
        path: a folder of `save_to_disk`, or what `datasets.load_dataset` takes.
        name: configuration of the dataset.
        split: the split that is wanted; None takes "train", or the only one that there is.

    Raises:
        AnnotationError: there is no such dataset or split, or a folder whose files are damaged.
    """
    folder = Path(path)
    shown = ":".join(part for part in (path, name) if part)
    if (folder / "state.json").is_file():
        dataset = _from_disk(path)
        if split is not None and split != str(dataset.split):
            raise AnnotationError(
                f"dataset {shown}: no split {split!r}; the folder holds one table"
                f"{f', split {str(dataset.split)!r}' if dataset.split else ''}: leave split out"
            )
        return dataset
    if (folder / "dataset_dict.json").is_file():
        splits = _from_disk(path)
        return splits[split_name(list(splits), split, shown)]
    return load_hub_dataset(path, name, split)


def _from_disk(path: str):
    import datasets
    import pyarrow

    try:
        return datasets.load_from_disk(path)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise AnnotationError(
            f"{path}: not readable as a dataset of `save_to_disk` ({error}); save it there again"
        ) from error


class TableSource(RecordSource):
    """
    A map-style dataset.

    Args:
        dataset: of the `datasets` library.
        name: for messages.
        columns: which column holds which annotation field, where the names differ; a field that is a list may be put
            together from several columns.
        default_root: folder that relative image paths start from unless the user says otherwise.
        image_root: the one that the user named for this source.
        declared: another folder that the images may lie in.
        damaged: files of the dataset that it had to leave out, `{path: error}`; each counts as a bad record.

    Raises:
        AnnotationError: a missing column, or no column of texts.
    """

    def __init__(
        self,
        dataset,
        name: str,
        columns: Mapping[str, str | Sequence[str]],
        default_root: Path | None = None,
        image_root: Path | None = None,
        declared: Path | None = None,
        damaged: Mapping[Path, Exception] | None = None,
    ):
        self.name = name
        self.damaged = damaged or {}
        self.declared = declared
        self.default_root = default_root or Path()
        self.image_root = image_root
        require_columns(columns, dataset.column_names, name)
        columns = dict(columns)
        dataset = dataset.with_format(None)
        if "image" not in columns and "image" not in dataset.column_names:
            found = next((column for column in BINARY_IMAGE_COLUMNS if column in dataset.column_names), None)
            if found is not None:
                columns["image"] = found
        self.dataset = _with_image_columns(dataset, columns)
        self.columns_of = {column: [column] for column in self.dataset.column_names}
        self.columns_of |= {field_name: _as_list(column) for field_name, column in columns.items()}

    def __str__(self) -> str:
        return self.name

    def fingerprint(self) -> str | None:
        # Rows that were made in memory have a drawn fingerprint.
        if not self.dataset.cache_files:
            return None
        return json.dumps(
            [
                self.dataset._fingerprint,
                self.columns_of,
                *map(str, (self.default_root, self.image_root, self.declared, *self.damaged)),
            ]
        )

    def size_in_bytes(self) -> int:
        # Of texts; images are not read.
        return 256 * len(self.dataset)

    def image_store(self, key: str) -> ImageStore:
        return DatasetImages(self._undecoded(key), key)

    def iterate_records(self) -> Iterator[RawRecord]:
        from datasets import ClassLabel

        dataset = self.dataset
        image_columns = {
            column: self._iterate_images(column)
            for field_name in _IMAGE_FIELDS
            for column in self.columns_of.get(field_name, [])
            if _holds_images(dataset.features[column])
        }
        # Reading the texts must not read gigabytes of images.
        read_columns = sorted(
            {
                column
                for group in self.columns_of.values()
                for column in group
                if not _holds_images(dataset.features[column])
            }
        )
        if not read_columns:
            raise AnnotationError(
                f"{self.name}: it has nothing but images ({dataset.column_names}); add a column of texts"
            )
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
                    for field_name, group in self.columns_of.items()
                    if all(column in cells for column in group)
                }
                yield RawRecord(
                    record,
                    self.name,
                    row,
                    self.default_root,
                    image_root=self.image_root,
                    declared_root=self.declared,
                )
                row += 1
        for path, error in self.damaged.items():
            yield RawRecord(None, str(path), 0, self.default_root, problem=unreadable_shard(error))

    def _undecoded(self, column: str):
        from datasets import Image, List

        in_lists = not isinstance(self.dataset.features[column], Image)
        undecoded = List(Image(decode=False)) if in_lists else Image(decode=False)
        return self.dataset.select_columns([column]).cast_column(column, undecoded)

    def _iterate_images(self, column: str) -> Iterator[Path | EmbeddedImage | list[Path | EmbeddedImage] | None]:
        """
        Images row by row, in lists where the column holds lists. An image in a file of its own is a path, another one a
        place in the dataset; None stands where there is none.
        """
        import pyarrow.compute
        from datasets import Image

        in_lists = not isinstance(self.dataset.features[column], Image)
        images = self.image_store(column)
        row = 0
        for batch in images.dataset.with_format("arrow").iter(batch_size=_ROWS_AT_A_TIME):
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
                    if stored:
                        found.append(EmbeddedImage(images, row, position if in_lists else None))
                    else:
                        found.append(None if path is None else Path(path))
                yield found if in_lists else found[0]
                row += 1


def require_columns(columns: Mapping[str, str | Sequence[str]], known: Sequence[str], name: str) -> None:
    """Raises `AnnotationError` for a column that a dataset does not have."""
    for field_name, column in columns.items():
        for missing in [one for one in _as_list(column) if one not in known]:
            raise AnnotationError(
                f"{name}: no column {missing!r} for the field {field_name!r}; choose among {list(known)}"
            )


def _as_list(column: str | Sequence[str]) -> list[str]:
    return [column] if isinstance(column, str) else list(column)


def _holds_images(feature) -> bool:
    from datasets import Image

    return isinstance(feature, Image) or isinstance(getattr(feature, "feature", None), Image)


def _with_image_columns(dataset, columns: Mapping[str, str | Sequence[str]]):
    """The dataset with its columns of encoded images marked as such, without reading them."""
    from datasets import Image, Value

    for column in {name for field_name in _IMAGE_FIELDS for name in _as_list(columns.get(field_name, field_name))}:
        feature = dataset.features.get(column)
        is_binary = isinstance(feature, Value) and feature.dtype in ("binary", "large_binary")
        is_pair = isinstance(feature, dict) and set(feature) == {"bytes", "path"}
        if is_binary or is_pair:
            dataset = dataset.cast_column(column, Image(decode=False))
    return dataset
