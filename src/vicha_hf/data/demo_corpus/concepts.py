"""A noisy extractor of visual concepts, and a measure of how much its concepts give away.

Real concepts come from an image-text model that ranks a vocabulary for each picture: it overlooks things, takes one
for a similar one, and always returns the same number of words, so that most of them are not in the picture. A demo
whose concepts were the ground truth would only show that words match words.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from .scene import Scene
from .sprites import CATEGORY_OF, NOUNS, NOUNS_OF_CATEGORY


@dataclass(frozen=True)
class ConceptParameters:
    """The extractor's errors.

    Attributes:
        concepts_per_image: words per picture, always exactly so many, like the top k of a real extractor.
        miss_rate: chance that a thing in the picture is overlooked.
        lookalike_rate: chance, per thing in the picture and whether or not it is overlooked, that another noun of its
            category is returned as well. The rest of the list is filled with nouns drawn at random.
    """

    concepts_per_image: int = 8
    miss_rate: float = 0.4
    lookalike_rate: float = 0.5


def extract_concepts(scene: Scene, parameters: ConceptParameters, rng: random.Random) -> list[str]:
    """Different nouns in random order, as a noisy extractor would return them for this picture."""
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
    """What the concepts of these pictures are like: `recall` of the things shown and `precision` of the words."""
    hits = sum(len(set(scene.nouns) & set(words)) for scene, words in zip(scenes, concepts, strict=True))
    return {
        "recall": hits / max(1, sum(len(scene.nouns) for scene in scenes)),
        "precision": hits / max(1, sum(len(words) for words in concepts)),
    }


def retrieval_by_concepts_alone(
    scenes: Sequence[Scene], concepts: Sequence[Sequence[str]], parameters: ConceptParameters
) -> dict[str, float]:
    """How well the concepts retrieve, no pixel seen: the R@1 (in %) that a model has to beat to have looked.

    A picture is matched with a caption by a log-likelihood ratio that knows the extractor's rates: each noun of the
    caption speaks for the picture if it is among its concepts, a little if a lookalike is, and against it otherwise.
    `overlap_*` is the plain count of shared nouns. Ties count as the chance of guessing right among them.

    Args:
        scenes: the pictures; the nouns of a caption are those of its scene.
        concepts: the concepts of each picture.
        parameters: the extractor's rates.

    Returns:
        `r1_i2t`, `r1_t2i` (log-likelihood), `overlap_r1_i2t`, `overlap_r1_t2i`.
    """
    likelihood = [[_log_likelihood_ratio(scene.nouns, words, parameters) for scene in scenes] for words in concepts]
    overlap = [[float(len(set(scene.nouns) & set(words))) for scene in scenes] for words in concepts]
    return {
        "r1_i2t": _recall_at_1(likelihood),
        "r1_t2i": _recall_at_1([list(column) for column in zip(*likelihood, strict=True)]),
        "overlap_r1_i2t": _recall_at_1(overlap),
        "overlap_r1_t2i": _recall_at_1([list(column) for column in zip(*overlap, strict=True)]),
    }


def _log_likelihood_ratio(nouns: Sequence[str], words: Sequence[str], parameters: ConceptParameters) -> float:
    """log P(words | the picture shows these nouns) - log P(words | it does not), nouns taken one by one."""
    by_chance = min(0.99, parameters.concepts_per_image / len(NOUNS))
    hit = min(0.99, max(0.01, 1 - parameters.miss_rate))
    score = 0.0
    for noun in nouns:
        peers = [peer for peer in NOUNS_OF_CATEGORY[CATEGORY_OF[noun]] if peer not in nouns]
        if noun in words:
            score += math.log(hit / by_chance)
        else:
            score += math.log((1 - hit) / (1 - by_chance))
        if peers:
            lookalike = min(0.99, by_chance + parameters.lookalike_rate / len(peers))
            for peer in peers:
                score += (
                    math.log(lookalike / by_chance) if peer in words else math.log((1 - lookalike) / (1 - by_chance))
                )
    return score


def _recall_at_1(scores: list[list[float]]) -> float:
    """Percentage of rows whose diagonal entry is the largest; a tie of n counts 1/n."""
    right = 0.0
    for index, row in enumerate(scores):
        best = max(row)
        ties = sum(math.isclose(score, best, abs_tol=1e-9) for score in row)
        right += math.isclose(row[index], best, abs_tol=1e-9) / ties
    return 100 * right / max(1, len(scores))
