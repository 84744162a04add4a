"""Images to pixel values: upright RGB, bicubic resize to a rectangle, rescale, CLIP normalisation (Pillow and NumPy only)."""

import io
import os
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import (
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    ChannelDimension,
    PILImageResampling,
    infer_channel_dimension_format,
    is_valid_image,
)


# Characters; Linux's longest.
_LONGEST_PATH = 4096


def to_upright_rgb(image: Image.Image) -> Image.Image:
    """
    Any Pillow image as 8-bit RGB, the way a person sees it.

    The EXIF orientation is applied, transparency (RGBA, LA, palette with a transparent colour) is composited on white,
    grayscale and palettes are expanded, 16-bit grayscale keeps its high byte.

    Args:
        image: a Pillow image of any 8-bit or 16-bit mode.

    Returns:
        A Pillow image of mode "RGB".

    Raises:
        ValueError: modes "I" and "F", whose value range is unknown.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and image.info.get("transparency") is None:
        return image
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips everything above 255 to white.
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(
            f"an image of mode {image.mode!r} has no known value range; convert it to 8 bits per channel first"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


class ViChaImageProcessor(PilBackend):
    """
    Image processor of ViCHA, as the published code evaluates. It resizes to `size` (height, width) by bicubic
    interpolation without cropping. Values are scaled to [0, 1], then normalised with CLIP's channel means and
    deviations.

    Images come single or in a list: Pillow images of any 8- or 16-bit mode, paths, URLs, bytes of files, and arrays or
    tensors. Arrays and tensors are [H, W], [H, W, C], [C, H, W] or a batch [B, ...] of the last two (C = 1, 3 or 4), of
    integers in 0 .. 255 or floats in 0 .. 1. Returns `pixel_values` [B, 3, height, width], float32.

    Raises:
        ValueError: an array of a wrong shape or value range, an unusable `size`; the message names the remedy.
        TypeError: something that is not an image.
        OSError: a file that cannot be read, by name.
    """

    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    # Pretraining resolution (Shukor et al. 2022, arXiv 2208.13628, implementation details); fine-tuning uses 380 or 384.
    size = {"height": 256, "width": 256}  # noqa: RUF012 - the backend's way of declaring defaults
    default_to_square = True
    do_convert_rgb = True
    do_resize = True
    do_rescale = True
    do_normalize = True

    def _standardize_kwargs(self, **kwargs) -> dict:
        kwargs = super()._standardize_kwargs(**kwargs)
        size = kwargs.get("size")
        if size is not None and not (size.height and size.width and size.height > 0 and size.width > 0):
            raise ValueError(
                f"{type(self).__name__}: size={dict(size)} is not usable; give a positive int (square) or "
                '{"height": ..., "width": ...}'
            )
        return kwargs

    def fetch_images(self, image_url_or_urls):
        """Opens paths, URLs and the bytes of files; images pass through. Lists keep their structure."""
        if isinstance(image_url_or_urls, list | tuple):
            return [self.fetch_images(entry) for entry in image_url_or_urls]
        if image_url_or_urls is None:
            raise TypeError(f"{type(self).__name__}: an image is None; leave it out, with its text")
        if isinstance(image_url_or_urls, bytes | bytearray):
            return _open_bytes(image_url_or_urls)
        if not isinstance(image_url_or_urls, str | Path):
            if not is_valid_image(image_url_or_urls):
                kind = type(image_url_or_urls).__name__
                raise TypeError(
                    f"an image is a Pillow image, a path, a URL, the bytes of a file, an array or a tensor; got {kind}"
                )
            return image_url_or_urls
        if isinstance(image_url_or_urls, str) and image_url_or_urls.startswith("file:"):
            return _open_file(url2pathname(urlsplit(image_url_or_urls).path))
        # Base64 data, which the library reads, is longer than any path, and has no dot.
        is_path = isinstance(image_url_or_urls, Path) or os.path.exists(image_url_or_urls[:_LONGEST_PATH])
        if is_path or ("." in image_url_or_urls[:_LONGEST_PATH] and ":" not in image_url_or_urls[:_LONGEST_PATH]):
            return _open_file(image_url_or_urls)
        try:
            return super().fetch_images(image_url_or_urls)
        except Exception as error:
            # What fails on the way to a URL is of the libraries behind it.
            name = shorten(image_url_or_urls)
            raise ValueError(
                f"{name} is no image file, URL or base64 data that can be read: {shorten(str(error))}"
            ) from error

    def _prepare_images_structure(self, images, expected_ndims: int = 3):
        # The library refuses [H, W] arrays and lists that mix Pillow images with arrays; a channel axis and one list fix both.
        if isinstance(images, list | tuple) and not len(images):
            raise ValueError(f"{type(self).__name__}: the list of images is empty")
        images = self.fetch_images(images)
        if isinstance(images, list | tuple):
            images = [_with_channel_axis(image) for image in images]
            if all(isinstance(image, Image.Image) or getattr(image, "ndim", None) == 3 for image in images):
                return images
        return super()._prepare_images_structure(_with_channel_axis(images), expected_ndims=expected_ndims)

    def process_image(
        self, image, do_convert_rgb=None, input_data_format=None, do_rescale=None, **kwargs
    ) -> np.ndarray:
        """One image as an array [C, H, W]: uint8, or untouched floats when `do_rescale` is off."""
        if isinstance(image, Image.Image):
            if 0 in image.size:
                raise ValueError(f"an image of size {image.size} (width, height) has no pixels")
            if do_convert_rgb:
                image = _converted(image)
        else:
            if isinstance(image, torch.Tensor):
                image = image.detach().cpu().numpy()
            image = np.asarray(image)
            input_data_format = _checked_layout(image, input_data_format)
            if do_rescale:
                image = _to_uint8(image)
        return super().process_image(
            image, do_convert_rgb=do_convert_rgb, input_data_format=input_data_format, **kwargs
        )


def _converted(image: Image.Image) -> Image.Image:
    try:
        return to_upright_rgb(image)
    except ValueError as error:
        # An image that was opened from a file knows its name.
        file = getattr(image, "filename", "")
        raise ValueError(f"{file}: {error}" if file else str(error)) from error


def _open_file(path: str | Path) -> Image.Image:
    if not os.path.exists(path):
        raise ValueError(f"image file not found: {path}")
    if not os.path.isfile(path):
        raise ValueError(f"{path} is not an image file")
    try:
        # The library's own loader drops the alpha channel onto black before the processor can see it.
        with Image.open(path) as image:
            image.load()
            return image
    except Exception as error:
        # The decoders raise errors of every kind for broken files.
        raise OSError(f"image file {path} cannot be read: {type(error).__name__}: {error}") from error


def _open_bytes(content: bytes | bytearray) -> Image.Image:
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            return image
    except Exception as error:
        raise OSError(f"{len(content):,} bytes are no image file that can be read: {type(error).__name__}") from error


def shorten(text: str, length: int = 200) -> str:
    """A text for a message, cut where it is long."""
    return text if len(text) <= length else f"{text[:length]}..."


def _with_channel_axis(image):
    if isinstance(image, np.ndarray | torch.Tensor) and image.ndim == 2:
        return image[None]
    return image


def _checked_layout(image: np.ndarray, layout: str | ChannelDimension | None) -> ChannelDimension:
    if 0 in image.shape:
        raise ValueError(f"an image array of shape {image.shape} has no pixels")
    if layout is not None:
        return ChannelDimension(layout)
    try:
        return infer_channel_dimension_format(image, num_channels=(1, 3, 4))
    except ValueError as error:
        raise ValueError(
            f"an image array must be [H, W], [H, W, C] or [C, H, W] with C = 1, 3 or 4, got shape {image.shape}"
        ) from error


def _to_uint8(image: np.ndarray) -> np.ndarray:
    """Integers in 0 .. 255 and floats in 0 .. 1 on one scale, so that the later 1/255 is right for both."""
    if image.dtype == np.uint8:
        return image
    low, high = image.min(), image.max()
    if np.issubdtype(image.dtype, np.integer) and low >= 0 and high <= 255:
        return image.astype(np.uint8)
    if np.issubdtype(image.dtype, np.floating) and low >= 0 and high <= 1:  # NaN fails both comparisons
        return np.rint(image * 255).astype(np.uint8)
    raise ValueError(
        f"an image array of {image.dtype} with values {low} .. {high} has an unknown scale: pass integers in 0 .. 255 or "
        "floats in 0 .. 1 (or do_resize=False, do_rescale=False, do_normalize=False for values that are already final)"
    )


ViChaImageProcessor.register_for_auto_class("AutoImageProcessor")

__all__ = ["ViChaImageProcessor", "to_upright_rgb"]
