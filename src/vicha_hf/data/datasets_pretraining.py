"""Images with a caption and a part of their concepts, for image-text pretraining and retrieval fine-tuning."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NotRequired, Protocol, TypedDict

import numpy as np
import torch
from PIL import Image

from .annotations import Annotations, ImageTextRecord
from .annotations_grounding import GroundingRecord
from .concept_augmentation import check_concept_fraction, sample_concepts
from .image_files import LazyImage
from .mixture import WeightedMixture
from .named_sides import names_side
from .seeded_dataset import SeededDataset


# Share of an image's 15 concepts that a training step sees (ViCHA, arXiv 2208.13628).
CONCEPT_FRACTION = 0.3


class PretrainingItem(TypedDict):
    """
    A training example: `pixel_values` float [3, H, W], the `caption`, its `concepts`, the image's number, and,
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


@dataclass(frozen=True)
class PretrainingItems:
    """
    The making of training examples out of records, the same for corpora that are read by number and for streams.

    Args:
        transform: image and generator to float [3, H, W], such as `PretrainingTransform`.
        concept_fraction: share of an image's concepts in an item (0.3), drawn without replacement, at least one. 1 gives
            all of them in the order of the annotation.
        concept_dropout: share of the items that have no concepts (0), so that a model learns to do without as well.
        use_concepts: False gives items without concepts.
        mirror_texts_with_sides: False never mirrors the image of a caption that says left or right.

    Raises:
        ValueError: a fraction outside (0, 1], or a dropout outside [0, 1).
    """

    transform: Callable[[Image.Image | LazyImage, np.random.Generator], torch.Tensor]
    concept_fraction: float = CONCEPT_FRACTION
    concept_dropout: float = 0.0
    use_concepts: bool = True
    mirror_texts_with_sides: bool = True

    def __post_init__(self):
        check_concept_fraction(self.concept_fraction)
        if not 0 <= self.concept_dropout < 1:
            raise ValueError(f"concept_dropout must be in [0, 1), got {self.concept_dropout}")

    def make(
        self, record: ImageTextRecord | GroundingRecord, rng: np.random.Generator, column: int | None = None
    ) -> PretrainingItem:
        """
        Args:
            record: with image, captions and concepts.
            rng: source of every draw.
            column: which of the captions; None draws one.

        Raises:
            ImageReadError: an image that cannot be decoded.
        """
        caption = record.captions[rng.integers(len(record.captions)) if column is None else column]
        concepts = sample_concepts(record.concepts, self.concept_fraction, rng) if self.use_concepts else []
        # Nothing is drawn without dropout: the items of a seed stay what they were.
        if self.concept_dropout and rng.random() < self.concept_dropout:
            concepts = []
        sides = {} if self.mirror_texts_with_sides else {"may_mirror": not names_side(caption)}
        return PretrainingItem(
            pixel_values=self.transform(record.open_image(), rng, **sides),
            caption=caption,
            concepts=concepts,
            image_id=record.image_id,
        )


class PretrainingDataset(SeededDataset):
    """
    Map-style dataset whose item is a function of (seed, epoch, index) alone.

    So the data does not depend on the number of workers or processes. A training run that is resumed in the middle of an
    epoch sees what the unbroken run would have seen.

    Args:
        annotations: from `read_image_text_records`, or, for the training of grounding, `read_grounding_records`. Where
            their sources have weights, an epoch has as many items as ever, in the proportion of the weights.
        transform: image and generator to float [3, H, W], such as `PretrainingTransform`.
        seed: of all draws.
        captions: "one" (as ALBEF): an item per record with a caption drawn among its captions; "all": an item per caption.
        stored_visual_tokens: gives items their images' visual tokens; possible only with a transform that draws nothing.
        on_bad_record: as in `SeededDataset`.
        item_options: of `PretrainingItems`.

    Raises:
        ValueError: an unknown `captions`, a negative seed, stored tokens that do not fit.
        ImageReadError: from `__getitem__`, an image that cannot be decoded.
    """

    def __init__(
        self,
        annotations: Annotations[ImageTextRecord] | Annotations[GroundingRecord],
        transform: Callable[[Image.Image | LazyImage, np.random.Generator], torch.Tensor],
        *,
        seed: int = 0,
        captions: Literal["one", "all"] = "one",
        stored_visual_tokens: StoredVisualTokens | None = None,
        on_bad_record: Literal["raise", "skip"] = "raise",
        **item_options,
    ):
        if captions not in ("one", "all"):
            raise ValueError(f'captions={captions!r} must be "one" (of each record) or "all"')
        if stored_visual_tokens is not None:
            stored_visual_tokens.require_fitting(annotations, transform)
        super().__init__(seed, on_bad_record)
        self.annotations = annotations
        self.items = PretrainingItems(transform, **item_options)
        self.stored_visual_tokens = stored_visual_tokens
        # The number of the first item of each record, and that of all items; None where a record is one item.
        self._starts = None
        if captions == "all":
            self._starts = np.concatenate([[0], np.cumsum(annotations.caption_counts())])
        self._mixture = None
        if annotations.weights is not None:
            bounds = np.concatenate([[0], np.cumsum(annotations.records_of_source)])
            sizes = np.diff(bounds if self._starts is None else self._starts[bounds])
            self._mixture = WeightedMixture(sizes.tolist(), annotations.weights, seed)

    def __len__(self) -> int:
        return len(self.annotations) if self._starts is None else int(self._starts[-1])

    def make_item(self, index: int, rng: np.random.Generator) -> PretrainingItem:
        row, column = self._row_and_column(index)
        record = self.annotations[row]
        item = self.items.make(record, rng, column)
        if self.stored_visual_tokens is not None:
            item["visual_token_ids"] = self.stored_visual_tokens.tokens_of(record)
        return item

    def _record_index(self, index: int) -> int:
        return self._row_and_column(index)[0]

    def _row_and_column(self, index: int) -> tuple[int, int | None]:
        if self._mixture is not None:
            index = self._mixture.item(self.epoch, index)
        if self._starts is None:
            return index, None
        row = int(np.searchsorted(self._starts, index, side="right")) - 1
        return row, index - int(self._starts[row])
