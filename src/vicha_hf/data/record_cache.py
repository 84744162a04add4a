"""Records of large corpora kept on the disk between runs, in a form that is mapped into memory within a second."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from filelock import FileLock
from huggingface_hub.constants import HF_HOME

from .annotation_sources import OpenedSource
from .read_report import AnnotationReport
from .record_storage import RecordWriter, StoredRecords, open_records


logger = logging.getLogger(__name__)

# Smaller sources are read within a second; what is wrong with them is looked for anew each time.
SMALLEST_CACHED_BYTES = 32 * 2**20
FORMAT = 1
RECORDS_FILE, MANIFEST_FILE = "records.arrow", "manifest.json"

_RecordType = TypeVar("_RecordType")
_Build = Callable[[RecordWriter], AnnotationReport]


def cache_folder() -> Path:
    """Folder of the records, beside what the Hugging Face libraries keep (`HF_HOME`)."""
    return Path(HF_HOME) / "vicha_hf" / "annotations"


def cached_records(
    record_type: type[_RecordType], sources: Sequence[OpenedSource], options: object, build: _Build
) -> tuple[StoredRecords[_RecordType], AnnotationReport]:
    """
    Records and report of `build`, from the disk where it has been built before out of the same content.

    Args:
        record_type: of the records.
        sources: that `build` reads.
        options: whatever else decides what the records are, as JSON; None where that cannot be told.
        build: reads the sources. Where two processes come at the same time, one builds and the other waits.
    """
    folder = _folder_of(record_type, sources, options)
    if folder is None:
        return _in_memory(record_type, build)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / MANIFEST_FILE).is_file():
                return _build_on_disk(record_type, folder, build)
    except OSError as error:
        logger.warning("Records are read without a cache: %s cannot be written to (%s).", folder.parent, error)
        return _in_memory(record_type, build)
    return _open(record_type, folder, sources)


def _in_memory(record_type: type[_RecordType], build: _Build) -> tuple[StoredRecords, AnnotationReport]:
    writer = RecordWriter(record_type)
    report = build(writer)
    return writer.finish(), report


def _folder_of(record_type: type, sources: Sequence[OpenedSource], options: object) -> Path | None:
    if options is None or sum(source.records.size_in_bytes() for source in sources) < SMALLEST_CACHED_BYTES:
        return None
    prints = [source.records.fingerprint() for source in sources]
    if None in prints:
        return None
    layout = {name: str(column.type) for name, column in RecordWriter(record_type).layout.columns.items()}
    parts = [FORMAT, record_type.__qualname__, layout, prints, [source.split for source in sources], options]
    key = hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:32]
    return cache_folder() / key


def _build_on_disk(
    record_type: type[_RecordType], folder: Path, build: _Build
) -> tuple[StoredRecords, AnnotationReport]:
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        writer = RecordWriter(record_type, unfinished / RECORDS_FILE)
        report = build(writer)
        records = writer.finish()
        # Images that are missing today may be there tomorrow.
        if report.num_kept and not report.misses_images:
            layout = records.layout
            manifest = {
                "report": report.as_mapping(),
                "sources": layout.sources,
                "stores": [(store.source_index, store.key) for store in layout.stores],
            }
            (unfinished / MANIFEST_FILE).write_text(json.dumps(manifest), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(unfinished, folder)
            records = open_records(record_type, folder / RECORDS_FILE, layout.sources, layout.stores)
        return records, report
    finally:
        # What is mapped stays readable for the processes that have it.
        shutil.rmtree(unfinished, ignore_errors=True)


def _open(
    record_type: type[_RecordType], folder: Path, sources: Sequence[OpenedSource]
) -> tuple[StoredRecords, AnnotationReport]:
    manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    stores = []
    for source_index, key in manifest["stores"]:
        store = sources[source_index].records.image_store(key)
        store.source_index = source_index
        stores.append(store)
    records = open_records(record_type, folder / RECORDS_FILE, manifest["sources"], stores)
    return records, AnnotationReport.from_mapping(manifest["report"])
