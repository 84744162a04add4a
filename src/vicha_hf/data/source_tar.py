"""Annotations in tar shards, as WebDataset and img2dataset write them: members of one name belong together."""

import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from .json_reading import decode_json, decoding_problem, require_regular_file
from .raw_records import RawRecord, RecordProblem, RecordSource, unreadable_shard
from .source_files import file_fingerprint, renamed_fields
from .source_folders import IMAGE_SUFFIXES
from .stored_images import EmbeddedImage, ImageStore, TarImages


TAR_SUFFIX = ".tar"
TEXT_MEMBERS = (".txt", ".caption")
JSON_MEMBER = ".json"
# A caption or its metadata; images may be larger.
_LONGEST_TEXT = 16 * 2**20
# What img2dataset writes into its JSON besides what the schema knows.
DOWNLOAD_FAILED = "status"


class StrictTarInfo(tarfile.TarInfo):
    """
    Members for `tarfile.open(tarinfo=StrictTarInfo)`, which then refuses a file that is cut off or damaged between two
    members or within a header. By itself it takes such a place for the end of a whole file.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:
        """The next member. Raises `tarfile.ReadError` where there is none and no end mark either."""
        try:
            return super().fromtarfile(archive)
        # Blocks of zeros.
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {archive.offset}, before the end mark") from error


def sample_key(name: str) -> tuple[str, str]:
    """
    The key and the lower-case suffix of a member. The suffix begins at the last dot: the names of images that were
    collected somewhere have dots in them.
    """
    path = PurePosixPath(name)
    return name.removesuffix(path.suffix).removeprefix("./"), path.suffix.lower()


def is_wanted(suffix: str) -> bool:
    """Whether members of that suffix belong to a record."""
    return suffix in IMAGE_SUFFIXES or suffix in TEXT_MEMBERS or suffix == JSON_MEMBER


def record_of_members(texts: Mapping[str, bytes], image: object | None, key: str) -> dict:
    """
    A record put together from the members of one key.

    Args:
        texts: content of the text and JSON members, by suffix.
        image: what stands for the image; None where there is none.
        key: the name that the members share.

    Raises:
        RecordProblem: no image, no readable text, or a download that had failed.
    """
    record = {}
    if JSON_MEMBER in texts:
        try:
            record = decode_json(texts[JSON_MEMBER].decode("utf-8-sig"))
        except ValueError as error:
            remedy, member = "correct the member, or remove it", f"{key}{JSON_MEMBER}"
            raise decoding_problem(error, "", "a JSON member that is not readable", remedy, member) from error
        if not isinstance(record, dict):
            raise RecordProblem("", "a JSON member that is no object", 'write {"caption": ...}', f"{key}{JSON_MEMBER}")
        if record.get(DOWNLOAD_FAILED) not in (None, "success"):
            raise RecordProblem("image", "its download had failed", "leave the record out", f"{key}")
    for suffix in TEXT_MEMBERS:
        if suffix in texts and record.get("caption") is None:
            try:
                record["caption"] = texts[suffix].decode("utf-8-sig").strip()
            except UnicodeDecodeError as error:
                raise RecordProblem("caption", "not encoded as UTF-8", "correct the member", f"{key}") from error
    if image is None:
        raise RecordProblem("image", "missing", "put an image of the same name into the shard", f"members {key}.*")
    record["image"] = image
    return record


class TarSource(RecordSource):
    """
    Uncompressed tar shards on this machine, whose members are found by their offsets: any order of members will do.

    Args:
        paths: of the shards.
        columns: which field of the JSON members holds which annotation field, where the names differ.
    """

    def __init__(self, paths: Sequence[Path], columns: Mapping[str, str | Sequence[str]]):
        self.paths = list(paths)
        self.columns = columns

    def __str__(self) -> str:
        return str(self.paths[0]) if len(self.paths) == 1 else f"{len(self.paths)} shards from {self.paths[0]} on"

    def fingerprint(self) -> str:
        return json.dumps([file_fingerprint(self.paths), self.columns])

    def size_in_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.paths)

    def image_store(self, key: str) -> ImageStore:
        return TarImages(key)

    def iterate_records(self) -> Iterator[RawRecord]:
        for path in self.paths:
            require_regular_file(path, "shard")
            store = TarImages(str(path))
            groups, broken = self._groups(path)
            for index, (key, members) in enumerate(groups.items()):
                value, problem = None, None
                try:
                    value, problem = self._record(store, key, members), None
                except RecordProblem as found:
                    problem = found
                if value is not None and self.columns:
                    value, problem = renamed_fields(value, self.columns)
                yield RawRecord(value, str(path), index, path.parent, None, problem)
            if broken is not None:
                yield RawRecord(None, str(path), len(groups), path.parent, None, broken)

    @staticmethod
    def _groups(path: Path) -> tuple[dict[str, dict[str, tuple[int, int]]], RecordProblem | None]:
        """(Offset, size) of the members, by key and suffix, and the problem of a file that breaks off."""
        groups: dict[str, dict[str, tuple[int, int]]] = {}
        key = None
        try:
            with tarfile.open(path, "r:", tarinfo=StrictTarInfo) as archive:
                for member in archive:
                    key, suffix = sample_key(member.name)
                    if member.isfile() and is_wanted(suffix):
                        groups.setdefault(key, {})[suffix] = (member.offset_data, member.size)
                    # tarfile would remember every member that it has seen.
                    archive.members = []
        except (tarfile.TarError, OSError, ValueError) as error:
            # The other members of the last record may lie behind.
            groups.pop(key, None)
            return groups, unreadable_shard(error, "download it again, or unpack its compression")
        return groups, None

    @staticmethod
    def _record(store: TarImages, key: str, members: Mapping[str, tuple[int, int]]) -> dict:
        texts = {}
        for suffix, (offset, size) in members.items():
            if suffix not in IMAGE_SUFFIXES:
                if size > _LONGEST_TEXT:
                    raise RecordProblem(f"{key}{suffix}", "too long", "correct the member", f"{size} bytes")
                texts[suffix] = _read_text(store, offset, size, key)
        image = next((EmbeddedImage(store, *place) for name, place in members.items() if name in IMAGE_SUFFIXES), None)
        return record_of_members(texts, image, key)


def _read_text(store: TarImages, offset: int, size: int, key: str) -> bytes:
    try:
        return store.read_bytes(offset, size)
    except OSError as error:
        raise RecordProblem("", "cut off", "download the shard again", f"{key}: {error}") from error
