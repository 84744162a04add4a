"""The check of a corpus: every record is read and every image decoded, once, and what is wrong is counted."""

import os
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from ..whole_files import write_whole_lines
from .annotation_sources import OpenedSource, open_sources
from .annotations import Annotations, NoUsableRecord, iterate_fields, read_image_text_records
from .annotations_entailment import read_entailment_records
from .annotations_grounding import read_grounding_records
from .annotations_reasoning import read_reasoning_records
from .annotations_vqa import read_question_records
from .declared_roots import DeclaredRoot
from .image_check import images_of
from .image_files import ImageReadError, open_image
from .json_writing import json_line
from .loader_processes import process_pool
from .merged_ids import MergedImageIds
from .near_duplicates import NearDuplicate, difference_hash, find_near_duplicates
from .raw_records import AnnotationError, RawRecord, RecordProblem, RecordSource
from .read_report import AnnotationReport, shown_fields
from .source_license import carry_license
from .stored_images import EmbeddedImage


NEAR_DUPLICATES = "nearly equal images in different splits"
_AT_A_TIME = 32
# Fields that hold the text of a record, whatever its task.
_TEXT_FIELDS = ("captions", "question", "sentence", "text")


@dataclass
class CorpusCheck:
    """
    Result of a check.

    Attributes:
        report: of the reading, with the records whose images cannot be decoded.
        duplicates: pairs of nearly equal images in different splits.
        num_images: distinct images that can be decoded.
        words: texts by their number of words.
        sides: images by the length of their shorter side, in pixels.
        concepts: records by their number of concepts.
        splits: usable records by split.
        usable: (source, position, line) of the usable records, for a clean copy.
    """

    report: AnnotationReport
    duplicates: list[NearDuplicate] = field(default_factory=list)
    num_images: int = 0
    words: Counter = field(default_factory=Counter)
    sides: Counter = field(default_factory=Counter)
    concepts: Counter = field(default_factory=Counter)
    splits: Counter = field(default_factory=Counter)
    usable: set[str] = field(default_factory=set)

    @property
    def problems(self) -> dict[str, int]:
        """Causes with their counts, most frequent first."""
        found = Counter(self.report.causes)
        if self.duplicates:
            found[NEAR_DUPLICATES] = len(self.duplicates)
        return dict(found.most_common())

    def facts(self) -> str:
        """Numbers of the usable records, for the terminal."""
        num_words = sum(words * texts for words, texts in self.words.items())
        unread = sorted(map(str, self.report.unknown_fields))
        return (
            f"{self.num_images:,} images; {self.concepts.total() - self.concepts[0]:,} records with concepts, "
            f"{self.concepts[0]:,} without; {self.words.total():,} texts of {num_words:,} words"
        ) + (f"\nfields that nothing reads: {shown_fields(unread)}" if unread else "")

    def as_json(self) -> dict:
        """Everything in plain values; `records`, `usable` and `problems` first."""
        return {
            "records": self.report.num_read,
            "usable": self.report.num_kept,
            "problems": self.problems,
            "images": self.num_images,
            "splits": dict(self.splits),
            "records_without_concepts": self.concepts[0],
            "caption_words": _histogram(self.words),
            "image_shorter_side": _histogram(self.sides),
            "concepts_per_record": _histogram(self.concepts),
            "mended": dict(self.report.notes),
            "unknown_fields": dict(self.report.unknown_fields),
            "near_duplicates": [vars(pair) for pair in self.duplicates],
        }


class _Recording(RecordSource):
    """A source that remembers the split of each of its records."""

    def __init__(self, opened: OpenedSource):
        self.opened = opened
        self.names: dict[str, int] = {}
        self.splits: dict[str, array] = defaultdict(lambda: array("i"))

    def __str__(self) -> str:
        return str(self.opened.records)

    def iterate_records(self) -> Iterator[RawRecord]:
        for raw in self.opened.records.iterate_records():
            value = raw.value.get("split") if isinstance(raw.value, dict) else None
            if self.opened.split is not None and value != self.opened.split:
                continue
            name = value if isinstance(value, str) else str(self.opened.records)
            splits = self.splits[raw.source]
            splits.extend([-1] * (raw.index + 1 - len(splits)))
            splits[raw.index] = self.names.setdefault(name, len(self.names))
            yield raw

    def split_of(self, source: str, index: int) -> str:
        """The split of a record."""
        return list(self.names)[self.splits[source][index]]


def check_corpus(
    sources, task: str = "retrieval", num_workers: int | None = None, progress: bool = False, **options
) -> CorpusCheck:
    """
    Reads annotations and decodes all of their images.

    Args:
        sources: as `read_image_text_records` takes them. Records without a field `split` are of the split of their file.
        task: whose records they are.
        num_workers: processes that decode; None for one per core.
        progress: whether to show a progress bar.
        options: `image_root` and others of `ReadingOptions`.

    Raises:
        AnnotationError: a file that cannot be read at all.
    """
    image_root = options.pop("image_root", None)
    recorded = [_Recording(opened) for opened in open_sources(sources, image_root)]
    try:
        annotations = _READERS[task](recorded, on_bad_record="skip", **options)
    except NoUsableRecord as error:
        return CorpusCheck(error.report)
    check = CorpusCheck(annotations.report)
    split_of = {source: one for one in recorded for source in one.splits}
    found = _decode_all(annotations, num_workers or os.cpu_count() or 1, progress)
    firsts: dict[tuple[object, str], tuple[str, int]] = {}
    for record in annotations:
        problem = next((found[image] for image in images_of(record) if isinstance(found[image], ImageReadError)), None)
        if problem is not None:
            check.report.reject(record.where, f"field 'image': {problem.cause}", problem.message)
            check.report.num_kept -= 1
            continue
        source, index = _source_and_index(record.where)
        split = split_of[source].split_of(source, index)
        check.usable.add(record.where)
        check.splits[split] += 1
        check.words.update(len(text.split()) for text in _texts(record))
        check.concepts[len(record.concepts) if task != "reasoning" else sum(map(len, record.concepts))] += 1
        for image in images_of(record):
            firsts.setdefault((image, split), (record.where, found[image].hash))
    sides = {image: found[image].side for image, _ in firsts}
    check.num_images = len(sides)
    check.sides.update(sides.values())
    if len(check.splits) > 1:
        images, splits = zip(*firsts, strict=True) if firsts else ((), ())
        places, hashes = zip(*firsts.values(), strict=True) if firsts else ((), ())
        check.duplicates = find_near_duplicates(images, places, np.array(hashes, dtype=np.uint64), splits)
    return check


