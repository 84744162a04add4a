"""Decoding of images, from files, datasets and shards, with errors that name the record."""

import io
import os
import stat
import struct
import zlib
from collections.abc import Callable
from typing import BinaryIO, TypeVar

from PIL import ExifTags, Image, UnidentifiedImageError

from ..models.image_processing_vicha import to_upright_rgb
from .stored_images import EmbeddedImage


_Result = TypeVar("_Result")

# Exif: the rows of the file are the columns of the image.
_TURNED_BY_90_DEGREES = (5, 6, 7, 8)
# What Pillow's decoders raise for broken files.
_DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class ImageReadError(RuntimeError):
    """
    An image that could not be decoded; the message names the file and the record that asks for it.

    Args:
        message: for people, without the record.
        cause: the fault, in words that are the same for all such images (they are counted).
        where: the record that asks for the image.
    """

    def __init__(self, message: str, cause: str = "not readable", where: str = ""):
        super().__init__(message, cause, where)
        self.message = message
        self.cause = cause
        self.where = where

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class _NotAFile(OSError):
    """A pipe, a socket, a device or a folder in the place of an image."""


class LazyImage:
    """
    An image that is decoded when it is needed, and not at more pixels than are needed.

    Args:
        image: a path, or an image inside a dataset or shard.
        where: the record that asks for it, for the error message.

    Attributes:
        size: (width, height) in pixels of the upright image.

    Raises:
        ImageReadError: the file is missing or no image.
    """

    def __init__(self, image: str | EmbeddedImage, where: str):
        self._image = image
        self._where = where
        self._opened = _guarded(image, where, self._open)
        self.size = self._size()

    def _open(self) -> Image.Image:
        return Image.open(_readable(self._image))

    def _size(self) -> tuple[int, int]:
        height, width = _guarded(self._image, self._where, lambda: _upright_size(self._opened))
        return width, height

    def decode(self, reduction: int = 1) -> Image.Image:
        """
        The image as upright RGB.

        Args:
            reduction: 1, 2, 4 or 8; the sides become that much shorter, rounded up, where the format can be decoded so
                (JPEG). Others are decoded whole.

        Raises:
            ImageReadError: the file is truncated or damaged.
        """
        return _guarded(self._image, self._where, lambda: self._decode(reduction))

    def _decode(self, reduction: int) -> Image.Image:
        with self._opened as opened:
            if reduction > 1 and opened.format == "JPEG":
                width, height = opened.size
                opened.draft(None, (max(1, width // reduction), max(1, height // reduction)))
            opened.load()
            return to_upright_rgb(opened)


def open_image(image: str | EmbeddedImage, where: str) -> Image.Image:
    """
    Decodes an image completely, as upright RGB.

    Args:
        image: a path, or an image inside a dataset or shard.
        where: the record that asks for it, for the error message.

    Raises:
        ImageReadError: the file is missing, truncated, or no image.
    """
    return LazyImage(image, where).decode()


def read_image_size(image: str | EmbeddedImage, where: str) -> tuple[int, int]:
    """(height, width) in pixels of the image as `open_image` would return it, read from its header; raises alike."""

    def read() -> tuple[int, int]:
        with Image.open(_readable(image)) as opened:
            return _upright_size(opened)

    return _guarded(image, where, read)


def _readable(image: str | EmbeddedImage) -> str | BinaryIO:
    if isinstance(image, EmbeddedImage):
        return io.BytesIO(image.read_bytes())
    # Reading a pipe may never end.
    if not stat.S_ISREG(os.stat(image).st_mode):
        raise _NotAFile("no regular file")
    return image


def _upright_size(opened: Image.Image) -> tuple[int, int]:
    # The method of a PNG would decode the whole image in search of an orientation behind the pixels.
    is_turned = Image.Image.getexif(opened).get(ExifTags.Base.Orientation) in _TURNED_BY_90_DEGREES
    width, height = reversed(opened.size) if is_turned else opened.size
    return height, width


def _guarded(image: str | EmbeddedImage, where: str, read: Callable[[], _Result]) -> _Result:
    try:
        return read()
    except ImageReadError:
        raise
    except _DECODER_ERRORS as error:
        cause = _cause(image, error)
        # Pillow's own message about what is no image names an address in memory.
        detail = "" if isinstance(error, UnidentifiedImageError) else f": {type(error).__name__}: {error}"
        raise ImageReadError(
            f"cannot read the image {image} ({cause}{detail}); replace the file, or "
            "remove the record from the annotations",
            cause,
            where,
        ) from error


def _cause(image: str | EmbeddedImage, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "file not found"
    if isinstance(error, _NotAFile):
        return "no file"
    if isinstance(error, Image.DecompressionBombError):
        return "too many pixels"
    if isinstance(error, UnidentifiedImageError):
        return _kind_of(_first_bytes(image))
    return "truncated" if "truncated" in str(error) else "damaged"


def _first_bytes(image: str | EmbeddedImage) -> bytes:
    try:
        if isinstance(image, EmbeddedImage):
            return image.read_bytes()[:64]
        with open(image, "rb") as file:
            return file.read(64)
    except OSError:
        return b"?"


def _kind_of(start: bytes) -> str:
    if not start:
        return "an empty file"
    if start.lstrip().startswith(b"<"):
        return "a web page, not an image"
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, not an image"
    return "not an image"
