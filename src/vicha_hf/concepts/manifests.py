"""Manifests beside results that say from what they were made: a step is done again only if its inputs have changed."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path


def digest_of(*parts) -> str:
    """A hash of JSON values."""
    return digest_of_items(parts)


def digest_of_items(items: Iterable) -> str:
    """A hash of a stream of JSON values, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for item in items:
        # JSON holds no bare line break: items cannot run into each other.
        digest.update(json.dumps(item, sort_keys=True, ensure_ascii=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def digest_of_file(path: Path) -> str:
    """A hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def write_json(path: Path, content) -> None:
    """Replaces a file by JSON in a single step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    unfinished.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def read_json(path: Path) -> dict:
    """
    Reads a JSON object with the values that a step has written.

    Raises:
        ValueError: the file holds something else, and is named.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__} in the place of an object")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: not readable as JSON ({error}); it was cut or changed by hand: delete it"
        ) from error
    return content


class OutputFile:
    """
    One file that a step makes, and beside it `NAME.manifest.json` that says from what.

    Args:
        path: the file.
        step: name of the step.
        inputs: JSON values that decide what comes out, digests of files and stores among them.
    """

    def __init__(self, path: str | os.PathLike, step: str, inputs: Mapping[str, object]):
        self.path = Path(path)
        self.manifest_path = self.path.with_name(f"{self.path.name}.manifest.json")
        self._made_from = {"step": step, "inputs": dict(inputs)}

    def is_current(self, overwrite: bool = False) -> bool:
        """
        Whether the file is there already, made from the same inputs.

        Args:
            overwrite: replace a file that no step made, or that was changed since.

        Raises:
            FileExistsError: such a file, unless it may be overwritten.
        """
        if not self.path.exists():
            return False
        manifest = read_json(self.manifest_path) if self.manifest_path.is_file() else {}
        ours = manifest.get("step") in (None, self._made_from["step"])
        if not ours or manifest.get("output_digest") != digest_of_file(self.path):
            if overwrite:
                return False
            what = "was changed since it was made" if manifest and ours else "was not made by this command"
            raise FileExistsError(f"{self.path} {what}: choose another output, or give --overwrite")
        return {name: manifest.get(name) for name in self._made_from} == self._made_from

    def finish(self, **facts) -> None:
        """Writes the manifest of the file, which is whole; `facts` are for people."""
        write_json(self.manifest_path, self._made_from | {"output_digest": digest_of_file(self.path)} | facts)

    def facts(self) -> dict:
        """The content of the manifest."""
        return read_json(self.manifest_path)
