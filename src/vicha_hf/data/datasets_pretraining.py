"""Images with a caption and a part of their concepts, for image-text pretraining and retrieval fine-tuning."""

from collections.abc import Callable
from typing import Literal, NotRequired, Protocol, TypedDict

import numpy as np
import torch
from PIL import Image

from .annotations import Annotations, ImageTextRecord
from .annotations_grounding import GroundingRecord
from .concept_augmentation import check_concept_fraction, sample_concepts
from .seeded_dataset import SeededDataset
from .text_cleaning import clean_caption, names_side


# Share of an image's 15 concepts that a training step sees (ViCHA, arXiv 2208.13628).
CONCEPT_FRACTION = 0.3
MAX_CAPTION_WORDS = 30


class PretrainingItem(TypedDict):
    """
    A training example: `pixel_values` float [3, H, W], the cleaned `caption`, its `concepts`, the image's number, and,
    where they are stored, its `visual_token_ids` int64 [P].
    """

    pixel_values: torch.Tensor
    caption: str
    concepts: list[str]
    image_id: int
    visual_token_ids: NotRequired[torch.Tensor]


class StoredVisualTokens(Protocol):
    """Visual tokens that were made beforehand, such as `VisualTokenStore`'s."""

    def require_fitting(self, annotations: Annotations, transform: Callable) -> None:
        """Raises a `ValueError` where the tokens are not those of the annotations' images under the transform."""

    def tokens_of(self, record: ImageTextRecord | GroundingRecord) -> torch.Tensor:
        """Visual tokens of a record's image, int64 [P]."""


class PretrainingDataset(SeededDataset):
    """
    Map-style dataset whose item is a function of (seed, epoch, index) alone.

    So the data does not depend on the number of workers or processes. A run that is resumed in the middle of an epoch
    sees the samples of the unbroken run.

    Args:
        annotations: from `read_image_text_records`, or, for the training of grounding, `read_grounding_records`.
        transform: image and generator to float [3, H, W], such as `PretrainingTransform`.
        seed: of all draws.
        captions: "one" (as ALBEF): an item per record with a caption drawn among its captions; "all": an item per caption.
        concept_fraction: share of an image's concepts in an item (0.3), drawn without replacement, at least one where
            there are any. A share of 1 gives all of them in the annotation's order.
        use_concepts: False gives items without concepts.
        max_words: words kept of a caption (30).
        mirror_texts_with_sides: False never mirrors the image of a caption that says left or right.
        stored_visual_tokens: gives items their images' visual tokens; possible only with a transform that draws nothing.

    Raises:
        ValueError: an unknown `captions`, a fraction outside (0, 1], `max_words` below 1, a negative seed, stored tokens
            that do not fit.
        ImageReadError: from `__getitem__`, an image that cannot be decoded.
    """

    def __init__(
        self,
        annotations: Annotations[ImageTextRecord] | Annotations[GroundingRecord],
        transform: Callable[[Image.Image, np.random.Generator], torch.Tensor],
        *,
        seed: int = 0,
        captions: Literal["one", "all"] = "one",
        concept_fraction: float = CONCEPT_FRACTION,
        use_concepts: bool = True,
        max_words: int = MAX_CAPTION_WORDS,
        mirror_texts_with_sides: bool = True,
        stored_visual_tokens: StoredVisualTokens | None = None,
    ):
        if captions not in ("one", "all"):
            raise ValueError(f'captions={captions!r} must be "one" (of each record) or "all"')
        check_concept_fraction(concept_fraction)
        if max_words < 1:
            raise ValueError(f"max_words={max_words} must be at least 1")
        if stored_visual_tokens is not None:
            stored_visual_tokens.require_fitting(annotations, transform)
        super().__init__(seed)
        self.annotations = annotations
        self.transform = transform
        self.concept_fraction = concept_fraction
        self.use_concepts = use_concepts
        self.max_words = max_words
        self.mirror_texts_with_sides = mirror_texts_with_sides
        self.stored_visual_tokens = stored_visual_tokens
        # Pairs (record, caption); None where a caption is drawn per record.
        self._pairs = None
        if captions == "all":
            self._pairs = np.array(
                [(row, column) for row, record in enumerate(annotations) for column in range(len(record.captions))],
                dtype=np.int64,
            )

    def __len__(self) -> int:
        return len(self.annotations) if self._pairs is None else len(self._pairs)

    def _record_index(self, index: int) -> int:
        return index if self._pairs is None else int(self._pairs[index][0])

    def __getitem__(self, index: int) -> PretrainingItem:
        index, rng = self.draw(index)
        if self._pairs is None:
            record = self.annotations[index]
            caption = record.captions[rng.integers(len(record.captions))]
        else:
            row, column = self._pairs[index]
            record = self.annotations[row]
            caption = record.captions[column]
        concepts = sample_concepts(record.concepts, self.concept_fraction, rng) if self.use_concepts else []
        sides = {} if self.mirror_texts_with_sides else {"may_mirror": not names_side(caption)}
        item = PretrainingItem(
            pixel_values=self.transform(record.load_image(), rng, **sides),
            caption=clean_caption(caption, self.max_words),
            concepts=concepts,
            image_id=record.image_id,
        )
        if self.stored_visual_tokens is not None:
            item["visual_token_ids"] = self.stored_visual_tokens.tokens_of(record)
        return item
