"""Corpora packed into shards, with images no larger than training needs, for fast sequential reading."""

import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

from PIL import Image
from tqdm.auto import tqdm

from ..whole_files import OutputFolderError, require_writable
from .annotations import ImageTextRecord, read_image_text_records
from .image_files import ImageReadError, open_image
from .loader_processes import process_pool
from .raw_records import AnnotationError
from .read_report import AnnotationReport
from .source_license import common_license
from .stored_images import EmbeddedImage


MANIFEST_FILE = "manifest.json"
# Rows of a Parquet file that are read together: a loader that wants one of them reads all.
_ROW_GROUP = 100
_JPEG = b"\xff\xd8\xff"


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """
    Options of a packing.

    Attributes:
        format: "webdataset" (tar) or "parquet".
        side: the shorter side of images, in pixels; smaller ones are not enlarged. None keeps every image as it is.
        records_per_shard: of all shards but the last.
        quality: of JPEG, for images that are made smaller or that are none.
        num_workers: processes that decode; None for one per core.
    """

    format: Literal["webdataset", "parquet"] = "webdataset"
    side: int | None = 384
    records_per_shard: int = 10_000
    quality: int = 92
    num_workers: int | None = None

    def __post_init__(self):
        for name in ("side", "records_per_shard", "quality"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value!r} is not possible: it must be at least 1.")
        if self.quality > 100:
            raise ValueError(f"quality={self.quality} is not possible: it must be at most 100.")


@dataclass
class Packed:
    """
    Result of a packing.

    Attributes:
        report: of the reading, with the records whose images cannot be decoded.
        shards: names of the files.
        records: in all of them.
    """

    report: AnnotationReport
    shards: list[str] = field(default_factory=list)
    records: int = 0


@dataclass(frozen=True)
class _Sample:
    image: bytes
    fields: dict


def pack_corpus(
    sources, output: Path, options: PackOptions | None = None, progress: bool = False, **reading
) -> Packed:
    """
    Writes image-text records as shards into a new folder, which appears when it is whole. The same corpus and options give
    the same bytes.

    Args:
        sources: as `read_image_text_records` takes them.
        output: the folder.
        options: of the packing.
        progress: whether to show a progress bar.
        reading: `image_root` and others of `ReadingOptions`; with `on_bad_record="skip"` images that cannot be decoded are
            left out too.

    Raises:
        AnnotationError: the folder is there, or bad records.
        ImageReadError: an image that cannot be decoded ("raise").
        OutputFolderError: writing failed.
    """
    options = options or PackOptions()
    if output.exists() and any(output.iterdir() if output.is_dir() else [output]):
        raise AnnotationError(f"--output {output} is there already; name a new folder")
    annotations = read_image_text_records(sources, **reading)
    skip = reading.get("on_bad_record") == "skip"
    packed = Packed(annotations.report)
    require_writable(output.parent, "--output")
    unfinished = output.with_name(f".{output.name}.{os.getpid()}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        with ExitStack() as stack:
            bar = stack.enter_context(tqdm(total=len(annotations), unit=" records", disable=not progress))
            samples = _samples(annotations, options, stack)
            kept = _without_problems(samples, packed.report, skip, bar)
            while shard := list(islice(kept, options.records_per_shard)):
                packed.shards.append(_write_shard(unfinished, len(packed.shards), shard, packed.records, options))
                packed.records += len(shard)
        if not packed.records:
            raise AnnotationError(f"nothing to pack: {packed.report.summary()}")
        manifest = {"records": packed.records, "shards": packed.shards, "side": options.side, "format": options.format}
        license = common_license(sources)
        if license is not None:
            manifest["license"] = license
        (unfinished / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        if output.is_dir():
            output.rmdir()
        unfinished.rename(output)
    except OSError as error:
        raise OutputFolderError(
            f"{output} could not be written ({error.strerror or error}): make room, or its folder writable, then start again."
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return packed


def _samples(annotations, options: PackOptions, stack: ExitStack) -> Iterator[_Sample | ImageReadError]:
    jobs = ((record, options) for record in annotations)
    workers = options.num_workers or os.cpu_count() or 1
    if workers == 1:
        yield from map(_encode, jobs)
        return
    pool = stack.enter_context(process_pool(workers))
    # A part at a time: a pool takes in all of its jobs at once.
    while part := list(islice(jobs, 64 * workers)):
        yield from pool.map(_encode, part, chunksize=8)


def _without_problems(samples, report: AnnotationReport, skip: bool, bar) -> Iterator[_Sample]:
    for sample in samples:
        bar.update()
        if not isinstance(sample, ImageReadError):
            yield sample
        elif skip:
            report.reject(sample.where, f"field 'image': {sample.cause}", sample.message)
            report.num_kept -= 1
        else:
            raise sample


def _encode(job: tuple[ImageTextRecord, PackOptions]) -> _Sample | ImageReadError:
    record, options = job
    try:
        content = _image_bytes(record.image, record.where, options)
    except ImageReadError as error:
        return ImageReadError(error.message, error.cause, error.where)
    fields = {"caption": list(record.captions), "image_id": record.image_id}
    return _Sample(content, fields | ({"concepts": list(record.concepts)} if record.concepts else {}))


def _image_bytes(image: str | EmbeddedImage, where: str, options: PackOptions) -> bytes:
    opened = open_image(image, where)
    if options.side is None or min(opened.size) <= options.side:
        original = image.read_bytes() if isinstance(image, EmbeddedImage) else Path(image).read_bytes()
        # A JPEG file that need not change is not compressed again.
        if original.startswith(_JPEG):
            return original
    else:
        factor = options.side / min(opened.size)
        size = tuple(max(1, round(length * factor)) for length in opened.size)
        opened = opened.resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    opened.save(buffer, "JPEG", quality=options.quality)
    return buffer.getvalue()


def _write_shard(folder: Path, number: int, samples: list[_Sample], first: int, options: PackOptions) -> str:
    if options.format == "parquet":
        return _write_parquet(folder / f"{number:05d}.parquet", samples)
    name = f"{number:05d}.tar"
    with tarfile.open(folder / name, "w", format=tarfile.USTAR_FORMAT) as archive:
        for position, sample in enumerate(samples, start=first):
            texts = {"json": json.dumps(sample.fields, ensure_ascii=False), "txt": sample.fields["caption"][0]}
            members = {"jpg": sample.image, **{suffix: text.encode() for suffix, text in texts.items()}}
            for suffix, content in members.items():
                member = tarfile.TarInfo(f"{position:09d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return name


def _write_parquet(path: Path, samples: list[_Sample]) -> str:
    import pyarrow as pa
    import pyarrow.parquet

    columns = {
        "image": pa.array(
            [{"bytes": sample.image, "path": None} for sample in samples],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        ),
        "caption": pa.array([sample.fields["caption"] for sample in samples], pa.list_(pa.string())),
        "image_id": pa.array([sample.fields["image_id"] for sample in samples], pa.int64()),
        "concepts": pa.array([sample.fields.get("concepts", []) for sample in samples], pa.list_(pa.string())),
    }
    # Other readers know the column for one of images by this note.
    features = {"image": {"_type": "Image"}}
    for name in ("caption", "concepts"):
        features[name] = {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"}
    features["image_id"] = {"dtype": "int64", "_type": "Value"}
    note = {b"huggingface": json.dumps({"info": {"features": {name: features[name] for name in columns}}}).encode()}
    pyarrow.parquet.write_table(pa.table(columns).replace_schema_metadata(note), path, row_group_size=_ROW_GROUP)
    return path.name
