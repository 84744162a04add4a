"""Block-wise masking one image, one patch at a time: what the batched version and the golden masks are held against."""

import math
import random


class PythonDraws:
    """Draws in the order of the published code, from CPython's generator."""

    def __init__(self, seed: int):
        self._random = random.Random(seed)

    def begin_attempt(self) -> None:
        pass

    def area(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)

    def log_aspect(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)

    def top(self, highest: int) -> int:
        return self._random.randint(0, highest)

    def left(self, highest: int) -> int:
        return self._random.randint(0, highest)


class RecordedDraws:
    """Four recorded numbers of [0, 1) per attempt."""

    def __init__(self, attempts):
        self._attempts = iter(attempts)

    def begin_attempt(self) -> None:
        self._area, self._aspect, self._top, self._left = next(self._attempts)

    def area(self, low: float, high: float) -> float:
        return low + (high - low) * self._area

    def log_aspect(self, low: float, high: float) -> float:
        return low + (high - low) * self._aspect

    def top(self, highest: int) -> int:
        return int(self._top * (highest + 1))

    def left(self, highest: int) -> int:
        return int(self._left * (highest + 1))


def obvious_block_mask(
    draws,
    rows: int,
    columns: int,
    max_masked: int,
    min_block: int,
    min_aspect: float,
) -> list[list[int]]:
    """A mask as rows of 0 and 1."""
    mask = [[0] * columns for _ in range(rows)]
    hidden, failures = 0, 0
    while hidden < max_masked and failures < 10:
        failures += 1
        allowed = max_masked - hidden
        draws.begin_attempt()
        area = draws.area(min_block, allowed)
        aspect = math.exp(draws.log_aspect(math.log(min_aspect), math.log(1 / min_aspect)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height >= rows or width >= columns:
            continue
        top, left = draws.top(rows - height), draws.left(columns - width)
        places = [(y, x) for y in range(top, top + height) for x in range(left, left + width)]
        new = [(y, x) for y, x in places if not mask[y][x]]
        if 0 < len(new) <= allowed:
            for y, x in new:
                mask[y][x] = 1
            hidden, failures = hidden + len(new), 0
    return mask
