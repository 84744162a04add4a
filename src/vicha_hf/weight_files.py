"""Files of weights that are not what their names say: empty, cut off, a web page, or a pointer of Git LFS."""

from pathlib import Path

from safetensors import SafetensorError, safe_open


# Enough to see what a file is.
HEAD_BYTES = 512
WEIGHTS = ("*.safetensors", "*.bin")


def require_weights(path: str | Path) -> None:
    """
    Raises a `ValueError` that names a file which cannot hold weights, and says what it is.

    Args:
        path: a checkpoint (`.pth`, `.bin`) or a `.safetensors` file; the header of the latter must fit its length.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there, or is no file.")
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
    """The same for every file of weights in a folder; a Hub id passes."""
    for pattern in WEIGHTS:
        for path in sorted(Path(folder).expanduser().glob(pattern)) if Path(folder).expanduser().is_dir() else ():
            require_weights(path)
