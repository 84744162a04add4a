"""Retrieval by the words of the concepts alone: how far a reader without eyes would get."""

import re
from collections.abc import Sequence

import torch


_WORD = re.compile(r"\w+")


def words_alone_recall(
    concepts: Sequence[Sequence[str]], captions: Sequence[str], image_of_caption: Sequence[int]
) -> dict[str, float]:
    """
    R@1 in % of ranking by the number of different words that a caption and an image's concepts share. Where several are
    equally good, each of them is first with the same chance.

    Args:
        concepts: of each image.
        captions: all images' one after the other.
        image_of_caption: per caption the index of its image.

    Returns:
        `words_r1_i2t` and `words_r1_t2i`.
    """
    of_image = [_words(" ".join(words)) for words in concepts]
    of_caption = [_words(caption) for caption in captions]
    numbers = {word: number for number, word in enumerate(sorted(set().union(*of_image, *of_caption)))}
    shared = _incidence(of_image, numbers) @ _incidence(of_caption, numbers).T
    own = torch.tensor(image_of_caption)[None] == torch.arange(len(concepts))[:, None]
    return {"words_r1_i2t": 100 * _first_is_right(shared, own), "words_r1_t2i": 100 * _first_is_right(shared.T, own.T)}


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))


def _incidence(texts: Sequence[set[str]], numbers: dict[str, int]) -> torch.Tensor:
    """[n, words], 1 where a text has a word."""
    matrix = torch.zeros(len(texts), len(numbers))
    for row, words in enumerate(texts):
        matrix[row, [numbers[word] for word in words]] = 1.0
    return matrix


def _first_is_right(scores: torch.Tensor, right: torch.Tensor) -> float:
    """Mean over the rows of the share of the best that are right."""
    best = scores == scores.max(dim=1, keepdim=True).values
    return float(((best & right).sum(1) / best.sum(1)).mean())
