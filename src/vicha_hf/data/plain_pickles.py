"""Pickles of plain values, such as RefCOCO's refs, read without running anything that stands in them."""

import os
import pickle
from pathlib import Path

from .json_reading import require_regular_file
from .raw_records import AnnotationError


class _PlainUnpickler(pickle.Unpickler):
    """Builds lists, dictionaries, texts and numbers. Everything else has to be looked up by name, which is refused."""

    def find_class(self, module: str, name: str):
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid):
        raise pickle.UnpicklingError("it refers to something outside")


def read_plain_pickle(path: str | os.PathLike) -> object:
    """
    The content of a pickle of lists, dictionaries, texts and numbers, written by Python 2 or 3.

    Raises:
        AnnotationError: not there, no pickle, or one that asks for more than plain values; nothing of it is run.
    """
    path = Path(path)
    require_regular_file(path)
    try:
        with path.open("rb") as file:
            # Texts of Python 2 are bytes in UTF-8.
            return _PlainUnpickler(file, encoding="utf-8").load()
    # Damaged pickles raise nearly anything.
    except (pickle.UnpicklingError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        raise _refusal(path, error) from error
    except (EOFError, MemoryError, OverflowError, RecursionError) as error:
        raise _refusal(path, error) from error


def _refusal(path: Path, error: Exception) -> AnnotationError:
    return AnnotationError(
        f"{path}: not readable as a pickle of plain values ({error or type(error).__name__}); nothing of it was run: save "
        "its content as JSON where you trust it"
    )
