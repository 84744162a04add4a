"""Files of weights that are not what their names say: empty, cut off, a web page, or a pointer of Git LFS."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open


# Enough to see what a file is.
HEAD_BYTES = 512
WEIGHTS = ("*.safetensors", "*.bin")
# Names the files that weights are split into.
INDEX = "*.index.json"


def require_weights(path: str | Path) -> None:
    """
    Raises a `ValueError` that names a file which cannot hold weights, and says what it is.

    Args:
        path: a checkpoint (`.pth`, `.bin`) or a `.safetensors` file; the header of the latter must fit its length.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there, or is no file: copy or download it again.")
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        raise ValueError(f"{path} is empty: download it again.")
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a pointer of Git LFS, not the weights: run `git lfs pull` where it came from.")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ValueError(f"{path} is a web page, not weights: download the file itself.")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{path} is cut off or no safetensors file ({error}): download it again.") from error


def require_weights_of_folder(folder: str | Path) -> None:
    """The same for every file of weights in a folder, of which there must be one; a Hub id passes."""
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        return
    files = {path for pattern in WEIGHTS for path in folder.glob(pattern)}
    for index in folder.glob(INDEX):
        files |= {folder / name for name in _shards_of(index)}
    if not files:
        raise ValueError(
            f"{folder} holds no weights, such as model.safetensors: copy or download the whole folder again."
        )
    for path in sorted(files):
        require_weights(path)


def _shards_of(index: Path) -> set[str]:
    try:
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} cannot be read: copy or download the whole folder again.") from error
