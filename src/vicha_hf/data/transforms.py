"""Images to normalised tensors for training (cropped, flipped, augmented) and evaluation (resized)."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from transformers.image_processing_backends import PilBackend

from ..models.image_processing_vicha import ViChaImageProcessor
from .image_files import LazyImage
from .randaugment import RandAugment


# Width to height of a random crop, drawn log-uniformly.
CROP_RATIO = (3 / 4, 4 / 3)
# Share of the image's area: pretraining and fine-tuning of the published systems.
PRETRAINING_CROP_SCALE = (0.2, 1.0)
FINETUNING_CROP_SCALE = (0.5, 1.0)
CROP_ATTEMPTS = 10
FLIP_PROBABILITY = 0.5
# Sides of a JPEG that can be decoded: one by so many.
_REDUCTIONS = (8, 4, 2)


class EvaluationTransform:
    """
    Resizes to the model's size without cropping and normalises: exactly what the image processor does.

    Args:
        image_size: side of the square, or (height, width).
        image_processor: where the channel means and deviations come from (default: CLIP's).
    """

    # What a transform draws, in words; empty where an image always gives the same pixel values.
    random_operations = ()

    def __init__(self, image_size: int | tuple[int, int], image_processor: PilBackend | None = None):
        self.height, self.width = _height_and_width(image_size)
        self._normalize = _Normalization(image_processor or ViChaImageProcessor())

    @classmethod
    def from_image_processor(cls, image_processor: PilBackend, **options):
        """A transform with the size and normalisation of an image processor."""
        size = image_processor.size
        return cls((size["height"], size["width"]), image_processor=image_processor, **options)

    def __call__(
        self, image: Image.Image | LazyImage, rng: np.random.Generator | None = None, may_mirror: bool = True
    ) -> torch.Tensor:
        """
        Args:
            image: an RGB image.
            rng, may_mirror: not used; evaluation draws nothing.

        Returns:
            float32 [3, height, width].
        """
        return self._normalize(_decoded(image).resize((self.width, self.height), Image.Resampling.BICUBIC))


class MeanImage:
    """
    Puts the mean image (0 everywhere after normalisation) in the place of every image, so that only the text is left to
    answer from.

    Args:
        image_size: side of the square, or (height, width).
    """

    def __init__(self, image_size: int | tuple[int, int]):
        self.height, self.width = _height_and_width(image_size)

    @classmethod
    def from_image_processor(cls, image_processor: PilBackend):
        """Of the size of an image processor."""
        return cls((image_processor.size["height"], image_processor.size["width"]))

    def __call__(
        self, image: Image.Image | LazyImage, rng: np.random.Generator | None = None, may_mirror: bool = True
    ) -> torch.Tensor:
        """float32 [3, height, width], whatever the image; nothing is drawn."""
        return torch.zeros(3, self.height, self.width)


class PretrainingTransform:
    """
    Random crop resized bicubically, random horizontal flip, RandAugment, normalisation (ALBEF, arXiv 2107.07651; kept by
    ViCHA and SIMLA).

    Every draw comes from the generator that is passed in, so an image's augmentation depends on nothing else: not on the
    number of workers, nor on the images before it.

    Args:
        image_size: side of the square, or (height, width).
        scale: smallest and largest share of the image's area that a crop keeps (0.2 .. 1 in pretraining, 0.5 .. 1 in
            fine-tuning). None resizes the whole image instead, as grounding does.
        hflip: whether to mirror half of the images. Turn it off where captions say left and right.
        randaugment: whether to augment, or a `RandAugment` of one's own.
        image_processor: where the channel means and deviations come from (default: CLIP's).
        fast: whether torch resizes images that are given undecoded. JPEG is then decoded at a half, quarter or eighth of
            its sides where the crop still has enough pixels. The numbers are the same each time. docs/data.md says how
            far they are from the exact ones.

    Raises:
        ValueError: an unusable size or scale.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int],
        scale: Sequence[float] | None = PRETRAINING_CROP_SCALE,
        hflip: bool = True,
        randaugment: bool | RandAugment = True,
        image_processor: PilBackend | None = None,
        fast: bool = True,
    ):
        self.fast = fast
        self.height, self.width = _height_and_width(image_size)
        if scale is not None and not (len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1):
            raise ValueError(f"the crop scale must be (smallest, largest) within (0, 1], got {scale}")
        self.scale = tuple(scale) if scale is not None else None
        self.hflip = hflip
        if isinstance(randaugment, bool):
            randaugment = RandAugment() if randaugment else None
        self.randaugment = randaugment
        self._normalize = _Normalization(image_processor or ViChaImageProcessor())

    @property
    def random_operations(self) -> tuple[str, ...]:
        """Names of the random operations; empty where an image always gives the same pixel values."""
        operations = {
            f"scale={self.scale}": self.scale is not None,
            "hflip": self.hflip,
            "randaugment": self.randaugment is not None,
        }
        return tuple(name for name, used in operations.items() if used)

    @classmethod
    def from_image_processor(cls, image_processor: PilBackend, **options):
        """A transform with the size and normalisation of an image processor."""
        size = image_processor.size
        return cls((size["height"], size["width"]), image_processor=image_processor, **options)

    def __call__(
        self, image: Image.Image | LazyImage, rng: np.random.Generator, may_mirror: bool = True
    ) -> torch.Tensor:
        """
        Args:
            image: an RGB image.
            rng: source of every draw.
            may_mirror: False keeps left and right of this image where they are; no other draw changes by it.

        Returns:
            float32 [3, height, width].
        """
        box = (0, 0, *image.size)
        if self.scale is not None:
            box = random_crop_box(image.size, self.scale, CROP_RATIO, rng)
        pixels = self._resized_crop(image, box)
        if self.hflip and rng.random() < FLIP_PROBABILITY and may_mirror:
            pixels = pixels[:, ::-1]
        if self.randaugment is not None and (operations := self.randaugment.draw(rng)):
            pixels = np.asarray(self.randaugment.apply(Image.fromarray(np.ascontiguousarray(pixels)), operations))
        return self._normalize(pixels)

    def _resized_crop(self, image: Image.Image | LazyImage, box: tuple[int, int, int, int]) -> np.ndarray:
        """Pixel values, uint8 [height, width, 3], of a box of the image."""
        if not (self.fast and isinstance(image, LazyImage)):
            # Cropped first: resizing a box of the whole image would mix pixels from outside the box into its edge.
            cropped = _decoded(image).crop(box)
            return np.asarray(cropped.resize((self.width, self.height), Image.Resampling.BICUBIC))
        shrinking = min((box[2] - box[0]) // self.width, (box[3] - box[1]) // self.height)
        reduction = next((factor for factor in _REDUCTIONS if factor <= shrinking), 1)
        decoded = image.decode(reduction)
        horizontal, vertical = decoded.size[0] / image.size[0], decoded.size[1] / image.size[1]
        # Whole pixels: the edges of a crop move by at most half a pixel of the result.
        left, upper = round(box[0] * horizontal), round(box[1] * vertical)
        box = (left, upper, round(box[2] * horizontal), round(box[3] * vertical))
        pixels = torch.from_numpy(np.array(decoded.crop(box)))
        channels_last = pixels.permute(2, 0, 1).unsqueeze(0)
        resized = functional.interpolate(channels_last, (self.height, self.width), mode="bicubic", antialias=True)
        return resized[0].permute(1, 2, 0).numpy()


def _decoded(image: Image.Image | LazyImage, reduction: int = 1) -> Image.Image:
    return image.decode(reduction) if isinstance(image, LazyImage) else image


def random_crop_box(
    size: tuple[int, int], scale: Sequence[float], ratio: Sequence[float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """
    A random box (left, upper, right, lower) whose share of the area lies in `scale` and whose width to height lies in
    `ratio` (Szegedy et al. 2015, arXiv 1409.4842). Where ten draws do not fit into the image, the largest centred box
    with an allowed shape is taken.

    Args:
        size: (width, height) of the image in pixels.
    """
    width, height = size
    log_ratio = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(CROP_ATTEMPTS):
        area = width * height * rng.uniform(*scale)
        shape = math.exp(rng.uniform(*log_ratio))
        crop_width, crop_height = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(rng.integers(width - crop_width + 1))
            upper = int(rng.integers(height - crop_height + 1))
            return left, upper, left + crop_width, upper + crop_height
    shape = min(max(width / height, ratio[0]), ratio[1])
    crop_width = max(1, min(width, round(height * shape)))
    crop_height = max(1, min(height, round(width / shape)))
    left, upper = (width - crop_width) // 2, (height - crop_height) // 2
    return left, upper, left + crop_width, upper + crop_height


class _Normalization:
    """
    The image processor's rescaling and normalisation as a table of the 256 values of each channel: the same numbers to
    the last bit, without arithmetic per pixel.
    """

    def __init__(self, image_processor: PilBackend):
        values = np.arange(256, dtype=np.uint8).reshape(1, 1, 256).repeat(3, axis=0)
        rescaled = image_processor.rescale(values, image_processor.rescale_factor)
        normalized = image_processor.normalize(rescaled, image_processor.image_mean, image_processor.image_std)
        self._table = np.ascontiguousarray(normalized[:, 0], dtype=np.float32)

    def __call__(self, image: Image.Image | np.ndarray) -> torch.Tensor:
        pixels = np.asarray(image)
        channels = np.empty((3, *pixels.shape[:2]), dtype=np.float32)
        for channel in range(3):
            # "clip" spares the look for indices outside the table, of which there are none.
            np.take(self._table[channel], pixels[:, :, channel], out=channels[channel], mode="clip")
        return torch.from_numpy(channels)


def _height_and_width(image_size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if height < 1 or width < 1:
        raise ValueError(f"image_size={image_size} must be positive")
    return height, width
