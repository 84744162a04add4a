"""Image of a record that has one: the same for every task."""

from PIL import Image

from .image_files import LazyImage, open_image
from .stored_images import EmbeddedImage


class ImageRecord:
    """
    Base of the records about one image.

    Attributes:
        image: path of the image, or an image inside a dataset.
        where: file and record, for messages.
    """

    __slots__ = ()

    image: str | EmbeddedImage
    where: str

    def load_image(self) -> Image.Image:
        """The image as upright RGB. Raises `ImageReadError`."""
        return open_image(self.image, self.where)

    def open_image(self) -> LazyImage:
        """The image, to be decoded when it is needed. Raises `ImageReadError`."""
        return LazyImage(self.image, self.where)
