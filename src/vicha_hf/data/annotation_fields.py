"""The fields of an annotation record, read and checked: what the records of all tasks have in common."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from .annotation_sources import RecordProblem, shorten
from .image_files import EmbeddedImage
from .text_cleaning import clean_caption


def required(fields: Mapping, name: str, remedy: str):
    """The value of a field that must be there and not null."""
    if fields.get(name) is None:
        found = f"the record has {sorted(fields)}" if name not in fields else "its value is null"
        raise RecordProblem(name, "missing", remedy, found)
    return fields[name]


def read_text(fields: Mapping, name: str) -> str:
    """A text that holds at least one word."""
    remedy = "write a text"
    return _checked_text(required(fields, name, remedy), name, remedy)


def read_texts(fields: Mapping, name: str) -> tuple[str, ...]:
    """A text, or a list of at least one text; each holds at least one word."""
    remedy = "write a text, or a list of texts"
    value = required(fields, name, remedy)
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple):
        raise RecordProblem(name, "wrong type", remedy, f"got {shorten(value)}")
    if not texts:
        raise RecordProblem(name, "empty", remedy, "an empty list")
    return tuple(_checked_text(text, name, remedy) for text in texts)


def _checked_text(text, name: str, remedy: str) -> str:
    if not isinstance(text, str):
        raise RecordProblem(name, "wrong type", remedy, f"got {shorten(text)}")
    # Punctuation alone is cleaned away later and would leave an empty text.
    if not clean_caption(text, max_words=1).strip():
        raise RecordProblem(name, "empty", remedy, f"{text!r} holds no word")
    return text


def read_concepts(fields: Mapping) -> tuple[str, ...]:
    """The visual concepts without repetitions, in the order given; `kwords`, the published name, is read too."""
    name = "kwords" if fields.get("concepts") is None and "kwords" in fields else "concepts"
    return checked_concepts(fields.get(name), name)


def checked_concepts(value, name: str) -> tuple[str, ...]:
    """A list of words, or null for none, without repetitions."""
    remedy = 'write a list of words, such as ["dog", "grass"], or leave the field out'
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise RecordProblem(name, "wrong type", remedy, f"got {shorten(value)}")
    concepts = {}
    for concept in value:
        if not isinstance(concept, str):
            raise RecordProblem(name, "wrong type", remedy, f"got {shorten(concept)}")
        concept = concept.strip()
        if not concept:
            raise RecordProblem(name, "an empty concept", remedy)
        concepts[concept] = None
    return tuple(concepts)


def read_label(fields: Mapping, classes: Sequence[str], *, is_required: bool) -> int | None:
    """
    The field `label` as an index into `classes`; a JSON boolean stands for "True" or "False". None where it may be left
    out and is. Numbers are refused: whose order of classes they mean cannot be told.
    """
    remedy = f"write one of {', '.join(map(repr, classes))}"
    if not is_required and fields.get("label") is None:
        return None
    label = required(fields, "label", remedy)
    name = str(label) if isinstance(label, bool) else label
    if not isinstance(name, str):
        raise RecordProblem("label", "wrong type", remedy, f"got {shorten(label)}")
    if name not in classes:
        raise RecordProblem("label", "unknown label", remedy, f"got {name!r}")
    return classes.index(name)


class ImageFinder:
    """
    Finds the images that records name.

    Args:
        image_root: folder that relative paths start from; None for the folder that the source itself names.
        check_images: whether to look that files exist.
    """

    def __init__(self, image_root: str | os.PathLike | None, check_images: bool):
        self._image_root = image_root
        self._known_files: dict[str, bool] | None = {} if check_images else None

    def read(self, fields: Mapping, default_root: Path, name: str = "image") -> str | EmbeddedImage:
        """The image that the field names."""
        return self.find(required(fields, name, _IMAGE_REMEDY), default_root, name)

    def find(self, image, default_root: Path, name: str = "image") -> str | EmbeddedImage:
        """The image that a field's value names: a path, or an image inside a dataset."""
        if isinstance(image, EmbeddedImage):
            return image
        if not isinstance(image, str):
            raise RecordProblem(name, "wrong type", _IMAGE_REMEDY, f"got {shorten(image)}")
        if not image.strip():
            raise RecordProblem(name, "empty", _IMAGE_REMEDY)
        root = self._image_root if self._image_root is not None else default_root
        path = os.path.normpath(os.path.join(root, image))
        if self._known_files is not None:
            if path not in self._known_files:
                self._known_files[path] = os.path.isfile(path)
            if not self._known_files[path]:
                remedy = "add the file, or set image_root to the folder that paths start from"
                raise RecordProblem(name, "file not found", remedy, path)
        return path


_IMAGE_REMEDY = 'give the path of the image, such as "images/1.jpg"'


class ImageIds:
    """Numbers images 0, 1, ... in order of first appearance."""

    def __init__(self):
        self._by_key: dict[object, int] = {}
        self._count = 0

    def number(self, image: str | EmbeddedImage, source: str, image_id) -> int:
        """The number of an image, the same for equal paths, and for equal `image_id` of one source."""
        keys = []
        if isinstance(image, str):
            keys.append(image)
        if image_id is not None:
            keys.append((source, json.dumps(image_id, sort_keys=True, default=repr)))
        # The path decides where both are known: it is the image itself.
        number = next((self._by_key[key] for key in keys if key in self._by_key), None)
        if number is None:
            number = self._count
            self._count += 1
        for key in keys:
            self._by_key.setdefault(key, number)
        return number
