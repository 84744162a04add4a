"""Images of one colour each, with a little noise: what is shown can be told, and no two are equal."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "black": (10, 10, 10)}


def write_colour_images(folder: Path, number: int, colours: Sequence[str] = tuple(COLOURS)) -> list[str]:
    """Writes `0.png` ... of 48 x 40 pixels, in the colours in turn; returns the colour of each."""
    rng = np.random.default_rng(0)
    shown = [colours[index % len(colours)] for index in range(number)]
    for index, colour in enumerate(shown):
        pixels = np.clip(np.array(COLOURS[colour]) + rng.integers(-20, 20, (40, 48, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return shown
