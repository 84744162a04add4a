"""Nearly equal images in different splits: what a model has seen in training must not be what it is tested on."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .image_files import ImageReadError, open_image
from .stored_images import EmbeddedImage


# Of 64 bits; a saved or resized copy changes one or two.
MAX_DIFFERENT_BITS = 3
# Grey values of small copies, of 255, at any place and colour.
MAX_DIFFERENCE = 24
_SIDE = 24
_BANDS = 4
# Comparisons of small copies; images of one colour are alike in their differences, in any number.
_MOST_CANDIDATES = 20_000


@dataclass(frozen=True)
class NearDuplicate:
    """Two images of different splits, with the records that name them first."""

    first: str
    first_where: str
    second: str
    second_where: str


def difference_hash(image: Image.Image) -> int:
    """64 bits: whether a pixel of the image at 9 x 8 pixels is brighter than its left neighbour."""
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    return int(np.packbits(grey[:, 1:] > grey[:, :-1]).view(">u8")[0])


def find_near_duplicates(
    images: Sequence[str | EmbeddedImage], places: Sequence[str], hashes: np.ndarray, splits: Sequence[str]
) -> list[NearDuplicate]:
    """
    Pairs of images from different splits that look the same.

    Args:
        images: each once per split.
        places: the record that names each.
        hashes: of `difference_hash`, uint64 [N].
        splits: of each image.
    """
    found, small = [], {}
    for first, second in _candidates(hashes, splits):
        copies = []
        for index in (first, second):
            if index not in small:
                small[index] = _small_copy(images[index], places[index])
            copies.append(small[index])
        if any(copy is None for copy in copies):
            continue
        if np.abs(copies[0] - copies[1]).max() <= MAX_DIFFERENCE:
            found.append(NearDuplicate(str(images[first]), places[first], str(images[second]), places[second]))
    return found


def _candidates(hashes: np.ndarray, splits: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Pairs of different splits whose hashes are close. Of three different bits one of four bands holds none."""
    seen: set[tuple[int, int]] = set()
    for band in range(_BANDS):
        groups = defaultdict(list)
        for index, key in enumerate((hashes >> np.uint64(16 * band)) & np.uint64(0xFFFF)):
            groups[int(key)].append(index)
        for members in groups.values():
            for position, first in enumerate(members):
                for second in members[position + 1 :]:
                    if splits[first] == splits[second] or (first, second) in seen:
                        continue
                    if int(hashes[first] ^ hashes[second]).bit_count() <= MAX_DIFFERENT_BITS:
                        seen.add((first, second))
                        yield first, second
                        if len(seen) == _MOST_CANDIDATES:
                            return


def _small_copy(image: str | EmbeddedImage, where: str) -> np.ndarray | None:
    try:
        opened = open_image(image, where)
    except ImageReadError:
        return None
    return np.asarray(opened.resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.int16)
