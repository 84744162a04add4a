"""The random augmentation of ALBEF, ViCHA and SIMLA: two of ten operations, each at a fixed strength.

After RandAugment (Cubuk et al. 2020, arXiv 1909.13719), restricted to operations that keep colours nameable: hue and
saturation are never touched, because captions name colours.
"""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps


NUM_OPERATIONS = 2
LEVEL = 7
MAX_LEVEL = 10
# Each drawn operation is skipped half of the time.
APPLY_PROBABILITY = 0.5
NEGATE_PROBABILITY = 0.5
# Colour of the pixels that a shift, shear or rotation uncovers.
FILL = (128, 128, 128)

# Strengths at MAX_LEVEL; they grow linearly with the level.
MAX_ENHANCEMENT_FACTOR = 1.8
MIN_ENHANCEMENT_FACTOR = 0.1
MAX_SHEAR = 0.3
MAX_TRANSLATION_PIXELS = 10
MAX_ROTATION_DEGREES = 30


def enhancement_factor(level: float) -> float:
    """Factor of brightness and sharpness (1 = unchanged): 1.36 at level 7."""
    return level / MAX_LEVEL * MAX_ENHANCEMENT_FACTOR + MIN_ENHANCEMENT_FACTOR


def shear_slope(level: float) -> float:
    """Shift in pixels per pixel of distance from the top left corner: 0.21 at level 7."""
    return level / MAX_LEVEL * MAX_SHEAR


def translation_pixels(level: float) -> float:
    """Shift in pixels, whatever the size of the image: 7 at level 7."""
    return level / MAX_LEVEL * MAX_TRANSLATION_PIXELS


def rotation_degrees(level: float) -> float:
    """Angle in degrees: 21 at level 7."""
    return level / MAX_LEVEL * MAX_ROTATION_DEGREES


def identity(image: Image.Image, level: float, sign: int) -> Image.Image:
    """Leaves the image alone."""
    return image


def auto_contrast(image: Image.Image, level: float, sign: int) -> Image.Image:
    """Stretches each channel to the full range 0 .. 255."""
    return ImageOps.autocontrast(image)


def equalize(image: Image.Image, level: float, sign: int) -> Image.Image:
    """Flattens each channel's histogram."""
    return ImageOps.equalize(image)


def brightness(image: Image.Image, level: float, sign: int) -> Image.Image:
    """Multiplies all values by `enhancement_factor(level)`."""
    return ImageEnhance.Brightness(image).enhance(enhancement_factor(level))


def sharpness(image: Image.Image, level: float, sign: int) -> Image.Image:
    """Moves the image away from its blurred version by `enhancement_factor(level)`."""
    return ImageEnhance.Sharpness(image).enhance(enhancement_factor(level))


def shear_x(image: Image.Image, level: float, sign: int) -> Image.Image:
    """Shifts each row to the right in proportion to its distance from the top (negative sign: to the left)."""
    return _affine(image, (1, -sign * shear_slope(level), 0, 0, 1, 0))


def shear_y(image: Image.Image, level: float, sign: int) -> Image.Image:
    """Shifts each column downwards in proportion to its distance from the left (negative sign: upwards)."""
    return _affine(image, (1, 0, 0, -sign * shear_slope(level), 1, 0))


def translate_x(image: Image.Image, level: float, sign: int) -> Image.Image:
    """Shifts to the right by `translation_pixels(level)` (negative sign: to the left)."""
    return _affine(image, (1, 0, -sign * translation_pixels(level), 0, 1, 0))


def translate_y(image: Image.Image, level: float, sign: int) -> Image.Image:
    """Shifts downwards by `translation_pixels(level)` (negative sign: upwards)."""
    return _affine(image, (1, 0, 0, 0, 1, -sign * translation_pixels(level)))


def rotate(image: Image.Image, level: float, sign: int) -> Image.Image:
    """Turns counter-clockwise about the centre by `rotation_degrees(level)` (negative sign: clockwise)."""
    return image.rotate(sign * rotation_degrees(level), resample=Image.Resampling.BILINEAR, fillcolor=FILL)


def _affine(image: Image.Image, output_to_input: tuple[float, ...]) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, output_to_input, resample=Image.Resampling.BILINEAR, fillcolor=FILL
    )


# Names as in the published configuration, in its order: the draw is an index into this table.
OPERATIONS: dict[str, Callable[[Image.Image, float, int], Image.Image]] = {
    "Identity": identity,
    "AutoContrast": auto_contrast,
    "Equalize": equalize,
    "Brightness": brightness,
    "Sharpness": sharpness,
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateX": translate_x,
    "TranslateY": translate_y,
    "Rotate": rotate,
}


class RandAugment:
    """
    Draws `num_operations` of the ten operations with replacement and applies each with probability 0.5; shears, shifts
    and rotations go either way with equal probability.

    Args:
        num_operations: operations drawn per image (published: 2).
        level: strength from 0 to 10 (published: 7).

    Raises:
        ValueError: a negative number of operations, or a level outside 0 .. 10.
    """

    def __init__(self, num_operations: int = NUM_OPERATIONS, level: float = LEVEL):
        if num_operations < 0:
            raise ValueError(f"num_operations={num_operations} must not be negative")
        if not 0 <= level <= MAX_LEVEL:
            raise ValueError(f"level={level} must be between 0 and {MAX_LEVEL}")
        self.num_operations = num_operations
        self.level = level

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Augments an RGB image; the size stays."""
        return self.apply(image, self.draw(rng))

    def draw(self, rng: np.random.Generator) -> list[tuple[str, int]]:
        """Name and sign of the operations that are to change an image."""
        names, drawn = list(OPERATIONS), []
        for index in rng.integers(len(names), size=self.num_operations):
            # All three draws always happen, so that a skipped operation does not shift the draws that follow.
            apply = rng.random() < APPLY_PROBABILITY
            sign = -1 if rng.random() < NEGATE_PROBABILITY else 1
            if apply and OPERATIONS[names[index]] is not identity:
                drawn.append((names[index], sign))
        return drawn

    def apply(self, image: Image.Image, operations: Sequence[tuple[str, int]]) -> Image.Image:
        """An RGB image changed by operations of `draw`."""
        for name, sign in operations:
            image = OPERATIONS[name](image, self.level, sign)
        return image

    def __repr__(self) -> str:
        return f"RandAugment(num_operations={self.num_operations}, level={self.level})"
