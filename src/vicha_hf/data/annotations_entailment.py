"""Records of visual entailment: does an image entail a sentence, contradict it, or leave it open (SNLI-VE)?"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack

from ..models.task_classification import VisualEntailmentTask
from .annotation_fields import ImageFinder, read_concepts, read_label, read_text
from .annotations import Annotations, ReadingOptions, read_records
from .image_record import ImageRecord
from .raw_records import RawRecord
from .stored_images import EmbeddedImage


@dataclass(frozen=True, slots=True)
class EntailmentRecord(ImageRecord):
    """
    A sentence about an image.

    Attributes:
        image: path of the image, or an image inside a dataset.
        sentence: as written.
        label: index into `VisualEntailmentTask.CLASSES`; None where it is not known.
        concepts: the visual concepts of the image.
        where: file and record, for messages.
    """

    image: str | EmbeddedImage
    sentence: str
    label: int | None
    concepts: tuple[str, ...]
    where: str


@dataclass(frozen=True)
class EntailmentParser:
    """
    Makes records of visual entailment out of a record's fields.

    Args:
        images: finds the images.
        require_labels: as in `read_entailment_records`.
    """

    images: ImageFinder
    require_labels: bool = True

    def __call__(self, fields: Mapping, raw: RawRecord) -> EntailmentRecord:
        """Raises `RecordProblem` for a record that cannot be used."""
        return EntailmentRecord(
            image=self.images.read(fields, raw),
            sentence=read_text(fields, "sentence"),
            label=read_label(fields, VisualEntailmentTask.CLASSES, is_required=self.require_labels),
            concepts=read_concepts(fields),
            where=raw.where,
        )


def read_entailment_records(
    sources,
    image_root: str | os.PathLike | Sequence[str] | None = None,
    *,
    require_labels: bool = True,
    **options: Unpack[ReadingOptions],
) -> Annotations[EntailmentRecord]:
    """
    Reads and validates sentences about images.

    A record is `{"image": path, "sentence": str, "label": "entailment" | "neutral" | "contradiction", "concepts": optional
    [str]}`. A column of class labels in a Hugging Face dataset is read by its names.

    Args:
        require_labels: whether a record without label is bad; false for images that are only to be judged.
        sources, image_root, options: as in `read_image_text_records`.

    Returns:
        The records in order, with the report.

    Raises:
        AnnotationError: as `read_image_text_records`.
    """
    parse = EntailmentParser(ImageFinder.from_options(options), require_labels)
    own_options = {"require_labels": require_labels}
    return read_records(sources, image_root, EntailmentRecord, parse, options, own_options)
