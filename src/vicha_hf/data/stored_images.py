"""Images that do not lie in files of their own: inside Hugging Face datasets, and inside tar shards."""

import os
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass


class ImageStore(ABC):
    """
    Many images in one place. An image is found by two numbers, whose meaning is the store's own.

    Attributes:
        source_index: which of the sources of the annotations it belongs to.
        key: its name within that source.
    """

    source_index: int = 0
    key: str = ""

    @abstractmethod
    def read_bytes(self, first: int, second: int | None) -> bytes:
        """The encoded image, as it was stored. Raises `OSError`."""

    @abstractmethod
    def describe(self, first: int, second: int | None) -> str:
        """The place of an image, for messages."""


@dataclass(frozen=True, slots=True)
class EmbeddedImage:
    """One image of a store; it is decoded only when it is opened."""

    images: ImageStore
    first: int
    second: int | None = None

    def __str__(self) -> str:
        return self.images.describe(self.first, self.second)

    def read_bytes(self) -> bytes:
        """The encoded image, as it was stored. Raises `OSError`."""
        return self.images.read_bytes(self.first, self.second)


class DatasetImages(ImageStore):
    """
    The images in a column of a Hugging Face dataset.

    Args:
        dataset: with the images undecoded, as mappings with `bytes`.
        column: of an image, or of a list of images.
    """

    def __init__(self, dataset, column: str):
        self.dataset = dataset
        self.column = column
        self.key = column

    def read_bytes(self, first: int, second: int | None) -> bytes:
        """The image of row `first`; of a list, the one at position `second`."""
        cell = self.dataset[first][self.column]
        return (cell if second is None else cell[second])["bytes"]

    def describe(self, first: int, second: int | None) -> str:
        within = "" if second is None else f", image {second}"
        return f"in column {self.column!r}, row {first}{within} of the dataset"


class HeldImage(ImageStore):
    """
    One image of a stream, held in memory.

    Args:
        content: the encoded image.
        place: of the image, for messages.
    """

    def __init__(self, content: bytes, place: str):
        self._content = content
        self._place = place

    def read_bytes(self, first: int, second: int | None) -> bytes:
        return self._content

    def describe(self, first: int, second: int | None) -> str:
        return self._place


class TarImages(ImageStore):
    """
    The members of an uncompressed tar file, found by offset and size.

    Args:
        path: of the tar file.
    """

    def __init__(self, path: str):
        self.path = path
        self.key = path
        self._local = threading.local()

    def read_bytes(self, first: int, second: int | None) -> bytes:
        """`second` bytes from offset `first` on."""
        content = os.pread(self._descriptor(), second, first)
        if len(content) < second:
            raise OSError(f"the tar file {self.path} ends within a member; download it again")
        return content

    def describe(self, first: int, second: int | None) -> str:
        return f"at byte {first} of {self.path}"

    def __reduce__(self) -> tuple:
        return TarImages._restore, (self.path, self.source_index)

    @staticmethod
    def _restore(path: str, source_index: int) -> "TarImages":
        store = TarImages(path)
        store.source_index = source_index
        return store

    def _descriptor(self) -> int:
        # A descriptor may be used by several processes: reading at an offset moves nothing.
        descriptor = getattr(self._local, "descriptor", None)
        if descriptor is None:
            descriptor = self._local.descriptor = os.open(self.path, os.O_RDONLY)
        return descriptor
