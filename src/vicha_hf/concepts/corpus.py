"""A corpus as the search for concepts sees it: its distinct images, its captions, and its records as they were written."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from ..data.annotation_fields import ImageFinder, read_texts
from ..data.annotations import Annotations, iterate_fields, read_records
from ..data.merged_ids import MergedImageIds
from ..data.raw_records import AnnotationError, RawRecord, RecordProblem
from ..data.stored_images import EmbeddedImage
from .manifests import digest_of_items


@dataclass(frozen=True, slots=True)
class CorpusRecord:
    """
    One record.

    Attributes:
        image: path of the image, or an image inside a dataset.
        captions: as written; none in corpora of other tasks.
        fields: the whole record as it was written.
        source: the number of its file, in order of appearance.
        where: file and record, for messages.
    """

    image: str | EmbeddedImage
    captions: tuple[str, ...]
    fields: Mapping[str, object]
    source: int
    where: str


class ConceptCorpus:
    """
    The records of annotation files of any task with one `image` per record.

    Args:
        sources, image_root: as `read_image_text_records` takes them.
        on_bad_record: "raise" or "skip", for records, and later for images that cannot be decoded.
        allow_outside_root: whether absolute paths may lead out of the image root.

    Attributes:
        records: in order.
        sources: as they were given.

    Raises:
        AnnotationError: annotations that cannot be used.
    """

    def __init__(
        self,
        sources,
        image_root: str | os.PathLike | Sequence[str] | None = None,
        on_bad_record: Literal["raise", "skip"] = "raise",
        allow_outside_root: bool = False,
    ):
        options = {"on_bad_record": on_bad_record, "allow_outside_root": allow_outside_root}
        finder = ImageFinder.from_options(options)
        files: dict[str, int] = {}

        def parse(fields: Mapping, raw: RawRecord) -> CorpusRecord:
            image = finder.read(fields, raw)
            captions = read_texts(fields, "caption") if fields.get("caption") is not None else ()
            kept = {name: value for name, value in fields.items() if name != "image"}
            return CorpusRecord(image, captions, kept, files.setdefault(raw.source, len(files)), raw.where)

        self.sources, self.on_bad_record = sources, on_bad_record
        self.records: Annotations[CorpusRecord] = read_records(sources, image_root, CorpusRecord, parse, options, {})
        numbers: dict[object, int] = {}
        self._number_of_record = [numbers.setdefault(_key(record.image), len(numbers)) for record in self.records]
        self._first_record = {}
        for row, number in enumerate(self._number_of_record):
            self._first_record.setdefault(number, row)

    @property
    def num_images(self) -> int:
        """Distinct images."""
        return len(self._first_record)

    @property
    def holds_images(self) -> bool:
        """Whether an image lies inside a dataset or shard, without a file of its own."""
        return any(isinstance(record.image, EmbeddedImage) for record in self.records)

    def image(self, number: int) -> tuple[str | EmbeddedImage, str]:
        """An image by its number, and the record that asks for it first."""
        record = self.records[self._first_record[number]]
        return record.image, record.where

    def numbered_records(self) -> Iterator[tuple[int, CorpusRecord]]:
        """Every record with the number of its image."""
        return zip(self._number_of_record, self.records, strict=True)

    def fields_to_write(self, record: CorpusRecord) -> dict[str, object]:
        """A record's fields for one file with all records; `image_id` still names one image there."""
        fields = dict(record.fields)
        if "image_id" in fields:
            fields["image_id"] = self._merged_ids.of(record.source, fields["image_id"])
        return fields

    def written_digest(self) -> str:
        """A hash of all records as they are written."""
        return digest_of_items([self.fields_to_write(record), record.where] for record in self.records)

    @cached_property
    def _merged_ids(self) -> MergedImageIds:
        return MergedImageIds((record.source, record.fields.get("image_id")) for record in self.records)

    def images_digest_items(self) -> Iterator[list]:
        """Names, sizes and times of the image files, which tell whether they are the same."""
        for number in range(self.num_images):
            image, _ = self.image(number)
            if isinstance(image, EmbeddedImage):
                yield ["embedded", image.first, image.second]
            else:
                status = os.stat(image)
                yield [os.path.basename(image), status.st_size, status.st_mtime_ns]

    def captions_digest_items(self) -> Iterator[list[str]]:
        """The captions record by record."""
        return (list(record.captions) for record in self.records)


def require_captions(record: CorpusRecord) -> tuple[str, ...]:
    """The captions of a record. Raises `ValueError` where it has none."""
    if not record.captions:
        problem = RecordProblem("caption", "missing", "write a text, or a list of texts")
        raise ValueError(f"{record.where}: {problem.message}")
    return record.captions


def _key(image: str | EmbeddedImage) -> object:
    return (
        image if isinstance(image, str) else (image.images.source_index, image.images.key, image.first, image.second)
    )


def iterate_captions(sources, on_bad_record: Literal["raise", "skip"] = "raise") -> Iterator[str]:
    """
    The captions of annotation sources, one by one; nothing is kept, and images are not looked for.

    Args:
        sources: as `read_image_text_records` takes them.
        on_bad_record: whether a record without caption ends the reading or is left out.

    Raises:
        AnnotationError: a source that cannot be read, or a bad record.
    """
    for raw, fields in iterate_fields(sources):
        try:
            if isinstance(fields, RecordProblem):
                raise fields
            yield from read_texts(fields, "caption")
        except RecordProblem as problem:
            if on_bad_record == "raise":
                raise AnnotationError(f"{raw.where}: {problem.message}") from problem
