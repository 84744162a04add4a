"""Concept augmentation: each training step sees another part of an image's visual concepts."""

import math
from collections.abc import Sequence

import numpy as np


def sample_concepts(concepts: Sequence[str], fraction: float, rng: np.random.Generator) -> list[str]:
    """
    A random part of the concepts, without replacement and never empty where there are any (ViCHA, arXiv 2208.13628:
    30 % at each pretraining step).

    The published code draws with replacement and may draw none; repeated words and a lone [CLS] carry nothing.

    Args:
        concepts: the concepts of an image, without repetitions.
        fraction: share that is kept, in (0, 1]; rounded down, at least one. 1 keeps all of them in the order given.
        rng: source of randomness.

    Returns:
        The drawn concepts in random order.

    Raises:
        ValueError: `fraction` outside (0, 1].
    """
    check_concept_fraction(fraction)
    if fraction == 1 or not concepts:
        return list(concepts)
    # The small term undoes rounding such as 0.29 * 100 = 28.999....
    count = max(1, math.floor(fraction * len(concepts) + 1e-9))
    return [concepts[index] for index in rng.choice(len(concepts), size=count, replace=False)]


def check_concept_fraction(fraction: float) -> None:
    """Raises `ValueError` outside (0, 1]."""
    if not 0 < fraction <= 1:
        raise ValueError(
            f"the fraction of concepts must be in (0, 1], got concept_fraction={fraction}; to train without concepts, "
            "turn them off"
        )
