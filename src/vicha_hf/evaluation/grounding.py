"""Accuracy of weakly supervised grounding (RefCOCO+; ALBEF section 6.4): is the chosen box the right one?"""

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean


Box = Sequence[float]

CORRECT_OVERLAP = 0.5


def intersection_over_union(box: Box, other: Box) -> float:
    """
    Overlap of two boxes (x, y, width, height), between 0 and 1. As in the official tool a box includes its last pixel
    (x + width - 1), and boxes that share a single row or column of pixels do not overlap.
    """
    left, top = max(box[0], other[0]), max(box[1], other[1])
    right = min(box[0] + box[2] - 1, other[0] + other[2] - 1)
    bottom = min(box[1] + box[3] - 1, other[1] + other[3] - 1)
    shared = (right - left + 1) * (bottom - top + 1) if left < right and top < bottom else 0.0
    return shared / (box[2] * box[3] + other[2] * other[3] - shared)


def grounding_accuracy(
    chosen_boxes: Sequence[Box | None], reference_boxes: Sequence[Box], splits: Sequence[str]
) -> dict[str, float]:
    """
    Share of the expressions whose chosen box overlaps the reference by at least 0.5, for each split.

    Args:
        chosen_boxes: for each expression a box (x, y, width, height), pixels, or `None` where no proposal scored above
            0, which counts as wrong.
        reference_boxes: what the expressions name, in the same order.
        splits: each expression's split, e.g. `"val"`, `"testA"`, `"testB"`.

    Returns:
        Split -> share between 0 and 1, for the splits that occur.

    Raises:
        ValueError: the arguments differ in length.
    """
    if not len(chosen_boxes) == len(reference_boxes) == len(splits):
        raise ValueError(
            f"{len(chosen_boxes)} `chosen_boxes`, {len(reference_boxes)} `reference_boxes` and {len(splits)} `splits`: "
            "give one of each per expression."
        )
    correct = defaultdict(list)
    for chosen, reference, split in zip(chosen_boxes, reference_boxes, splits, strict=True):
        overlap = 0.0 if chosen is None else intersection_over_union(chosen, reference)
        correct[split].append(overlap >= CORRECT_OVERLAP)
    return {split: fmean(values) for split, values in correct.items()}
