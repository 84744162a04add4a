"""Records of visual reasoning: is a statement about two images true (NLVR2)?"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from ..models.task_visual_reasoning import VisualReasoningTask
from .annotation_fields import ImageFinder, checked_concepts, read_label, read_text, required
from .annotation_sources import RawRecord, RecordProblem, shorten
from .annotations import Annotations, read_records
from .image_files import EmbeddedImage, open_image


@dataclass(frozen=True, slots=True)
class ReasoningRecord:
    """
    A statement about two images.

    Attributes:
        images: the left and the right image, each a path or an image inside a dataset.
        sentence: as written.
        label: index into `VisualReasoningTask.CLASSES` (1 = true); None where it is not known.
        concepts: the visual concepts of the left and of the right image.
        where: file and record, for messages.
    """

    images: tuple[str | EmbeddedImage, str | EmbeddedImage]
    sentence: str
    label: int | None
    concepts: tuple[tuple[str, ...], tuple[str, ...]]
    where: str

    def load_images(self) -> tuple[Image.Image, Image.Image]:
        """The images as upright RGB. Raises `ImageReadError`."""
        return open_image(self.images[0], self.where), open_image(self.images[1], self.where)


def read_reasoning_records(
    sources,
    image_root: str | os.PathLike | None = None,
    *,
    require_labels: bool = True,
    on_bad_record: Literal["raise", "skip"] = "raise",
    check_images: bool = True,
) -> Annotations[ReasoningRecord]:
    """
    Reads and validates statements about pairs of images.

    A record is `{"images": [path, path], "sentence": str, "label": "True" | "False", "concepts": optional [[str], [str]]}`;
    Published files call the two lists of concepts `kwords1` and `kwords2`; both are read. JSON's true and false are
    labels too.

    Args:
        require_labels: whether a record without label is bad; false for statements that are only to be judged.
        sources, image_root, on_bad_record, check_images: as in `read_image_text_records`.

    Returns:
        The records in order, with the report.

    Raises:
        AnnotationError: as `read_image_text_records`.
    """
    finder = ImageFinder(image_root, check_images)

    def parse(fields: Mapping, raw: RawRecord) -> ReasoningRecord:
        remedy = 'give the paths of the left and the right image, such as ["images/1.jpg", "images/2.jpg"]'
        images = required(fields, "images", remedy)
        if not isinstance(images, list | tuple):
            raise RecordProblem("images", "wrong type", remedy, f"got {shorten(images)}")
        if len(images) != 2:
            raise RecordProblem("images", "not two images", remedy, f"got {len(images)}: {shorten(images)}")
        left, right = (finder.find(image, raw.default_root, "images") for image in images)
        return ReasoningRecord(
            images=(left, right),
            sentence=read_text(fields, "sentence"),
            label=read_label(fields, VisualReasoningTask.CLASSES, is_required=require_labels),
            concepts=_read_pair_of_concepts(fields),
            where=raw.where,
        )

    return read_records(sources, parse, on_bad_record=on_bad_record)


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
