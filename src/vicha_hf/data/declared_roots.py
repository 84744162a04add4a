"""The folder of the images, declared beside an annotation file that this package writes elsewhere than the images lie.

An image path that leads out of the image root is refused. Whoever lets a command write annotations into another folder
means the images where they are: the command then writes `FILE.image_root` beside `FILE`, with the path of their folder.
"""

import os
from pathlib import Path

from ..whole_files import write_whole_file
from .json_reading import read_text_file


SUFFIX = ".image_root"


class DeclaredRoot:
    """
    Finds the folder that holds all images of an annotation file that is being written.

    Args:
        annotation_file: the file.
    """

    def __init__(self, annotation_file: Path):
        self._file = annotation_file
        self._own_folder = os.path.abspath(annotation_file.parent)
        self._common: str | None = None

    def add(self, image: str) -> None:
        """Takes an image's path into account."""
        folder = os.path.dirname(os.path.abspath(image))
        self._common = folder if self._common is None else os.path.commonpath([self._common, folder])

    def relative(self, image: str) -> str:
        """An image's path as seen from the annotation file."""
        return Path(os.path.relpath(os.path.abspath(image), self._own_folder)).as_posix()

    def write(self) -> None:
        """Declares the folder where it is not below the file's own, relative to it; a corpus may move as a whole."""
        declaration = self._file.with_name(self._file.name + SUFFIX)
        declaration.unlink(missing_ok=True)
        if self._common is not None and os.path.commonpath([self._common, self._own_folder]) != self._own_folder:
            write_whole_file(declaration, os.path.relpath(self._common, self._own_folder) + "\n")


def declared_root(annotation_file: Path) -> Path | None:
    """The folder that is declared beside an annotation file."""
    declaration = annotation_file.with_name(annotation_file.name + SUFFIX)
    if not declaration.is_file():
        return None
    return Path(os.path.normpath(annotation_file.parent / read_text_file(declaration).strip()))
