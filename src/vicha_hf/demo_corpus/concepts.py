"""A noisy extractor of visual concepts, and a measure of how much its concepts give away.

Real concepts come from an image-text model that ranks a vocabulary for each image. It overlooks things and takes one
for a similar one. It always returns the same number of words, so most of them are not in the image. A demo whose
concepts were the ground truth would only show that words match words.
"""

import random
from collections.abc import Sequence

import numpy as np

from .parameters import ConceptParameters
from .scene import Scene
from .sprites import CATEGORY_OF, NOUNS, NOUNS_OF_CATEGORY


def extract_concepts(scene: Scene, parameters: ConceptParameters, rng: random.Random) -> list[str]:
    """Different nouns in random order, as a noisy extractor would return them for this image."""
    present = scene.nouns
    seen = [noun for noun in present if rng.random() >= parameters.miss_rate]
    lookalikes: list[str] = []
    for noun in present:
        if rng.random() < parameters.lookalike_rate:
            peers = [p for p in NOUNS_OF_CATEGORY[CATEGORY_OF[noun]] if p not in present and p not in lookalikes]
            if peers:
                lookalikes.append(rng.choice(peers))
    concepts = (seen + lookalikes)[: parameters.concepts_per_image]
    absent = [noun for noun in NOUNS if noun not in present and noun not in concepts]
    concepts += rng.sample(absent, min(len(absent), parameters.concepts_per_image - len(concepts)))
    rng.shuffle(concepts)
    return concepts


def measured_noise(scenes: Sequence[Scene], concepts: Sequence[Sequence[str]]) -> dict[str, float]:
    """Measures the concepts of these images: `recall` of the things shown and `precision` of the words."""
    hits = sum(len(set(scene.nouns) & set(words)) for scene, words in zip(scenes, concepts, strict=True))
    return {
        "recall": hits / max(1, sum(len(scene.nouns) for scene in scenes)),
        "precision": hits / max(1, sum(len(words) for words in concepts)),
    }


def retrieval_by_concepts_alone(
    scenes: Sequence[Scene], concepts: Sequence[Sequence[str]], parameters: ConceptParameters
) -> dict[str, float]:
    """Measures R@1 (in %) of the concepts alone, no pixel seen: a model has to beat it to have looked.

    An image is matched with a caption by a log-likelihood ratio that knows the extractor's rates. Each noun of the
    caption speaks for the image if it is among its concepts, and a little if a lookalike is. Otherwise it speaks
    against it. `overlap_*` is the plain count of shared nouns. Ties count as the chance of guessing right among them.

    Args:
        scenes: the images; the nouns of a caption are those of its scene.
        concepts: the concepts of each image.
        parameters: the extractor's rates.

    Returns:
        `r1_i2t`, `r1_t2i` (log-likelihood), `overlap_r1_i2t`, `overlap_r1_t2i`.
    """
    contains = np.array([[noun in words for noun in NOUNS] for words in concepts], dtype=float)
    named = np.array([[noun in scene.nouns for noun in NOUNS] for scene in scenes], dtype=float)
    likelihood = _log_likelihood_ratios(contains, named, parameters)
    overlap = contains @ named.T
    return {
        "r1_i2t": _recall_at_1(likelihood),
        "r1_t2i": _recall_at_1(likelihood.T),
        "overlap_r1_i2t": _recall_at_1(overlap),
        "overlap_r1_t2i": _recall_at_1(overlap.T),
    }


def _log_likelihood_ratios(contains: np.ndarray, named: np.ndarray, parameters: ConceptParameters) -> np.ndarray:
    """log P(concepts | the caption's nouns are shown) - log P(concepts | they are not), words taken one by one.

    Args:
        contains: `[images, nouns]`, 1 = among the image's concepts.
        named: `[captions, nouns]`, 1 = in the caption.

    Returns:
        `[images, captions]`.
    """
    category = np.array([CATEGORY_OF[noun] for noun in NOUNS])
    is_peer = (category[:, None] == category[None, :]).astype(float)
    by_chance = min(0.99, parameters.concepts_per_image / len(NOUNS))
    # Lookalikes are shared out among the nouns of the category that are not themselves in the caption.
    named_peers = named @ is_peer
    free_peers = np.maximum(is_peer.sum(0) - named_peers, 1)
    as_lookalike = by_chance + (1 - by_chance) * (1 - (1 - parameters.lookalike_rate / free_peers) ** named_peers)
    probability = np.where(named > 0, 1 - parameters.miss_rate, as_lookalike).clip(0.01, 0.99)
    present = np.log(probability / by_chance)
    absent = np.log((1 - probability) / (1 - by_chance))
    return contains @ present.T + (1 - contains) @ absent.T


def _recall_at_1(scores: np.ndarray) -> float:
    """Percentage of rows whose diagonal entry is the largest; among n equal ones it counts 1/n."""
    if not len(scores):
        return 0.0
    is_best = np.isclose(scores, scores.max(axis=1, keepdims=True), rtol=0, atol=1e-9)
    return float(100 * np.mean(is_best.diagonal() / is_best.sum(axis=1)))
