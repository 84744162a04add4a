"""Sources mixed by weights: which item of which source stands at which place of an epoch."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np


class WeightedMixture:
    """
    An epoch has as many items as the sources together. Each source fills its share of the places, passing through its own
    items in a drawn order again and again: none comes a second time before all have come.

    Args:
        sizes: items of each source.
        weights: how often each source's items come, relative to the others.
        seed: of the orders.

    Raises:
        ValueError: no source has both items and a weight.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int):
        if len(sizes) != len(weights) or not any(size and weight for size, weight in zip(sizes, weights, strict=True)):
            raise ValueError(f"sources of {list(sizes)} items cannot be mixed by the weights {list(weights)}")
        self._seed = seed
        self._sizes = list(sizes)
        self._offsets = np.concatenate([[0], np.cumsum(sizes)])
        shares = np.array([weight if size else 0.0 for size, weight in zip(sizes, weights, strict=True)])
        # Rounded so that the places add up.
        self._ends = np.rint(np.cumsum(shares / shares.sum()) * sum(sizes)).astype(np.int64)
        self.quotas = np.diff(self._ends, prepend=0).tolist()
        self._permutation = lru_cache(maxsize=2 * len(sizes))(self._draw_permutation)

    def item(self, epoch: int, place: int) -> int:
        """The number, among all sources' items one source after the other, of the item at a place of an epoch."""
        source = int(np.searchsorted(self._ends, place, side="right"))
        before = int(self._ends[source - 1]) if source else 0
        visit = epoch * self.quotas[source] + place - before
        cycle, position = divmod(visit, self._sizes[source])
        return int(self._offsets[source]) + int(self._permutation(source, cycle)[position])

    def _draw_permutation(self, source: int, cycle: int) -> np.ndarray:
        sequence = np.random.SeedSequence(self._seed, spawn_key=(source, cycle))
        return np.random.default_rng(sequence).permutation(np.arange(self._sizes[source], dtype=np.uint32))

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_permutation"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._permutation = lru_cache(maxsize=2 * len(self._sizes))(self._draw_permutation)
