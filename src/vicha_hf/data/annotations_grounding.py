"""Records of grounding: which part of an image does an expression name (RefCOCO+)?"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from .annotation_fields import ImageFinder, ImageIds, read_concepts, read_text, required
from .annotation_sources import RawRecord, RecordProblem, shorten
from .annotations import Annotations, read_records
from .annotations_refcoco import RefCocoSource
from .image_files import EmbeddedImage, ImageReadError, open_image, read_image_size


Box = tuple[float, float, float, float]

# Pixels that a box may stick out of its image: annotators and detectors round, and COCO's own boxes do.
BOX_TOLERANCE = 1.0

_BOX_REMEDY = "give [x, y, width, height] in pixels from the top left corner"


@dataclass(frozen=True, slots=True)
class GroundingRecord:
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

    def load_image(self) -> Image.Image:
        """The image as upright RGB. Raises `ImageReadError`."""
        return open_image(self.image, self.where)


def read_grounding_records(
    sources,
    image_root: str | os.PathLike | None = None,
    *,
    for_evaluation: bool = False,
    splits: Sequence[str] | None = None,
    on_bad_record: Literal["raise", "skip"] = "raise",
    check_images: bool = True,
) -> Annotations[GroundingRecord]:
    """
    Reads and validates expressions.

    A record is `{"ref_id": int | str, "image": path, "text": str, "bbox": [x, y, width, height], "boxes": [[x, y, width,
    height], ...], "split": str, "image_id": optional, "width" and "height" of the image: optional, "concepts": optional
    [str]}`. A source may also be a `RefCocoSource`, or a mapping with its fields.

    Args:
        for_evaluation: every record must have `bbox` and `boxes`. Training needs neither; where they are given, they are
            checked all the same.
        splits: which splits are wanted; None for all.
        sources, image_root, on_bad_record, check_images: as in `read_image_text_records`. Where there are boxes, the
            image's size is read from its header unless the record gives it.

    Returns:
        The records in order, with the report.

    Raises:
        AnnotationError: as `read_image_text_records`.
    """
    sizes = _ImageSizes()
    images, image_ids = ImageFinder(image_root, check_images), ImageIds()

    def parse(fields: Mapping, raw: RawRecord) -> GroundingRecord | None:
        split = _read_split(fields, is_required=splits is not None)
        if splits is not None and split not in splits:
            return None
        image = images.read(fields, raw.default_root)
        text = read_text(fields, "text")
        box = _read_box(fields, is_required=for_evaluation)
        boxes = _read_boxes(fields, is_required=for_evaluation)
        size = sizes.of(image, fields, raw.where) if box is not None or boxes else None
        for name, checked in (("bbox", [box] if box is not None else []), ("boxes", boxes)):
            for one in checked:
                _check_inside(name, one, size)
        concepts = read_concepts(fields)
        # Last, so that a skipped record leaves no trace in the numbering.
        image_id = image_ids.number(image, raw.source, fields.get("image_id"))
        return GroundingRecord(
            image, image_id, fields.get("ref_id"), text, box, boxes, split, size, concepts, raw.where
        )

    listed = [sources] if isinstance(sources, str | Mapping) or not isinstance(sources, Sequence) else sources
    return read_records([_as_source(source) for source in listed], parse, on_bad_record=on_bad_record)


def _as_source(source):
    return RefCocoSource.from_mapping(source) if isinstance(source, Mapping) and "refs" in source else source


def _read_split(fields: Mapping, *, is_required: bool) -> str:
    remedy = 'write the name of the split, such as "val"'
    value = required(fields, "split", remedy) if is_required else fields.get("split")
    if value is None:
        return "all"
    if not isinstance(value, str):
        raise RecordProblem("split", "wrong type", remedy, f"got {shorten(value)}")
    return value


def _read_box(fields: Mapping, *, is_required: bool) -> Box | None:
    value = required(fields, "bbox", _BOX_REMEDY) if is_required else fields.get("bbox")
    return None if value is None else _checked_box("bbox", value)


def _read_boxes(fields: Mapping, *, is_required: bool) -> tuple[Box, ...]:
    remedy = "give the proposals to choose from as a list of [x, y, width, height]"
    value = required(fields, "boxes", remedy) if is_required else fields.get("boxes")
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise RecordProblem("boxes", "wrong type", remedy, f"got {shorten(value)}")
    if not value:
        raise RecordProblem("boxes", "empty", remedy, "an empty list")
    return tuple(_checked_box("boxes", box) for box in value)


def _checked_box(name: str, value) -> Box:
    numbers = isinstance(value, list | tuple) and all(
        isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number) for number in value
    )
    if not numbers or len(value) != 4:
        raise RecordProblem(name, "not a box", _BOX_REMEDY, f"got {shorten(value)}")
    if value[2] <= 0 or value[3] <= 0:
        raise RecordProblem(name, "a box without area", _BOX_REMEDY, f"got {shorten(value)}")
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
                    "image", "not readable", "replace the file, or remove the record", f"{error.__cause__}"
                ) from error
        return self._known[image]
