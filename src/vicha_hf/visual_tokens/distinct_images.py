"""The images of annotations, each once, as an evaluation sees them: without crop and augmentation."""

import torch
from torch.utils.data import Dataset

from ..data.annotations import Annotations, ImageTextRecord
from ..data.transforms import EvaluationTransform


class DistinctImages(Dataset):
    """
    Items are (the image's place among all records, pixel values [3, H, W]); a file that several records show comes once.

    Args:
        annotations: records with an `image`.
        transform: what makes pixel values of an image.
        max_images: no more than these, spread evenly over the annotations; None takes all.
    """

    def __init__(
        self,
        annotations: Annotations[ImageTextRecord],
        transform: EvaluationTransform,
        max_images: int | None = None,
    ):
        if max_images is not None and max_images < 1:
            raise ValueError(f"max_images={max_images} must be at least 1")
        self.annotations = annotations
        self.transform = transform
        seen = set()
        self._rows = []
        for row, record in enumerate(annotations):
            if record.image not in seen:
                seen.add(record.image)
                self._rows.append(row)
        if max_images is not None and len(self._rows) > max_images:
            step = len(self._rows) / max_images
            self._rows = [self._rows[int(number * step)] for number in range(max_images)]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        row = self._rows[index]
        return row, self.transform(self.annotations[row].load_image())
