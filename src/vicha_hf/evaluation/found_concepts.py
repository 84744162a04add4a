"""Visual concepts found in the images of annotations, in the place of those that were given."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch.utils.data import Dataset

from ..data.annotations import Annotations
from ..data.image_files import open_image
from ..data.record_storage import RecordWriter
from ..models.concept_selector import ConceptSelector, prepare_images
from .sharded_prediction import predict_all


def find_concepts(
    annotations: Annotations,
    selector: ConceptSelector,
    *,
    batch_size: int = 32,
    num_workers: int = 0,
    progress: bool = True,
) -> Annotations:
    """
    Annotations of any task with the concepts that a selector finds.

    Args:
        annotations: records with an `image`, or with two `images`.
        selector: looks at each distinct image once; the processes of a run share them.
        batch_size: images at a time on one process.
        num_workers: processes that load images, per process.
        progress: show a progress bar.

    Raises:
        ImageReadError: an image that cannot be decoded.
    """
    images = _DistinctImages(annotations)

    def predict(batch: dict[str, torch.Tensor], indices: list[int]) -> list[tuple[str, ...]]:
        return [tuple(words) for words in selector.words_of_embeds(selector.encoder.encode_prepared(batch))]

    found = predict_all(
        images,
        partial(_collate, selector.encoder.processor.image_processor),
        predict,
        device=selector.encoder.device,
        batch_size=batch_size,
        num_workers=num_workers,
        progress=progress,
        description="Finding concepts",
    )
    writer = RecordWriter(annotations.records.layout.record_type)
    for record in annotations:
        concepts = tuple(found[images.number(image)] for image in _images_of(record))
        writer.append(replace(record, concepts=concepts if hasattr(record, "images") else concepts[0]))
    return replace(annotations, records=writer.finish())


class _DistinctImages(Dataset):
    """Items are Pillow images; one that several records show comes once."""

    def __init__(self, annotations: Annotations):
        self._numbers, self._images = {}, []
        for record in annotations:
            for image in _images_of(record):
                if self._numbers.setdefault(image, len(self._images)) == len(self._images):
                    self._images.append((image, record.where))

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int):
        return open_image(*self._images[index])

    def number(self, image) -> int:
        return self._numbers[image]


def _images_of(record) -> tuple:
    return record.images if hasattr(record, "images") else (record.image,)


def _collate(image_processor, images: Sequence) -> dict[str, torch.Tensor]:
    return prepare_images(image_processor, images)
