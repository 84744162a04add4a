"""A retrieval benchmark: every image once, every caption once, and which belongs to which."""

from collections.abc import Callable
from typing import TypedDict

import torch
from PIL import Image
from torch.utils.data import Dataset

from .annotations import Annotations, ImageTextRecord
from .image_files import EmbeddedImage, open_image


class RetrievalImage(TypedDict):
    """An image of the benchmark: `pixel_values` float [3, H, W] and all its `concepts`."""

    pixel_values: torch.Tensor
    concepts: list[str]
    image_id: int


class RetrievalDataset(Dataset):
    """
    The items are the images, in order of first appearance; the captions stand in `texts`.

    Records of the same image (equal `image_id`) are merged: captions in order, concepts joined without repetitions.

    Args:
        annotations: from `read_image_text_records`.
        transform: image to float [3, H, W], such as `EvaluationTransform`.
        use_concepts: False gives images without concepts.

    Attributes:
        texts: the captions, all images' one after the other.
        captions_of_image: per image the indices of its captions in `texts`.
        image_of_caption: per caption the index of its image.
    """

    def __init__(
        self,
        annotations: Annotations[ImageTextRecord],
        transform: Callable[[Image.Image], torch.Tensor],
        *,
        use_concepts: bool = True,
    ):
        self.transform = transform
        self.use_concepts = use_concepts
        self.texts: list[str] = []
        self.captions_of_image: list[list[int]] = []
        self.image_of_caption: list[int] = []
        self._images: list[tuple[str | EmbeddedImage, str]] = []
        self._concepts: list[dict[str, None]] = []
        self._image_ids: list[int] = []
        position_of: dict[int, int] = {}
        for record in annotations:
            position = position_of.setdefault(record.image_id, len(self._images))
            if position == len(self._images):
                self._images.append((record.image, record.where))
                self._concepts.append({})
                self._image_ids.append(record.image_id)
                self.captions_of_image.append([])
            self._concepts[position].update(dict.fromkeys(record.concepts))
            for caption in record.captions:
                self.captions_of_image[position].append(len(self.texts))
                self.image_of_caption.append(position)
                self.texts.append(caption)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> RetrievalImage:
        image, where = self._images[index]
        return RetrievalImage(
            pixel_values=self.transform(open_image(image, where)),
            concepts=list(self._concepts[index]) if self.use_concepts else [],
            image_id=self._image_ids[index],
        )
