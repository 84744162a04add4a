"""Decoding of images, from files and from inside Hugging Face datasets, with errors that name the record."""

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from PIL import ExifTags, Image

from ..models.image_processing_vicha import to_upright_rgb


_Result = TypeVar("_Result")

# Exif: the rows of the file are the columns of the image.
_TURNED_BY_90_DEGREES = (5, 6, 7, 8)


class ImageReadError(RuntimeError):
    """An image that could not be decoded; the message names the file and the record that asks for it."""


class EmbeddedImages:
    """The images stored inside one Hugging Face dataset, decoded only when they are opened."""

    def __init__(self, dataset, column: str):
        self.dataset = dataset
        self.column = column

    def read_bytes(self, row: int, position: int | None = None) -> bytes:
        cell = self.dataset[row][self.column]
        return (cell if position is None else cell[position])["bytes"]


@dataclass(frozen=True, slots=True)
class EmbeddedImage:
    """One image stored inside a Hugging Face dataset; `position` where the column holds lists of images."""

    images: EmbeddedImages
    row: int
    position: int | None = None

    def __str__(self) -> str:
        within = "" if self.position is None else f", image {self.position}"
        return f"in column {self.images.column!r}, row {self.row}{within} of the dataset"

    def read_bytes(self) -> bytes:
        return self.images.read_bytes(self.row, self.position)


def open_image(image: str | EmbeddedImage, where: str) -> Image.Image:
    """
    Decodes an image completely, as upright RGB.

    Args:
        image: a path, or an image inside a dataset.
        where: the record that asks for it, for the error message.

    Raises:
        ImageReadError: the file is missing, truncated, or no image.
    """
    return _decode(image, where, _load_upright)


def read_image_size(image: str | EmbeddedImage, where: str) -> tuple[int, int]:
    """(height, width) in pixels of the image as `open_image` would return it, read from its header; raises alike."""
    return _decode(image, where, _upright_size)


def _load_upright(opened: Image.Image) -> Image.Image:
    opened.load()
    return to_upright_rgb(opened)


def _upright_size(opened: Image.Image) -> tuple[int, int]:
    # The method of a PNG would decode the whole image in search of an orientation behind the pixels.
    is_turned = Image.Image.getexif(opened).get(ExifTags.Base.Orientation) in _TURNED_BY_90_DEGREES
    width, height = reversed(opened.size) if is_turned else opened.size
    return height, width


def _decode(image: str | EmbeddedImage, where: str, use: Callable[[Image.Image], _Result]) -> _Result:
    try:
        with Image.open(io.BytesIO(image.read_bytes()) if isinstance(image, EmbeddedImage) else image) as opened:
            return use(opened)
    # Pillow's decoders raise SyntaxError and struct.error for broken files too.
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        raise ImageReadError(
            f"{where}: cannot read the image {image} ({type(error).__name__}: {error}); replace the file, or remove the "
            "record from the annotations"
        ) from error
