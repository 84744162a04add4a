"""Files of an index: a manifest, and shards of embeddings that are written once and never changed."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..whole_files import write_whole_file


MANIFEST_FILE = "index.json"
FORMAT = 2
# Of two embeddings of one thing by one model, on different machines.
FINGERPRINT_TOLERANCE = 1e-3


class SearchIndexError(ValueError):
    """An index that cannot be used; the message names the folder and the remedy."""


@dataclass(frozen=True)
class IndexedImage:
    """
    Row of an index.

    Attributes:
        path: of the image, absolute.
        source: folder or annotation file that named it, absolute.
        size, modified: of the file when it was embedded: bytes, and nanoseconds since 1970.
        captions: the texts that belong to it.
        concepts: the visual concepts that were embedded with it.
    """

    path: str
    source: str
    size: int
    modified: int
    captions: tuple[str, ...] = ()
    concepts: tuple[str, ...] = ()

    @property
    def identity(self) -> tuple:
        """Equal for two rows that would have equal embeddings."""
        return self.path, self.size, self.modified, self.captions, self.concepts


@dataclass
class Manifest:
    """
    Facts about a whole index.

    Attributes:
        model: folder or Hub id of the model that embedded.
        fingerprint: what this model makes of a fixed image and a fixed text.
        dim: width of the embeddings.
        concepts: where the visual concepts came from that images were embedded with: "given", "auto" or "none".
        removed: paths of images that are gone since.
        unfinished: how many images a run set out to embed that has not ended; 0 for a whole index.
    """

    model: str
    fingerprint: list[float]
    dim: int
    concepts: str
    removed: list[str] = field(default_factory=list)
    unfinished: int = 0
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        """Replaces the folder's manifest in one step."""
        write_whole_file(folder / MANIFEST_FILE, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Raises an `SearchIndexError` for a folder without a manifest that can be read."""
        path = folder / MANIFEST_FILE
        if not path.is_file():
            raise SearchIndexError(
                f"{folder} holds no index (there is no {MANIFEST_FILE}): make one with `vicha-hf index`."
            )
        try:
            manifest = cls(**json.loads(path.read_text(encoding="utf-8")))
            fingerprint = [float(value) for value in manifest.fingerprint]
        except (ValueError, TypeError, RecursionError) as error:
            raise SearchIndexError(
                f"{path} cannot be read ({error}): make the index anew in another folder."
            ) from error
        if manifest.format != FORMAT or not all(map(math.isfinite, fingerprint)):
            raise SearchIndexError(f"{path} is of format {manifest.format}, not {FORMAT}: make the index anew.")
        return manifest

    def require_same_model(self, fingerprint: Sequence[float], model: str, folder: Path) -> None:
        """Raises an `SearchIndexError` unless a model gives the embeddings that the index was made with."""
        same = len(fingerprint) == len(self.fingerprint) and all(
            abs(one - other) <= FINGERPRINT_TOLERANCE for one, other in zip(fingerprint, self.fingerprint, strict=True)
        )
        if not same:
            raise SearchIndexError(
                f"{model} is not the model that {folder} was made with ({self.model}), or has been trained since: its "
                "embeddings differ. Name that model, or make a new index in another folder."
            )


@dataclass(frozen=True)
class Shard:
    """
    Some rows of an index.

    Attributes:
        images: n rows.
        image_embeds: [n, E].
        text_embeds: [m, E], of all captions, one image's after the other's.
    """

    images: tuple[IndexedImage, ...]
    image_embeds: torch.Tensor
    text_embeds: torch.Tensor

    def write(self, folder: Path, number: int) -> None:
        """Writes a new file in one step."""
        rows = json.dumps([asdict(image) for image in self.images])
        tensors = {"image_embeds": self.image_embeds, "text_embeds": self.text_embeds}
        write_whole_file(folder / f"shard-{number:05d}.safetensors", save(tensors, metadata={"images": rows}))

    @classmethod
    def read(cls, path: Path, dim: int) -> "Shard":
        """Raises an `SearchIndexError` that names a file which is cut, changed or of another width."""
        try:
            with safe_open(path, "pt") as file:
                rows = json.loads(file.metadata()["images"])
                images = tuple(
                    IndexedImage(**row | {name: tuple(row[name]) for name in ("captions", "concepts")}) for row in rows
                )
                shard = cls(images, file.get_tensor("image_embeds"), file.get_tensor("text_embeds"))
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise SearchIndexError(
                f"{path} cannot be read ({error}): delete it and run `vicha-hf index` again."
            ) from error
        texts = sum(len(image.captions) for image in images)
        if shard.image_embeds.shape != (len(images), dim) or shard.text_embeds.shape != (texts, dim):
            raise SearchIndexError(
                f"{path} does not hold {len(images)} embeddings of width {dim}: delete it and index again."
            )
        return shard


def shard_paths(folder: Path) -> list[Path]:
    """Files of the shards, in the order in which they were written."""
    return sorted(folder.glob("shard-*.safetensors"))


def read_shards(folder: Path, dim: int) -> Iterator[Shard]:
    """All shards of an index."""
    for path in shard_paths(folder):
        yield Shard.read(path, dim)


def live_rows(images: Sequence[IndexedImage], removed: Sequence[str]) -> Mapping[str, int]:
    """The row of every image that is still there, by path: the newest where an image was embedded again."""
    gone = set(removed)
    return {image.path: row for row, image in enumerate(images) if image.path not in gone}
