"""Records of grounding: which part of an image does an expression name (RefCOCO+)?"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Unpack

from .annotation_fields import (
    HashedImageIds,
    ImageFinder,
    ImageIds,
    read_concepts,
    read_identifier,
    read_text,
    required,
)
from .annotations import Annotations, ReadingOptions, read_records
from .image_files import ImageReadError, read_image_size
from .image_record import ImageRecord
from .raw_records import RawRecord, RecordProblem, shorten
from .stored_images import EmbeddedImage


Box = tuple[float, float, float, float]

# Pixels that a box may stick out of its image: annotators and detectors round, and COCO's own boxes do.
BOX_TOLERANCE = 1.0

_BOX_REMEDY = "give [x, y, width, height] in pixels from the top left corner"


@dataclass(frozen=True, slots=True)
class GroundingRecord(ImageRecord):
    """
    An expression that names something in an image.

    Attributes:
        image: path of the image, or an image inside a dataset.
        image_id: equal for records of the same image; numbered from 0 in order of first appearance.
        ref_id: what the source calls the expression, or the thing that it names; None where it gives no name.
        text: the expression as written.
        box: (x, y, width, height), pixels, of what the expression names; None where only training is possible.
        boxes: the proposals to choose from, alike.
        split: "val", "testA", ...; "all" where the source names none.
        image_size: (height, width), pixels; None where there are no boxes.
        concepts: the visual concepts of the image.
        where: file and record, for messages.
    """

    image: str | EmbeddedImage
    image_id: int
    ref_id: int | str | None
    text: str
    box: Box | None
    boxes: tuple[Box, ...]
    split: str
    image_size: tuple[int, int] | None
    concepts: tuple[str, ...]
    where: str

    @property
    def captions(self) -> tuple[str]:
        """The expression as the only caption: grounding is trained as retrieval, with `PretrainingDataset`."""
        return (self.text,)


@dataclass(frozen=True)
class GroundingParser:
    """
    Makes records of grounding out of a record's fields.

    Args:
        images: finds the images.
        image_ids: numbers them.
        sizes: of the images, for the boxes that evaluation needs; None reads no boxes.
    """

    images: ImageFinder
    image_ids: ImageIds | HashedImageIds = field(default_factory=HashedImageIds)
    sizes: "_ImageSizes | None" = None

    def __call__(self, fields: Mapping, raw: RawRecord) -> GroundingRecord:
        """Raises `RecordProblem` for a record that cannot be used."""
        split = _read_split(fields)
        image = self.images.read(fields, raw)
        text = read_text(fields, "text")
        box, boxes, size = None, (), None
        if self.sizes is not None:
            box, boxes = _read_box(fields), _read_boxes(fields, raw)
            size = self.sizes.of(image, fields, raw.where)
            _check_inside("bbox", box, size)
            for one in boxes:
                _check_inside("boxes", one, size)
        ref_id, concepts = read_identifier(fields, "ref_id"), read_concepts(fields)
        # Last, so that a skipped record leaves no trace in the numbering.
        image_id = self.image_ids.number(image, raw, fields.get("image_id"))
        return GroundingRecord(image, image_id, ref_id, text, box, boxes, split, size, concepts, raw.where)


def read_grounding_records(
    sources,
    image_root: str | os.PathLike | Sequence[str] | None = None,
    *,
    for_evaluation: bool = False,
    **options: Unpack[ReadingOptions],
) -> Annotations[GroundingRecord]:
    """
    Reads and validates expressions.

    A record is `{"ref_id": int | str, "image": path, "text": str, "bbox": [x, y, width, height], "boxes": [[x, y, width,
    height], ...], "split": str, "image_id": optional, "width" and "height" of the image: optional, "concepts": optional
    [str]}`. A source may also be a `RefCocoSource`, or a mapping with its fields.

    Args:
        for_evaluation: every record must have `bbox` and `boxes`, and proposals without area are left out. Training
            reads no boxes. The image's size is read from its header unless the record gives it.
        sources, image_root, options: as in `read_image_text_records`.

    Returns:
        The records in order, with the report.

    Raises:
        AnnotationError: as `read_image_text_records`.
    """
    image_ids = ImageIds(refuse_conflicts=for_evaluation)
    parse = GroundingParser(ImageFinder.from_options(options), image_ids, _ImageSizes() if for_evaluation else None)
    own_options = {"for_evaluation": for_evaluation}
    return read_records(sources, image_root, GroundingRecord, parse, options, own_options)


def _read_split(fields: Mapping) -> str:
    value = fields.get("split")
    if value is None:
        return "all"
    if not isinstance(value, str):
        raise RecordProblem(
            "split", "wrong type", 'write the name of the split, such as "val"', f"got {shorten(value)}"
        )
    return value


def _read_box(fields: Mapping) -> Box:
    box = _checked_box("bbox", required(fields, "bbox", _BOX_REMEDY))
    if not _has_area(box):
        raise RecordProblem("bbox", "a box without area", _BOX_REMEDY, f"got {shorten(fields['bbox'])}")
    return box


def _read_boxes(fields: Mapping, raw: RawRecord) -> tuple[Box, ...]:
    remedy = "give the proposals to choose from as a list of [x, y, width, height]"
    value = required(fields, "boxes", remedy)
    if not isinstance(value, list | tuple):
        raise RecordProblem("boxes", "wrong type", remedy, f"got {shorten(value)}")
    if not value:
        raise RecordProblem("boxes", "empty", remedy, "an empty list")
    boxes = tuple(_checked_box("boxes", box) for box in value)
    # COCO's boxes of other things may have height 0; nothing can be found in them.
    kept = tuple(box for box in boxes if _has_area(box))
    if not kept:
        raise RecordProblem("boxes", "only boxes without area", remedy, f"got {shorten(value)}")
    if len(kept) < len(boxes):
        raw.notes.append("field 'boxes': proposals without area left out")
    return kept


def _has_area(box: Box) -> bool:
    return box[2] > 0 and box[3] > 0


def _checked_box(name: str, value) -> Box:
    numbers = isinstance(value, list | tuple) and all(
        isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number) for number in value
    )
    if not numbers or len(value) != 4:
        raise RecordProblem(name, "not a box", _BOX_REMEDY, f"got {shorten(value)}")
    return tuple(value)


def _check_inside(name: str, box: Box, size: tuple[int, int]) -> None:
    (x, y, box_width, box_height), (height, width) = box, size
    if min(x, y) < -BOX_TOLERANCE or max(x + box_width - width, y + box_height - height) > BOX_TOLERANCE:
        found = f"{list(box)} in an image of width {width} and height {height}"
        raise RecordProblem(name, "a box outside the image", _BOX_REMEDY, found)


class _ImageSizes:
    """Reads every image's header once."""

    def __init__(self):
        self._known: dict[str | EmbeddedImage, tuple[int, int]] = {}

    def of(self, image: str | EmbeddedImage, fields: Mapping, where: str) -> tuple[int, int]:
        """(height, width) in pixels."""
        given = fields.get("height"), fields.get("width")
        if None not in given:
            if not all(isinstance(side, int) and side > 0 for side in given):
                raise RecordProblem(
                    "width", "not a size", "give width and height in pixels, or leave both out", f"got {given}"
                )
            return given
        if image not in self._known:
            try:
                self._known[image] = read_image_size(image, where)
            except ImageReadError as error:
                raise RecordProblem(
                    "image", error.cause, "replace the file, or remove the record", f"{error.__cause__}"
                ) from error
        return self._known[image]
