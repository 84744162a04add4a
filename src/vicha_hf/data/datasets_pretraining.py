"""Pictures with a caption and a part of their concepts, for image-text pretraining and retrieval fine-tuning."""

from collections.abc import Callable
from typing import Literal, TypedDict

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from .annotations import Annotations, ImageTextRecord
from .concept_augmentation import sample_concepts
from .text_cleaning import clean_caption


# Share of a picture's 15 concepts that a training step sees (ViCHA, arXiv 2208.13628).
CONCEPT_FRACTION = 0.3
MAX_CAPTION_WORDS = 30


class PretrainingItem(TypedDict):
    """A training example: `pixel_values` float [3, H, W], the cleaned `caption`, its `concepts`, the picture's number."""

    pixel_values: torch.Tensor
    caption: str
    concepts: list[str]
    image_id: int


class PretrainingDataset(Dataset):
    """
    Map-style dataset whose item is a function of (seed, epoch, index) alone.

    So the data does not depend on the number of workers or processes, and a training run that is resumed in the middle of
    an epoch sees what the unbroken run would have seen.

    Args:
        annotations: from `read_image_text_records`.
        transform: picture and generator to float [3, H, W], such as `PretrainingTransform`.
        seed: of all draws.
        captions: "one" (as ALBEF): an item per record with a caption drawn among its captions; "all": an item per caption.
        concept_fraction: share of a picture's concepts in an item (0.3), drawn without replacement, at least one where
            there are any; 1 gives all of them in the order of the annotation.
        use_concepts: False gives items without concepts.
        max_words: words kept of a caption (30).

    Raises:
        ValueError: an unknown `captions`, a fraction outside (0, 1], `max_words` below 1, a negative seed.
        ImageReadError: from `__getitem__`, a picture that cannot be decoded.
    """

    def __init__(
        self,
        annotations: Annotations[ImageTextRecord],
        transform: Callable[[Image.Image, np.random.Generator], torch.Tensor],
        *,
        seed: int = 0,
        captions: Literal["one", "all"] = "one",
        concept_fraction: float = CONCEPT_FRACTION,
        use_concepts: bool = True,
        max_words: int = MAX_CAPTION_WORDS,
    ):
        if captions not in ("one", "all"):
            raise ValueError(f'captions={captions!r} must be "one" (of each record) or "all"')
        if not 0 < concept_fraction <= 1:
            raise ValueError(
                f"concept_fraction={concept_fraction} must be in (0, 1]; use_concepts=False turns concepts off"
            )
        if max_words < 1:
            raise ValueError(f"max_words={max_words} must be at least 1")
        if seed < 0:
            raise ValueError(f"seed={seed} must not be negative")
        self.annotations = annotations
        self.transform = transform
        self.seed = seed
        self.concept_fraction = concept_fraction
        self.use_concepts = use_concepts
        self.max_words = max_words
        # Pairs (record, caption); None where a caption is drawn per record.
        self._pairs = None
        if captions == "all":
            self._pairs = np.array(
                [(row, column) for row, record in enumerate(annotations) for column in range(len(record.captions))],
                dtype=np.int64,
            )
        # Shared memory: workers that live on from epoch to epoch must see the new number too.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Call before each epoch: other captions, concepts and crops are drawn."""
        if epoch < 0:
            raise ValueError(f"epoch={epoch} must not be negative")
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.annotations) if self._pairs is None else len(self._pairs)

    def __getitem__(self, index: int) -> PretrainingItem:
        index = _checked_index(index, len(self))
        # A spawn key, not three seeds: numpy takes the seeds (a, b) and (a, b, 0) for the same.
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(self.epoch, index)))
        if self._pairs is None:
            record = self.annotations[index]
            caption = record.captions[rng.integers(len(record.captions))]
        else:
            row, column = self._pairs[index]
            record = self.annotations[row]
            caption = record.captions[column]
        concepts = sample_concepts(record.concepts, self.concept_fraction, rng) if self.use_concepts else []
        return PretrainingItem(
            pixel_values=self.transform(record.load_image(), rng),
            caption=clean_caption(caption, self.max_words),
            concepts=concepts,
            image_id=record.image_id,
        )


def _checked_index(index: int, length: int) -> int:
    # Negative indices would draw other augmentations than their positive twins.
    if index < 0:
        index += length
    if not 0 <= index < length:
        raise IndexError(f"index {index} is outside the dataset of {length} items")
    return int(index)
