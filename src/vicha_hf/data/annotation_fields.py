"""The fields of an annotation record, read and checked: what the records of all tasks have in common."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from ..models.text_cleaning import holds_words, is_blank
from .raw_records import RawRecord, RecordProblem, shorten
from .stored_images import EmbeddedImage


_LETTER_OR_DIGIT = re.compile(r"[a-zA-Z0-9]")


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
    value = fields.get(name)
    if type(value) is str and _is_plain(value):
        return (value,)
    value = required(fields, name, remedy)
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple):
        raise RecordProblem(name, "wrong type", remedy, f"got {shorten(value)}")
    if not texts:
        raise RecordProblem(name, "empty", remedy, "an empty list")
    return tuple(_checked_text(text, name, remedy) for text in texts)


def _is_plain(text: str) -> bool:
    """Whether a text is beyond doubt, as nearly all are: ASCII with a letter or digit."""
    return text.isascii() and _LETTER_OR_DIGIT.search(text) is not None and "\0" not in text


def _checked_text(text, name: str, remedy: str) -> str:
    if not isinstance(text, str):
        raise RecordProblem(name, "wrong type", remedy, f"got {shorten(text)}")
    require_unicode(text, name)
    # Punctuation alone is cleaned away later and would leave an empty text.
    if not holds_words(text):
        raise RecordProblem(name, "empty", remedy, f"{text!r} holds no word")
    return text


def require_unicode(text: str, name: str) -> None:
    """Raises `RecordProblem` for a text that no tokenizer and no file can hold, or that ends early in some of them."""
    if _holds_half_characters(text):
        raise RecordProblem(name, "a lone surrogate, half a character", "write the whole character", shorten(text))
    if "\0" in text:
        raise RecordProblem(name, "a NUL character", "remove it", shorten(text))


def is_whole_text(text: str) -> bool:
    """Whether `require_unicode` takes a text."""
    return "\0" not in text and not _holds_half_characters(text)


def _holds_half_characters(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


def read_concepts(fields: Mapping) -> tuple[str, ...]:
    """The visual concepts without repetitions, in the order given; `kwords`, the published name, is read too."""
    name = "kwords" if fields.get("concepts") is None and "kwords" in fields else "concepts"
    return checked_concepts(fields.get(name), name)


_CONCEPTS_REMEDY = 'write a list of words, such as ["dog", "grass"], or leave the field out'


def checked_concepts(value, name: str) -> tuple[str, ...]:
    """A list of words, or null for none, without repetitions."""
    remedy = _CONCEPTS_REMEDY
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise RecordProblem(name, "wrong type", remedy, f"got {shorten(value)}")
    concepts = {}
    for concept in value:
        if not isinstance(concept, str):
            raise RecordProblem(name, "wrong type", remedy, f"got {shorten(concept)}")
        concepts[_checked_concept(concept, name)] = None
    return tuple(concepts)


# Images share their concepts: most have been checked before.
@lru_cache(maxsize=2**16)
def _checked_concept(concept: str, name: str) -> str:
    require_unicode(concept, name)
    concept = concept.strip()
    if is_blank(concept):
        raise RecordProblem(name, "an empty concept", _CONCEPTS_REMEDY)
    return concept


def read_identifier(fields: Mapping, name: str) -> int | str | None:
    """A number or text that names a record; None where there is none."""
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise RecordProblem(name, "wrong type", "give a number or a text", f"got {shorten(value)}")
    if isinstance(value, str):
        require_unicode(value, name)
    return value


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


# Relative, and without anything that would have to be taken out: nearly all paths are.
_PLAIN_PATH = re.compile(r"\w[\w-]*(?:[./]\w[\w-]*)*" if os.sep == "/" else r"(?!)", re.ASCII)


class ImageFinder:
    """
    Finds the images that records name.

    Args:
        check_images: whether to look that files exist.
        allow_outside_root: whether an absolute path may lead out of the folder that relative ones start from.
    """

    def __init__(self, check_images: bool = True, allow_outside_root: bool = False):
        self._known_files: dict[str, bool] | None = {} if check_images else None
        self._allow_outside_root = allow_outside_root
        self._last_root: Path | None = None
        self._last_prefix = ""

    @classmethod
    def from_options(cls, options: Mapping) -> "ImageFinder":
        """The finder that a reader's options ask for."""
        return cls(options.get("check_images", True), options.get("allow_outside_root", False))

    def read(self, fields: Mapping, raw: RawRecord, name: str = "image") -> str | EmbeddedImage:
        """The image that the field names."""
        return self.find(required(fields, name, _IMAGE_REMEDY), raw, name)

    def find(self, image: object, raw: RawRecord, name: str = "image") -> str | EmbeddedImage:
        """The image that a field's value names: a path, or an image inside a dataset or shard."""
        if isinstance(image, EmbeddedImage):
            return image
        if type(image) is str and _PLAIN_PATH.fullmatch(image):
            return self._checked_path(self._prefix(raw) + image, name)
        # The path of a file that a dataset says it consists of.
        is_own_file = isinstance(image, Path)
        if is_own_file:
            image = str(image)
        if not isinstance(image, str):
            raise RecordProblem(name, "wrong type", _IMAGE_REMEDY, f"got {shorten(image)}")
        if not image.strip():
            raise RecordProblem(name, "empty", _IMAGE_REMEDY)
        require_unicode(image, name)
        if "://" in image:
            raise RecordProblem(name, "an address", "download the image and give its path", shorten(image))
        return self._checked_path(self._full_path(image, raw, name, is_own_file), name)

    def _prefix(self, raw: RawRecord) -> str:
        root = raw.image_root if raw.image_root is not None else raw.default_root
        if root is not self._last_root:
            self._last_root, self._last_prefix = root, os.path.join(os.path.normpath(root), "")
            if self._last_prefix == os.path.join(os.curdir, ""):
                self._last_prefix = ""
        return self._last_prefix

    def _full_path(self, image: str, raw: RawRecord, name: str, is_own_file: bool) -> str:
        root = raw.image_root if raw.image_root is not None else raw.default_root
        path = os.path.normpath(os.path.join(root, image))
        if not is_own_file:
            self._require_inside(path, root, raw.declared_root, image, name)
        return path

    def _checked_path(self, path: str, name: str) -> str:
        if self._known_files is not None:
            if path not in self._known_files:
                self._known_files[path] = os.path.isfile(path)
            if not self._known_files[path]:
                remedy = "add the file, or set image_root to the folder that paths start from"
                if "\\" in path and os.sep == "/":
                    remedy = f"write / between folders, not \\; {remedy}"
                raise RecordProblem(name, "file not found", remedy, path)
        return path

    def _require_inside(self, path: str, root: Path, declared: Path | None, image: str, name: str) -> None:
        is_absolute = os.path.isabs(image)
        if not is_absolute and ".." not in image:
            return
        if is_absolute and self._allow_outside_root:
            return
        folder = os.path.abspath(root)
        allowed = [folder] if declared is None else [folder, os.path.abspath(declared)]
        if any(os.path.commonpath([one, os.path.abspath(path)]) == one for one in allowed):
            return
        remedy = "set image_root to a folder above it"
        if is_absolute:
            remedy += ", or allow it with --allow_outside_root"
        raise RecordProblem(name, "outside the image root", remedy, f"{path} is not below {folder}")


