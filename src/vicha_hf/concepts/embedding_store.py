"""
Embeddings in a folder: shards of float16 in safetensors, made in any order by any number of processes, and a manifest.

The shards depend on the job alone. A run that was killed goes on with the shards that are missing, and the folder ends as
if it had never stopped.
"""

import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from types import MappingProxyType

import numpy as np
from safetensors.numpy import save

from .manifests import digest_of, digest_of_file, digest_of_items, read_json, write_json


FORMAT = "vicha_hf embeddings 1"
_JOB, _MANIFEST, _VOCABULARY = "job.json", "manifest.json", "vocabulary.json"
# Names of files that are being written.
_UNFINISHED = ".*.unfinished"
_ABOUT = "vicha_hf"
# What every manifest holds, by its kind of value.
_MANIFEST_FIELDS = {"kind": str, "encoder": dict, "items_digest": str, "width": int, "rows": int, "shards": list}
_SHARD_FIELDS = {"file", "rows", "content", "digest"}
_REMEDY = "delete it and run `vicha-hf concepts embed` again, which makes what is missing"
_LONGEST_HEADER = 1 << 24


class StoreError(ValueError):
    """A folder of embeddings that cannot be used; the message names it, and the remedy."""


@dataclass(frozen=True)
class EmbeddingJob:
    """
    The making of embeddings; two equal jobs give the same files.

    Attributes:
        kind: "concepts", "images" or "captions".
        encoder: `name`, `revision` and `digest` of its weights, and `precision`.
        num_items: things to embed.
        items_digest: of what they are.
        options: further settings, such as the prompts.
        batch_size: things embedded at a time (another batch may give another last bit).
        shard_size: things per shard, a multiple of the batch size.
    """

    kind: str
    encoder: Mapping[str, str | None]
    num_items: int
    items_digest: str
    options: Mapping[str, object]
    batch_size: int
    shard_size: int

    @property
    def num_shards(self) -> int:
        """Shards of a complete folder."""
        return -(-self.num_items // self.shard_size)

    def as_dict(self) -> dict:
        """All of it, as JSON."""
        return {
            "format": FORMAT,
            "kind": self.kind,
            "encoder": dict(self.encoder),
            "num_items": self.num_items,
            "items_digest": self.items_digest,
            "options": dict(self.options),
            "batch_size": self.batch_size,
            "shard_size": self.shard_size,
        }

    @property
    def digest(self) -> str:
        """A hash of all of it."""
        return digest_of(self.as_dict())

    def items_of(self, shard: int) -> range:
        """The places of a shard's things among all."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.num_items))


class EmbeddingWriter:
    """
    A folder that embeddings are written into.

    Args:
        folder: new, or left by the same job.
        job: what is embedded.

    Raises:
        FileExistsError: the folder holds something else.
        StoreError: it holds the embeddings of another job; the message says what differs.
    """

    def __init__(self, folder: str | os.PathLike, job: EmbeddingJob):
        self.folder, self.job = Path(folder), job
        known = self.folder / _JOB
        if known.is_file():
            self._require_same_job(read_json(known))
        elif self.folder.exists() and not (self.folder.is_dir() and self._holds_leftovers_alone()):
            raise FileExistsError(f"{self.folder} is there and holds no embeddings: choose another --output")

    def _holds_leftovers_alone(self) -> bool:
        """Whether nothing is there but what a process killed at its first file has left."""
        return all(fnmatch(file.name, _UNFINISHED) for file in self.folder.iterdir())

    def begin(self, vocabulary: Mapping[str, int] | None = None) -> None:
        """
        Writes down the job; one process does.

        Args:
            vocabulary: of embeddings of concepts, the words with their counts.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(_UNFINISHED):
            left.unlink(missing_ok=True)
        if not (self.folder / _JOB).is_file():
            write_json(self.folder / _JOB, self.job.as_dict())
        if vocabulary is not None and not (self.folder / _VOCABULARY).is_file():
            write_json(self.folder / _VOCABULARY, dict(vocabulary))

    @property
    def is_finished(self) -> bool:
        """Whether the manifest is there."""
        return (self.folder / _MANIFEST).is_file()

    def reopen(self, missing: Sequence[int]) -> None:
        """
        Takes the manifest away: the folder is not complete while shards are missing.

        Args:
            missing: of `missing_shards`. What is left of them goes first: only the manifest knows that it is damaged.
        """
        for shard in missing:
            self._path(shard).unlink(missing_ok=True)
        (self.folder / _MANIFEST).unlink(missing_ok=True)

    def missing_shards(self) -> list[int]:
        """The shards that are not there, not whole, or not what the manifest says."""
        digests = self._digests()
        return [shard for shard in range(self.job.num_shards) if not self._is_whole(shard, digests)]

    def _digests(self) -> dict[str, str]:
        """The digest of each shard's file; none of a folder that is not finished."""
        if not self.is_finished:
            return {}
        shards = read_json(self.folder / _MANIFEST).get("shards")
        known = isinstance(shards, list) and all(
            isinstance(one, dict) and one.keys() >= _SHARD_FIELDS for one in shards
        )
        return {one["file"]: one["digest"] for one in shards} if known else {}

    def write_shard(
        self,
        shard: int,
        embeds: np.ndarray,
        items: np.ndarray,
        content_digest: str,
        unreadable: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        """
        Writes one shard, which appears when it is whole.

        Args:
            embeds: float16 [n, E].
            items: int64 [n], the places of the rows among all things; fewer than the shard's where some are unreadable.
            content_digest: of the things' content.
            unreadable: places of things without embedding -> why.
        """
        path = self._path(shard)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
        about = {
            "job": self.job.digest,
            "content": content_digest,
            "unreadable": [{"item": item, "problem": unreadable[item]} for item in sorted(unreadable)],
        }
        # One entry: safetensors writes several in an order that changes from file to file.
        metadata = {_ABOUT: json.dumps(about, sort_keys=True)}
        # Not by `save_file`, whose files nobody else on the machine may read, whatever the user's umask says.
        unfinished.write_bytes(save({"embeddings": np.ascontiguousarray(embeds), "items": items}, metadata))
        os.replace(unfinished, path)

    def finish(self) -> None:
        """Writes the manifest: the folder is complete. One process does, when no shard is missing."""
        shards, unreadable, widths = [], [], set()
        for shard in range(self.job.num_shards):
            header = read_shard_header(self._path(shard))
            rows, width = header.embeds_shape
            widths.add(width)
            unreadable += header.about["unreadable"]
            shards.append(
                {
                    "file": self._path(shard).name,
                    "rows": rows,
                    "content": header.about["content"],
                    "digest": digest_of_file(self._path(shard)),
                }
            )
        manifest = self.job.as_dict() | {
            "width": max(widths, default=0),
            "rows": sum(shard["rows"] for shard in shards),
            "shards": shards,
            "unreadable": unreadable,
        }
        write_json(self.folder / _MANIFEST, manifest)

    def _is_whole(self, shard: int, digests: Mapping[str, str]) -> bool:
        path = self._path(shard)
        try:
            header = read_shard_header(path)
            if header.about.get("job") != self.job.digest or not set(header.items()) <= set(self.job.items_of(shard)):
                return False
            return path.name not in digests or digest_of_file(path) == digests[path.name]
        except (StoreError, OSError):
            return False

    def _path(self, shard: int) -> Path:
        return self.folder / f"embeddings-{shard:05d}-of-{self.job.num_shards:05d}.safetensors"

    def _require_same_job(self, known: Mapping) -> None:
        wanted = json.loads(json.dumps(self.job.as_dict()))
        if known == wanted:
            return
        names = {
            "items_digest": {
                "images": "the images of the corpus (other ones, or changed files)",
                "concepts": "the vocabulary",
                "captions": "the captions of the corpus",
            }.get(self.job.kind, "the input"),
            "kind": "what is embedded",
            "encoder": "the encoder",
            "options": "prompts or options",
            "batch_size": "the batch size",
        }
        changed = [names.get(name, name) for name in wanted if known.get(name) != wanted[name] and name in names]
        raise StoreError(
            f"{self.folder} holds embeddings made from something else; what differs: {', '.join(changed) or 'the format'}. "
            "Nothing was changed: choose another --output, or delete the folder"
        )


@dataclass(frozen=True)
class ShardHeader:
    """The places of a shard's tensors, and what they were made from."""

    path: Path
    about: Mapping[str, object]
    embeds_shape: tuple[int, int]
    embeds_offset: int
    items_offset: int

    def embeds(self) -> np.ndarray:
        """float16 [n, E], mapped from the disk."""
        return _map(self.path, np.float16, self.embeds_offset, self.embeds_shape)

    def items(self) -> np.ndarray:
        """int64 [n]."""
        return np.array(_map(self.path, np.int64, self.items_offset, (self.embeds_shape[0],)))


def read_shard_header(path: Path) -> ShardHeader:
    """
    Reads and checks the header of a shard.

    Raises:
        StoreError: a file that was cut, or is no shard.
        FileNotFoundError: no such file.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _LONGEST_HEADER:
                raise ValueError("its header is too long")
            header = json.loads(file.read(length))
        about = json.loads(header.pop("__metadata__")[_ABOUT])
        embeds, items = header["embeddings"], header["items"]
        if (embeds["dtype"], items["dtype"]) != ("F16", "I64") or len(embeds["shape"]) != 2:
            raise ValueError("its tensors are of another kind")
        if embeds["shape"][:1] != items["shape"]:
            raise ValueError("its tensors do not fit together")
        expected = 8 + length + max(entry["data_offsets"][1] for entry in header.values())
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path} is no whole shard of embeddings ({error}); {_REMEDY}") from error
    if size != expected:
        raise StoreError(f"{path} has {size} bytes instead of {expected}: it was cut or half written; {_REMEDY}")
    return ShardHeader(
        path,
        about,
        tuple(embeds["shape"]),
        8 + length + embeds["data_offsets"][0],
        8 + length + items["data_offsets"][0],
    )


class EmbeddingStore:
    """
    A complete folder of embeddings, read shard by shard from the disk.

    Args:
        folder: what `vicha-hf concepts embed` wrote.
        kind: "concepts", "images" or "captions": what it must hold.

    Attributes:
        manifest: what it was made from.

    Raises:
        StoreError: no embeddings, unfinished ones, others than `kind`, a missing or half-written shard.
    """

    def __init__(self, folder: str | os.PathLike, kind: str | None = None):
        self.folder = Path(folder)
        if not (self.folder / _MANIFEST).is_file():
            state = "unfinished embeddings" if (self.folder / _JOB).is_file() else "no embeddings"
            raise StoreError(f"{self.folder} holds {state}: run `vicha-hf concepts embed` to its end")
        self.manifest = read_json(self.folder / _MANIFEST)
        if self.manifest.get("format") != FORMAT:
            raise StoreError(f"{self.folder} holds no embeddings (format {self.manifest.get('format')!r})")
        broken = [name for name, kind in _MANIFEST_FIELDS.items() if not isinstance(self.manifest.get(name), kind)]
        if not broken and not all(
            isinstance(shard, dict) and shard.keys() >= _SHARD_FIELDS for shard in self.manifest["shards"]
        ):
            broken = ["shards"]
        if broken:
            raise StoreError(
                f"{self.folder / _MANIFEST} was changed by hand ({', '.join(map(repr, broken))}): {_REMEDY}"
            )
        if kind is not None and self.manifest["kind"] != kind:
            raise StoreError(f"{self.folder} holds embeddings of {self.manifest['kind']}, not of {kind}")
        self._headers = []
        for shard in self.manifest["shards"]:
            path = self.folder / shard["file"]
            if not path.is_file():
                raise StoreError(
                    f"{path} is missing: run `vicha-hf concepts embed` again, which makes what is missing"
                )
            header = read_shard_header(path)
            if header.embeds_shape != (shard["rows"], self.width if shard["rows"] else 0):
                raise StoreError(
                    f"{path} holds {header.embeds_shape} numbers and not {(shard['rows'], self.width)}: it belongs to other "
                    "embeddings; delete it and run `vicha-hf concepts embed` again"
                )
            self._headers.append(header)

    def __len__(self) -> int:
        """Rows in all."""
        return self.manifest["rows"]

    @property
    def width(self) -> int:
        """Numbers per row."""
        return self.manifest["width"]

    @property
    def encoder(self) -> dict:
        """Name, revision and digest of the weights."""
        return self.manifest["encoder"]

    @property
    def digest(self) -> str:
        """A hash of the embeddings and of what they were made from."""
        return digest_of(self.manifest)

    def vocabulary(self) -> dict[str, int]:
        """
        The words with their counts, of embeddings of concepts, in the order of the rows.

        Raises:
            StoreError: the file is missing, or belongs to other embeddings.
        """
        path = self.folder / _VOCABULARY
        if not path.is_file():
            raise StoreError(f"{path} is missing: embed the vocabulary again")
        words = read_json(path)
        self.require_items(digest_of_items(words), f"the words of {path}", "embed the vocabulary again")
        return words

    def shards(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """
        Items int64 [n] and embeddings float16 [n, E] of each shard, mapped from the disk.

        Raises:
            StoreError: a shard with other bytes than were written.
        """
        for header, shard in zip(self._headers, self.manifest["shards"], strict=True):
            if digest_of_file(header.path) != shard["digest"]:
                raise StoreError(f"{header.path} has changed since it was written: {_REMEDY}")
            yield header.items(), header.embeds()

    def read_all(self) -> np.ndarray:
        """Every row in memory, float16 [N, E]."""
        parts = [embeds for items, embeds in self.shards() if len(items)]
        return np.concatenate(parts) if parts else np.zeros((0, self.width), np.float16)

    def require_items(self, items_digest: str, what: str, remedy: str) -> None:
        """
        Checks that the embeddings are of these things.

        Raises:
            StoreError: they are of others.
        """
        if self.manifest["items_digest"] != items_digest:
            raise StoreError(f"{self.folder} was not made from {what}, or that has changed since: {remedy}")


def require_words_of(folder: Path, words: Iterable[str]) -> None:
    """
    A check that embeddings in a folder, finished or not, are of these words. A folder without any passes.

    Raises:
        StoreError: they were made from other words.
    """
    known = folder / _JOB
    if known.is_file() and read_json(known).get("items_digest") != digest_of_items(words):
        raise StoreError(
            f"{folder} holds embeddings of other words than the captions have now. Nothing was changed: choose another "
            "--output, or delete that folder"
        )


def require_same_encoder(first: EmbeddingStore, second: EmbeddingStore) -> None:
    """Raises `StoreError` for embeddings that cannot be compared, and for a folder without any."""
    for store in (first, second):
        if not len(store):
            problem = f"none of its {store.manifest['num_items']} {store.manifest['kind']} could be read"
            raise StoreError(f"{store.folder}: {problem}; mend them, and embed them into another folder")
    if first.encoder["digest"] != second.encoder["digest"] or first.width != second.width:
        described: Sequence[str] = [
            f"{store.folder} by {store.encoder['name']} (revision {store.encoder['revision']}, width {store.width})"
            for store in (first, second)
        ]
        raise StoreError(f"embeddings of different encoders cannot be compared: {' and '.join(described)}")


def _map(path: Path, dtype, offset: int, shape: tuple[int, ...]) -> np.ndarray:
    # An empty file region cannot be mapped.
    return np.memmap(path, dtype, "r", offset, shape) if all(shape) else np.zeros(shape, dtype)
