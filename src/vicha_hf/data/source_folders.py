"""Annotations as a folder of images: with a caption file, or with a text file beside each image."""

import os
from collections.abc import Iterator
from pathlib import Path

from .json_reading import lines_of, read_text_file, require_regular_file
from .raw_records import AnnotationError, RawRecord, RecordProblem, RecordSource
from .source_files import TABLE_DELIMITERS, TEXT_SUFFIXES, TextFileSource, file_fingerprint, iterate_table


# Of the files in a folder that are taken for images.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff")
# Caption files are looked for by these names; `metadata` is the one of Hugging Face's image folders.
_CAPTION_FILES = ("metadata", "captions", "annotations")


def holds_images(folder: Path) -> bool:
    """Whether a folder, or one below it, has an image in it."""
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in _files_below(folder))


def list_image_files(folder: Path) -> list[Path]:
    """
    The images of a folder and of the folders below it, by their endings, sorted by path.

    Links to folders are followed, and a folder is read once, however many links lead to it. Hidden names, such as a Mac's
    `._1.jpg`, are passed over. A link that leads nowhere is in the list.
    """
    return sorted(path for path in _files_below(folder) if path.suffix.lower() in IMAGE_SUFFIXES)


def _files_below(folder: Path) -> Iterator[Path]:
    seen = set()
    for top, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(top)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(top, name) for name in names if not name.startswith("."))


def find_caption_file(folder: Path) -> Path | None:
    """
    The file with the captions of a folder of images.

    Raises:
        AnnotationError: there are several.
    """
    suffixes = (*TEXT_SUFFIXES, ".txt")
    found = sorted(
        path
        for name in _CAPTION_FILES
        for suffix in suffixes
        if (path := folder / f"{name}{suffix}").is_file() and not _is_caption_of_an_image(path)
    )
    if len(found) > 1:
        raise AnnotationError(
            f"{folder}: several caption files, {[path.name for path in found]}; name the one to read"
        )
    return found[0] if found else None


def _is_caption_of_an_image(path: Path) -> bool:
    return any(path.with_suffix(suffix).exists() for suffix in IMAGE_SUFFIXES)


class ImageFolderSource(RecordSource):
    """
    A folder of images, with folders below it: the records are the images in the order of their paths.

    Args:
        folder: of the images.
        image_root: replaces the folder as the one that relative paths of a caption file start from.
    """

    def __init__(self, folder: Path, image_root: Path | None = None):
        self.folder = folder
        self.image_root = image_root

    def __str__(self) -> str:
        return str(self.folder)

    def fingerprint(self) -> str:
        caption_file = find_caption_file(self.folder)
        if caption_file is not None:
            return file_fingerprint([caption_file])
        # A changed text leaves the folder's own time as it was.
        return file_fingerprint(sorted(path for path in _files_below(self.folder) if path.is_file()))

    def iterate_records(self) -> Iterator[RawRecord]:
        caption_file = find_caption_file(self.folder)
        if caption_file is None:
            yield from self._texts_beside_images()
        elif caption_file.suffix == ".txt":
            yield from self._caption_table(caption_file)
        else:
            yield from TextFileSource(caption_file, {}, self.image_root).iterate_records()

    def _texts_beside_images(self) -> Iterator[RawRecord]:
        for index, image in enumerate(list_image_files(self.folder)):
            name = image.relative_to(self.folder).as_posix()
            text = image.with_suffix(".txt")
            value, problem = None, None
            try:
                require_regular_file(text)
                captions = [line.strip() for line in lines_of(read_text_file(text)) if line.strip()]
                value = {"image": name, "caption": captions}
            except AnnotationError as error:
                remedy = f"write the caption of {name} into {text.name} beside it"
                cause = "not readable" if text.exists() else "missing"
                problem = RecordProblem("caption", cause, remedy, str(error) if text.exists() else "")
            yield RawRecord(value, str(self.folder), index, self.folder, None, problem, self.image_root)

    def _caption_table(self, path: Path) -> Iterator[RawRecord]:
        first = read_text_file(path).split("\n", 1)[0]
        if first.split(",")[0].split("\t")[0].strip() in ("image", "file_name", "filename"):
            delimiter = "\t" if "\t" in first else TABLE_DELIMITERS[".csv"]
            found = iterate_table(path, delimiter)
        else:
            found = self._named_lines(path)
        for index, (line, value, problem) in enumerate(found):
            yield RawRecord(value, str(path), index, self.folder, line, problem, self.image_root)

    @staticmethod
    def _named_lines(path: Path) -> Iterator[tuple[int, dict | None, RecordProblem | None]]:
        """Lines of an image's name, a tab or comma, and a caption."""
        for number, line in enumerate(lines_of(read_text_file(path)), start=1):
            if not line.strip():
                continue
            name, separator, caption = line.partition("\t" if "\t" in line else ",")
            # Flickr's files number the captions of an image.
            name, _, _ = name.strip().partition("#")
            if separator:
                yield number, {"image": name, "caption": caption.strip()}, None
            else:
                remedy = "write the name of the image, a tab, and the caption"
                yield number, None, RecordProblem("", "not readable as a caption", remedy, repr(line[:60]))