_IMAGE_REMEDY = 'give the path of the image, such as "images/1.jpg"'


class ImageIds:
    """
    Numbers images 0, 1, ... in order of first appearance.

    Args:
        refuse_conflicts: whether different images with one `image_id` are a mistake, as in evaluation, where a caption
            would count for the wrong one.
    """

    def __init__(self, refuse_conflicts: bool = False):
        self._by_key: dict[object, int] = {}
        self._count = 0
        self._refuse_conflicts = refuse_conflicts
        self._first_of_id: dict[object, tuple[str | EmbeddedImage, str]] = {}

    def number(self, image: str | EmbeddedImage, raw: RawRecord, image_id: object) -> int:
        """
        The number of an image, the same for equal paths, and for equal `image_id` of one source.

        Raises:
            RecordProblem: an `image_id` that is no identifier, or that another image has.
        """
        known, number = self._by_key, None
        # The path decides where both are known: it is the image itself.
        if isinstance(image, str):
            number = known.get(image)
        if image_id is not None:
            key = (raw.source, self._id_text(image_id))
            if self._refuse_conflicts:
                self._require_same_image(key, image, raw.where, image_id)
            if number is None:
                number = known.get(key)
        if number is None:
            number = self._count
            self._count += 1
        if isinstance(image, str):
            known.setdefault(image, number)
        if image_id is not None:
            known.setdefault(key, number)
        return number

    @staticmethod
    def _id_text(image_id: object) -> str:
        if type(image_id) is int or type(image_id) is str:
            return str(image_id) if type(image_id) is int else f'"{image_id}"'
        if isinstance(image_id, float) and abs(image_id) >= 2**63:
            raise RecordProblem("image_id", "a number of more than 64 bits", "write it as a text", shorten(image_id))
        try:
            return json.dumps(image_id, sort_keys=True, default=repr, allow_nan=False)
        except (ValueError, RecursionError) as error:
            raise RecordProblem("image_id", "no identifier", "give a number or a text", shorten(image_id)) from error

    def _require_same_image(self, key: object, image: str | EmbeddedImage, where: str, image_id: object) -> None:
        first, place = self._first_of_id.setdefault(key, (image, where))
        if first != image and not _same_content(first, image):
            remedy = "give every image its own id, or none: captions of one id belong to one image"
            detail = f"{shorten(image_id)} is that of {first} ({place})"
            raise RecordProblem("image_id", "that of another image", remedy, detail)


def _same_content(first: str | EmbeddedImage, second: str | EmbeddedImage) -> bool:
    return _digest(first) == _digest(second)


def _digest(image: str | EmbeddedImage) -> bytes:
    try:
        content = image.read_bytes() if isinstance(image, EmbeddedImage) else Path(image).read_bytes()
    except OSError:
        # An image that cannot be read equals itself alone.
        return repr(image).encode()
    return hashlib.blake2b(content).digest()


class HashedImageIds:
    """Numbers that are the same for equal images, by hash: in a stream nobody can count them."""

    def number(self, image: str | EmbeddedImage, raw: RawRecord, image_id: object) -> int:
        """The number of an image; of equal `image_id` within one source, or of equal paths or bytes without one."""
        if image_id is not None:
            content = json.dumps([raw.source, image_id], default=repr).encode()
        else:
            content = image.read_bytes() if isinstance(image, EmbeddedImage) else image.encode()
        return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest()) >> 1
