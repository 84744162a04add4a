"""Decoding of pictures, from files and from inside Hugging Face datasets, with errors that name the record."""

import io
import struct
from dataclasses import dataclass

from PIL import Image

from ..models.image_processing_vicha import to_upright_rgb


class ImageReadError(RuntimeError):
    """A picture that could not be decoded; the message names the file and the record that asks for it."""


class EmbeddedImages:
    """The pictures stored inside one Hugging Face dataset, decoded only when they are opened."""

    def __init__(self, dataset, column: str):
        self.dataset = dataset
        self.column = column

    def read_bytes(self, row: int) -> bytes:
        return self.dataset[row][self.column]["bytes"]


@dataclass(frozen=True, slots=True)
class EmbeddedImage:
    """One picture stored inside a Hugging Face dataset."""

    images: EmbeddedImages
    row: int

    def __str__(self) -> str:
        return f"in column {self.images.column!r}, row {self.row} of the dataset"

    def read_bytes(self) -> bytes:
        return self.images.read_bytes(self.row)


def open_image(image: str | EmbeddedImage, where: str) -> Image.Image:
    """
    Decodes a picture completely, as upright RGB.

    Args:
        image: a path, or a picture inside a dataset.
        where: the record that asks for it, for the error message.

    Raises:
        ImageReadError: the file is missing, truncated, or no picture.
    """
    try:
        with Image.open(io.BytesIO(image.read_bytes()) if isinstance(image, EmbeddedImage) else image) as opened:
            opened.load()
            return to_upright_rgb(opened)
    # Pillow's decoders raise SyntaxError and struct.error for broken files too.
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        raise ImageReadError(
            f"{where}: cannot read the picture {image} ({type(error).__name__}: {error}); replace the file, or remove the "
            "record from the annotations"
        ) from error
