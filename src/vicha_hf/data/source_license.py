"""
Licences of data, for the cards of models that are trained on them.

An annotation file's licence is one line of `FILE.license` beside it, as importers write it. Packed shards keep it in their
manifest, datasets in their own description.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import DatasetCard, HfApi, constants

from ..whole_files import write_whole_file


SUFFIX = ".license"
# What the demo corpus says of its drawings.
_ATTRIBUTION_FILE = "ATTRIBUTION.txt"
# Of packed shards, and of a dataset that was saved.
_DESCRIPTION_FILES = ("manifest.json", "dataset_info.json")
_CARD_FILE = "README.md"
# The longest wait for the Hub's answer.
_HUB_SECONDS = 10.0


def write_license(annotation_file: Path, text: str) -> None:
    """Writes the licence of an annotation file beside it."""
    write_whole_file(annotation_file.with_name(annotation_file.name + SUFFIX), text + "\n")


def read_license(source: str | os.PathLike) -> str | None:
    """
    The licence of a source of annotations, as far as anything says it.

    Args:
        source: a file, a folder, a pattern of files, or the name of a dataset on the Hub.
    """
    path = Path(source).expanduser()
    if not path.exists() and (path.parent == Path() or not path.parent.is_dir()):
        return _license_on_hub(str(source))
    folder = path if path.is_dir() else path.parent
    return (
        _first_line(path.with_name(path.name + SUFFIX))
        or next(filter(None, (_field(folder / name, "license") for name in _DESCRIPTION_FILES)), None)
        or _first_line(folder / _ATTRIBUTION_FILE)
        or _license_of_card(folder / _CARD_FILE)
    )


def common_license(sources) -> str | None:
    """
    The licences of sources of annotations in one line; None where none is known.

    Args:
        sources: as the readers of annotations take them, one or several.
    """
    several = sources if isinstance(sources, list | tuple) else [sources]
    paths = [
        source.get("path") if isinstance(source, Mapping) else getattr(source, "path", source) for source in several
    ]
    found = [(str(path), read_license(path)) for path in paths if isinstance(path, str | os.PathLike)]
    known = dict.fromkeys(license for _, license in found if license)
    if len(known) == 1 and all(license for _, license in found):
        return next(iter(known))
    return "; ".join(f"{Path(path).name}: {license or 'not stated'}" for path, license in found) if known else None


def carry_license(sources, annotation_file: Path) -> None:
    """Writes the licence of sources, where one is known, beside a file of annotations that was made of them."""
    license = common_license(sources)
    if license is not None:
        write_license(annotation_file, license)


def _first_line(path: Path) -> str | None:
    try:
        lines = path.read_text(encoding="utf-8").strip().splitlines()
    except (OSError, ValueError):
        return None
    return lines[0].strip() if lines else None


def _field(path: Path, name: str) -> str | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))[name]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return value if isinstance(value, str) and value else None


def _license_of_card(path: Path) -> str | None:
    try:
        return _named(DatasetCard.load(path).data.license) if path.is_file() else None
    except Exception:
        # A page that is no card.
        return None


def _license_on_hub(name: str) -> str | None:
    if constants.HF_HUB_OFFLINE or name.count("/") != 1:
        return None
    try:
        card = HfApi().dataset_info(name, timeout=_HUB_SECONDS).card_data
    except Exception:
        # The client's, the connection's, or that of a name which no dataset can have.
        return None
    return None if card is None else _named(card.get("license"))


def _named(license: str | list[str] | None) -> str | None:
    return ", ".join(license) if isinstance(license, list) else license
