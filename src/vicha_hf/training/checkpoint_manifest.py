"""Checksums of a checkpoint's files, so that damage is found before anything is loaded."""

import hashlib
import json
from pathlib import Path

from ..whole_files import write_whole_file


MANIFEST_FILE = "manifest.json"


class DamagedCheckpointError(ValueError):
    """A checkpoint is not what was saved; the message names the file."""


def write_manifest(folder: Path) -> None:
    """List all files of a folder with their sizes and SHA-256 sums in `manifest.json`.

    Raises:
        OutputFolderError: it could not be written.
    """
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _checksum(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST_FILE
    }
    write_whole_file(folder / MANIFEST_FILE, json.dumps({"files": files}, indent=2) + "\n")


def find_damage(folder: Path) -> str | None:
    """The first fault of the files that `manifest.json` lists; `None` where all are as they were saved."""
    try:
        files = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))["files"]
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except FileNotFoundError:
        return f"{MANIFEST_FILE} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST_FILE} cannot be read ({error})"
    for name, (size, checksum) in expected.items():
        path = folder / name
        try:
            found = path.stat().st_size
            if found != size:
                return f"{name} has {found} bytes instead of {size}"
            if _checksum(path) != checksum:
                return f"{name} holds other bytes than were saved (its SHA-256 sum differs)"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror or error})"
    return None


def require_whole(folder: Path) -> None:
    """Raise a [`DamagedCheckpointError`] where a file of a checkpoint is not what was saved."""
    if (damage := find_damage(folder)) is not None:
        raise DamagedCheckpointError(
            f"{folder} is damaged: {damage}. Continue from another checkpoint; --resume_from_checkpoint latest finds the "
            "newest one that is whole."
        )


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
