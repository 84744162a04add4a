"""Datasets whose items depend on the seed, the epoch and the index alone."""

import dataclasses
import hashlib
from collections import UserDict
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from .image_check import images_of
from .image_files import ImageReadError
from .read_report import RejectedRecord, RejectsFile


# Draws of another item before a corpus counts as broken altogether.
MAX_REPLACEMENTS = 100
_REPLACEMENT_DRAWS = 1
# Records that a fingerprint looks at, about.
FINGERPRINT_RECORDS = 100_000


class Item(UserDict):
    """
    A training example by field. It is no `dict`: from those transformers' Trainer takes whatever the model's forward does not
    name, before the collator has made tensors of it.
    """


class SeededDataset(Dataset):
    """
    Base of the map-style datasets that draw something per item of `annotations`, which the subclass sets.

    The data then does not depend on the number of workers or processes. A run that is resumed in the middle of an
    epoch sees the samples of the unbroken run.

    Args:
        seed: of all draws, not negative.
        on_bad_record: "raise" stops at an image that cannot be decoded, "skip" puts another draw into its place.

    Attributes:
        rejects: where records are written down that were skipped so; None writes nothing.
    """

    def __init__(self, seed: int, on_bad_record: Literal["raise", "skip"] = "raise"):
        if seed < 0:
            raise ValueError(f"seed={seed} must not be negative")
        self.seed = seed
        self.on_bad_record = on_bad_record
        self.rejects: RejectsFile | None = None
        # Shared memory: workers that live on from epoch to epoch must see the new number too.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Call before each epoch: other captions, concepts and crops are drawn."""
        if epoch < 0:
            raise ValueError(f"epoch={epoch} must not be negative")
        self._epoch.fill_(epoch)

    def draw(self, index: int) -> tuple[int, np.random.Generator]:
        """The index, counted from the front, and the generator of its item. Raises `IndexError` outside the dataset."""
        # Negative indices would draw other augmentations than their positive twins.
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"index {index} is outside the dataset of {len(self)} items")
        # A spawn key, not three seeds: numpy takes the seeds (a, b) and (a, b, 0) for the same.
        return int(position), np.random.default_rng(
            np.random.SeedSequence(self.seed, spawn_key=(self.epoch, position))
        )

    def __getitem__(self, index: int):
        """
        The item at `index`; with `on_bad_record="skip"` another one, drawn by (seed, epoch, index) alone, where the image of
        this one cannot be decoded.

        Raises:
            ImageReadError: an image that cannot be decoded ("raise"), or nothing but such images.
        """
        position, rng = self.draw(index)
        try:
            return Item(self.make_item(position, rng))
        except ImageReadError as error:
            if self.on_bad_record != "skip":
                raise
            problem = error
        sequence = np.random.SeedSequence(self.seed, spawn_key=(self.epoch, position, _REPLACEMENT_DRAWS))
        rng = np.random.default_rng(sequence)
        for _ in range(MAX_REPLACEMENTS):
            self._reject(problem)
            try:
                return Item(self.make_item(int(rng.integers(len(self))), rng))
            except ImageReadError as error:
                problem = error
        raise problem

    def make_item(self, index: int, rng: np.random.Generator):
        """The item at `index`, counted from the front, with what it draws. Raises `ImageReadError`."""
        raise NotImplementedError

    def describe_sample(self, index: int) -> str:
        """Images, file and record of an item, for messages."""
        record = self.annotations[self._record_index(index)]
        return f"{', '.join(map(str, images_of(record)))} ({record.where})"

    def _reject(self, problem: ImageReadError) -> None:
        if self.rejects is not None:
            self.rejects.add(RejectedRecord(problem.where, f"field 'image': {problem.cause}", problem.message))

    def fingerprint(self) -> str:
        """A number in hexadecimal that changes with the records of `annotations`: texts, identifiers, names of images, order.

        Folders and places of records do not count, so that a corpus may move. Of very long annotations it looks at records
        at equal distances, for reading millions takes minutes. Images are not opened.
        """
        count = len(self.annotations)
        state = hashlib.sha256(f"{len(self)} of {count}".encode())
        for index in range(0, count, max(1, count // FINGERPRINT_RECORDS)):
            state.update(repr(_content(self.annotations[index])).encode("utf-8", "surrogatepass"))
        return state.hexdigest()[:16]

    def _record_index(self, index: int) -> int:
        return index


def _content(record: object) -> list[tuple[str, object]]:
    """A record's fields by name, without its place; of an image in a file its name."""
    images = ("image", "images")
    return [
        (field.name, _image_names(value) if field.name in images else value)
        for field in dataclasses.fields(record)
        if field.name != "where"
        for value in [getattr(record, field.name)]
    ]


def _image_names(value: object) -> object:
    if isinstance(value, tuple):
        return tuple(map(_image_names, value))
    # An image within a dataset is known by its record.
    return Path(value).name if isinstance(value, str | Path) else type(value).__name__
