"""Records of visual reasoning: is a statement about two images true (NLVR2)?"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack

from PIL import Image

from ..models.task_visual_reasoning import VisualReasoningTask
from .annotation_fields import ImageFinder, checked_concepts, read_identifier, read_label, read_text, required
from .annotations import Annotations, ReadingOptions, read_records
from .image_files import LazyImage, open_image
from .raw_records import RawRecord, RecordProblem, shorten
from .stored_images import EmbeddedImage


@dataclass(frozen=True, slots=True)
class ReasoningRecord:
    """
    A statement about two images.

    Attributes:
        images: the left and the right image, each a path or an image inside a dataset.
        sentence: as written.
        label: index into `VisualReasoningTask.CLASSES` (1 = true); None where it is not known.
        concepts: the visual concepts of the left and of the right image.
        identifier: what NLVR2 calls the statement; None where the source gives no name.
        where: file and record, for messages.
    """

    images: tuple[str | EmbeddedImage, str | EmbeddedImage]
    sentence: str
    label: int | None
    concepts: tuple[tuple[str, ...], tuple[str, ...]]
    identifier: int | str | None
    where: str

    def load_images(self) -> tuple[Image.Image, Image.Image]:
        """The images as upright RGB. Raises `ImageReadError`."""
        return open_image(self.images[0], self.where), open_image(self.images[1], self.where)

    def open_images(self) -> tuple[LazyImage, LazyImage]:
        """The images, to be decoded when they are needed. Raises `ImageReadError`."""
        return LazyImage(self.images[0], self.where), LazyImage(self.images[1], self.where)


@dataclass(frozen=True)
class ReasoningParser:
    """
    Makes records of visual reasoning out of a record's fields.

    Args:
        images: finds the images.
        require_labels: as in `read_reasoning_records`.
    """

    images: ImageFinder
    require_labels: bool = True

    def __call__(self, fields: Mapping, raw: RawRecord) -> ReasoningRecord:
        """Raises `RecordProblem` for a record that cannot be used."""
        remedy = 'give the paths of the left and the right image, such as ["images/1.jpg", "images/2.jpg"]'
        images = required(fields, "images", remedy)
        if not isinstance(images, list | tuple):
            raise RecordProblem("images", "wrong type", remedy, f"got {shorten(images)}")
        if len(images) != 2:
            raise RecordProblem("images", "not two images", remedy, f"got {len(images)}: {shorten(images)}")
        left, right = (self.images.find(image, raw, "images") for image in images)
        return ReasoningRecord(
            images=(left, right),
            sentence=read_text(fields, "sentence"),
            label=read_label(fields, VisualReasoningTask.CLASSES, is_required=self.require_labels),
            concepts=_read_pair_of_concepts(fields),
            identifier=read_identifier(fields, "identifier"),
            where=raw.where,
        )


def read_reasoning_records(
    sources,
    image_root: str | os.PathLike | Sequence[str] | None = None,
    *,
    require_labels: bool = True,
    **options: Unpack[ReadingOptions],
) -> Annotations[ReasoningRecord]:
    """
    Reads and validates statements about pairs of images.

    A record is `{"images": [path, path], "sentence": str, "label": "True" | "False", "concepts": optional [[str], [str]]}`;
    Published files call the two lists of concepts `kwords1` and `kwords2`; both are read. JSON's true and false are
    labels too.

    Args:
        require_labels: whether a record without label is bad; false for statements that are only to be judged.
        sources, image_root, options: as in `read_image_text_records`.

    Returns:
        The records in order, with the report.

    Raises:
        AnnotationError: as `read_image_text_records`.
    """
    parse = ReasoningParser(ImageFinder.from_options(options), require_labels)
    own_options = {"require_labels": require_labels}
    return read_records(sources, image_root, ReasoningRecord, parse, options, own_options)


def _read_pair_of_concepts(fields: Mapping) -> tuple[tuple[str, ...], tuple[str, ...]]:
    value = fields.get("concepts")
    if value is None:
        return checked_concepts(fields.get("kwords1"), "kwords1"), checked_concepts(fields.get("kwords2"), "kwords2")
    remedy = 'write a list of words for each of the two images, such as [["dog"], ["cat", "tree"]]'
    if not isinstance(value, list | tuple):
        raise RecordProblem("concepts", "wrong type", remedy, f"got {shorten(value)}")
    if len(value) != 2:
        raise RecordProblem("concepts", "not two lists", remedy, f"got {shorten(value)}")
    return checked_concepts(value[0], "concepts"), checked_concepts(value[1], "concepts")