def write_clean_copy(check: CorpusCheck, sources, output: Path, image_root=None) -> int:
    """
    Writes the usable records as JSONL, as they were written, with the paths of their images as seen from the new file. Ids
    that several files give to different images are told apart.

    Returns:
        The number of records.

    Raises:
        AnnotationError: the output is one of the sources, or images lie inside datasets or shards.
    """
    root = DeclaredRoot(output)
    folder = output.absolute().parent

    def usable() -> Iterator[tuple[RawRecord, Mapping]]:
        for raw, fields in iterate_fields(sources, image_root):
            if not isinstance(fields, RecordProblem) and raw.where in check.usable:
                yield raw, fields

    def lines() -> Iterator[str]:
        ids = MergedImageIds((raw.source, fields.get("image_id")) for raw, fields in usable())
        for raw, fields in usable():
            record = dict(fields)
            if "image_id" in record:
                record["image_id"] = ids.of(raw.source, record["image_id"])
            for name in ("image", "images"):
                if name in record:
                    record[name] = _seen_from(folder, raw, record[name], root)
            yield json_line(record)

    for opened in open_sources(sources, image_root):
        if Path(str(opened.records)).absolute() == output.absolute():
            raise AnnotationError(f"--fix {output} is the file that is checked, which stays as it is; name another")
    if output.suffix not in (".jsonl", ".ndjson"):
        raise AnnotationError(f"--fix {output} is written with one record per line: name it *.jsonl")
    write_whole_lines(output, lines())
    root.write()
    carry_license(sources, output)
    return len(check.usable)


def _seen_from(folder: Path, raw: RawRecord, image: object, root: DeclaredRoot) -> object:
    if isinstance(image, list | tuple):
        return [_seen_from(folder, raw, one, root) for one in image]
    if isinstance(image, EmbeddedImage):
        raise AnnotationError(
            f"{raw.where}: the image lies inside a dataset or shard, which JSONL cannot hold; write clean shards with "
            "`vicha-hf data pack --on-bad-record skip`"
        )
    base = raw.image_root if raw.image_root is not None else raw.default_root
    path = os.path.abspath(os.path.join(base, image))
    root.add(path)
    return Path(os.path.relpath(path, folder)).as_posix()


@dataclass(frozen=True)
class _Decoded:
    side: int
    hash: int


def _decode_all(
    annotations: Annotations, num_workers: int, progress: bool
) -> dict[str | EmbeddedImage, _Decoded | ImageReadError]:
    places: dict[str | EmbeddedImage, str] = {}
    for record in annotations:
        for image in images_of(record):
            places.setdefault(image, record.where)
    waiting = iter(places.items())
    groups = iter(lambda: list(islice(waiting, _AT_A_TIME)), [])
    found: list[_Decoded | ImageReadError] = []
    with ExitStack() as stack:
        bar = stack.enter_context(tqdm(total=len(places), unit=" images", desc="decoding", disable=not progress))
        decode: Callable = map
        if num_workers > 1 and len(places) > _AT_A_TIME:
            decode = stack.enter_context(process_pool(num_workers)).map
        for results in decode(_decode_group, groups):
            found += results
            bar.update(len(results))
    return dict(zip(places, found, strict=True))


def _decode_group(group: Sequence[tuple[str | EmbeddedImage, str]]) -> list[_Decoded | ImageReadError]:
    results: list[_Decoded | ImageReadError] = []
    for image, where in group:
        try:
            opened = open_image(image, where)
            results.append(_Decoded(min(opened.size), difference_hash(opened)))
        except ImageReadError as error:
            # Without the decoder's own error, which may not travel between processes.
            results.append(ImageReadError(error.message, error.cause, error.where))
    return results


def _texts(record: object) -> Sequence[str]:
    value = next(getattr(record, name) for name in _TEXT_FIELDS if hasattr(record, name))
    return (value,) if isinstance(value, str) else value


def _source_and_index(where: str) -> tuple[str, int]:
    source, _, rest = where.rpartition(", record ")
    return source, int(rest.split(" ")[0])


def _histogram(counts: Counter) -> dict[str, int]:
    return {str(value): counts[value] for value in sorted(counts)}


def _read_expressions(sources, **options) -> Annotations:
    # Files to train on have no boxes.
    first = next((value for _, value in iterate_fields(sources) if not isinstance(value, RecordProblem)), {})
    return read_grounding_records(sources, for_evaluation="bbox" in first, **options)


_READERS: dict[str, Callable[..., Annotations]] = {
    "retrieval": lambda sources, **options: read_image_text_records(sources, for_evaluation=True, **options),
    "vqa": lambda sources, **options: read_question_records(sources, for_evaluation=True, **options),
    "entailment": lambda sources, **options: read_entailment_records(sources, require_labels=False, **options),
    "reasoning": lambda sources, **options: read_reasoning_records(sources, require_labels=False, **options),
    "grounding": _read_expressions,
}
