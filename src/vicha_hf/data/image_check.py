"""Decoding images beforehand, to know which records of an evaluation can be used at all."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from .image_files import ImageReadError, open_image
from .stored_images import EmbeddedImage


_AT_A_TIME = 256


def images_of(record: object) -> tuple[str | EmbeddedImage, ...]:
    """The images of a record of any task."""
    return record.images if hasattr(record, "images") else (record.image,)


def find_unreadable(records: Iterable[object]) -> dict[int, ImageReadError]:
    """
    The records, by index, with an image that cannot be decoded. Every image is decoded once, in several threads: Pillow
    lets others run while it decodes.
    """
    known: dict[str | EmbeddedImage, ImageReadError | None] = {}
    found = {}
    numbered = enumerate(records)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while group := list(islice(numbered, _AT_A_TIME)):
            new = {image: record.where for _, record in group for image in images_of(record) if image not in known}
            known.update(zip(new, pool.map(_problem, new, new.values()), strict=True))
            for index, record in group:
                problem = next((known[image] for image in images_of(record) if known[image] is not None), None)
                if problem is not None:
                    found[index] = problem
    return found


def _problem(image: str | EmbeddedImage, where: str) -> ImageReadError | None:
    try:
        open_image(image, where)
    except ImageReadError as error:
        return error
    return None
