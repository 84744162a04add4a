"""Annotation files written record by record, as JSONL or Parquet, and seen only when they are whole."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from ..data.declared_roots import DeclaredRoot
from ..data.stored_images import EmbeddedImage


_ROWS_AT_A_TIME = 1000


class AnnotationWriter:
    """
    Writes an annotation file; to be used in a `with` block, at whose end without error the file appears.

    Args:
        path: *.jsonl or *.parquet.

    Raises:
        ValueError: another suffix.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if self.path.suffix not in (".jsonl", ".parquet"):
            raise ValueError(f"{self.path}: annotations are written as *.jsonl or *.parquet; choose such a name")
        self._rows: list[dict] = []
        self._unfinished = self.path.with_name(f".{self.path.name}.{os.getpid()}.unfinished")
        self._file = self._table_writer = None
        self._root = DeclaredRoot(self.path)

    def __enter__(self) -> "AnnotationWriter":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.suffix == ".jsonl":
            self._file = self._unfinished.open("w", encoding="utf-8")
        return self

    def write(self, fields: Mapping[str, object], image: str | EmbeddedImage, where: str) -> None:
        """
        Adds a record.

        Args:
            fields: all of it but the image.
            image: its file is named relative to the annotation file; an image inside a dataset is stored in Parquet.
            where: the record, for messages.

        Raises:
            ValueError: an image inside a dataset for JSONL.
        """
        if isinstance(image, EmbeddedImage):
            if self._file is not None:
                raise ValueError(
                    f"{where}: its image is stored inside the dataset, which JSONL cannot hold; write *.parquet"
                )
            named: object = {"bytes": image.read_bytes(), "path": None}
        else:
            named = _relative(image, self.path.parent)
            self._root.add(image)
        row = {"image": named, **fields}
        if self._file is not None:
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
            return
        self._rows.append(row)
        if len(self._rows) == _ROWS_AT_A_TIME:
            self._flush()

    def __exit__(self, error_type, error, trace) -> None:
        if error_type is None and self._file is None:
            self._flush()
        for opened in (self._file, self._table_writer):
            if opened is not None:
                opened.close()
        if error_type is None and self._unfinished.is_file():
            os.replace(self._unfinished, self.path)
            self._root.write()
        else:
            self._unfinished.unlink(missing_ok=True)

    def _flush(self) -> None:
        import pyarrow
        import pyarrow.parquet

        if not self._rows:
            return
        table = pyarrow.Table.from_pylist(self._rows)
        if self._table_writer is None:
            self._table_writer = pyarrow.parquet.ParquetWriter(self._unfinished, table.schema)
        self._table_writer.write_table(table.cast(self._table_writer.schema))
        self._rows = []


def _relative(image: str, folder: Path) -> str:
    return Path(os.path.relpath(os.path.abspath(image), os.path.abspath(folder))).as_posix()
