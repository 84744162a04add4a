"""Training examples from streams: shuffled, shared among processes and workers, and continued at the very next example.

Every process has readers, one per loading process. A reader passes through its own shards again and again, in an order
that is drawn for each pass. It fills a buffer, shuffles it, empties it, and fills it again. So its place in the stream is
a few numbers, and a run that goes on from them sees what the unbroken run would have seen.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from .annotation_fields import ImageFinder
from .annotation_sources import as_corpus_source, list_sources, roots_of_sources
from .annotations import ImageTextParser, fields_of
from .datasets_annotated import TaskItems
from .datasets_pretraining import PretrainingItems
from .image_files import ImageReadError
from .raw_records import AnnotationError, RawRecord, RecordProblem
from .read_report import RejectedRecord, RejectsFile
from .stream_shards import ShardReadError, StreamShard, describe_shards, skip_records, stream_shards


_SHARD_ORDER, _BUFFER_ORDER, _ITEM, _SOURCE = range(4)


@dataclass(frozen=True)
class StreamPlace:
    """
    Place of a reader in one source.

    Attributes:
        passes: whole passes through its shards.
        shard: in the order of the present pass, where the present buffer begins.
        record: of that shard.
        taken: records that have been taken out of the buffer.
    """

    passes: int = 0
    shard: int = 0
    record: int = 0
    taken: int = 0


@dataclass(frozen=True)
class ReaderState:
    """
    Place of a reader in all sources.

    Attributes:
        places: in each source.
        examples: that it has given.
    """

    places: tuple[StreamPlace, ...]
    examples: int = 0

    def as_json(self) -> dict:
        """The state in plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping) -> "ReaderState":
        """The state that `as_json` wrote."""
        return cls(tuple(StreamPlace(**place) for place in content["places"]), content["examples"])


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """
    Options of a stream.

    Attributes:
        batch_size: examples of a batch.
        seed: of all draws.
        buffer_size: records that are shuffled together, per reader.
        on_bad_record: "raise" stops at a bad record, an image that cannot be decoded, or a shard that cannot be read to its
            end; "skip" goes on to the next one.
        num_processes, process_index: of the training.
        num_workers: loading processes per process; 0 loads in the process itself.
        allow_outside_root: as in `ReadingOptions`.
    """

    batch_size: int
    seed: int = 0
    buffer_size: int = 1000
    on_bad_record: Literal["raise", "skip"] = "raise"
    num_processes: int = 1
    process_index: int = 0
    num_workers: int = 0
    allow_outside_root: bool = False

    def __post_init__(self):
        for name in ("batch_size", "buffer_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")

    @property
    def readers_per_process(self) -> int:
        """Readers of one process."""
        return max(1, self.num_workers)

    @property
    def num_readers(self) -> int:
        """Readers of all processes."""
        return self.num_processes * self.readers_per_process


@dataclass(frozen=True)
class StreamBatch:
    """
    A batch, with what is needed to go on behind it.

    Attributes:
        batch: the collator's.
        records: file and record of each example.
        reader: number of the reader within its process.
        state: of that reader behind the batch, as JSON.
    """

    batch: dict[str, torch.Tensor]
    records: list[str]
    reader: int
    state: dict


class _SourceReader:
    """The records of one source for one reader, from a place on, without end."""

    def __init__(
        self,
        shards: Sequence[StreamShard],
        source: int,
        reader: int,
        options: StreamOptions,
        leave_out: Callable[[ShardReadError], None],
    ):
        self._options = options
        self._leave_out = leave_out
        self._last_left_out: ShardReadError | None = None
        self._draws = (reader, source)
        # Every reader has as many shards to itself. Those left over belong to groups of readers, all of one size.
        readers = options.num_readers
        self._num_own, left_over = divmod(len(shards), readers)
        groups = math.gcd(left_over, readers)
        self._sharing = readers // groups
        group, self._rank = divmod(reader, self._sharing)
        whole = self._num_own * readers
        self._shards = [*shards[reader:whole:readers], *shards[whole + group :: groups]]

    def from_place(self, place: StreamPlace) -> Iterator[tuple[RawRecord, StreamPlace]]:
        """Each record with the place behind it."""
        while True:
            found = False
            for buffer, begin, end in self._buffers(place):
                found = True
                order = self._rng(_BUFFER_ORDER, begin.passes, begin.shard, begin.record).permutation(len(buffer))
                for taken in range(begin.taken, len(buffer)):
                    last = taken + 1 == len(buffer)
                    yield buffer[order[taken]], end if last else replace(begin, taken=taken + 1)
            if not found and place == StreamPlace(place.passes):
                names = ", ".join(map(str, self._shards[:3]))
                raise AnnotationError(f"no record in {names}; check the shards") from self._last_left_out
            place = StreamPlace(place.passes + 1)

    def _buffers(self, place: StreamPlace) -> Iterator[tuple[list[RawRecord], StreamPlace, StreamPlace]]:
        """The buffers of a pass: records, the place where they begin, and the place behind them."""
        order = self._rng(_SHARD_ORDER, place.passes).permutation(len(self._shards))
        begin, buffer = place, []
        for position in range(place.shard, len(order)):
            skipped = place.record if position == place.shard else 0
            for number, raw in enumerate(self._records(order[position], skipped), start=skipped):
                if not self._is_own(order[position], raw.index):
                    continue
                if len(buffer) == self._options.buffer_size:
                    behind = StreamPlace(place.passes, position, number)
                    yield buffer, begin, behind
                    begin, buffer = behind, []
                buffer.append(raw)
        if buffer:
            yield buffer, begin, StreamPlace(place.passes + 1)

    def _records(self, shard: int, skipped: int) -> Iterator[RawRecord]:
        """The records of a shard behind the first `skipped`. One that breaks off ends there, each time it is read."""
        try:
            yield from skip_records(self._shards[shard].records(), skipped)
        except ShardReadError as error:
            self._leave_out(error)
            self._last_left_out = error

    def _is_own(self, shard: int, record: int) -> bool:
        # The first reader of a group is another one in each shard, so that short shards do not all burden the same one.
        return shard < self._num_own or (record + shard) % self._sharing == self._rank

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self._options.seed, spawn_key=(*self._draws, *key)))


class StreamDataset(IterableDataset):
    """
    Batches of training examples from streams, without end.

    Args:
        sources: one or several; see `stream_shards`. `weight` says how often examples come from a source, 1 by default.
        items: makes examples out of the task's records.
        collator: makes batches out of examples.
        options: of the stream.
        image_root: folder that relative image paths start from, or one for each source.
        parser: takes what finds images, and returns what makes a record of the task out of a record's fields.

    Attributes:
        rejects: where records are written down that were left out; None writes nothing.

    Raises:
        AnnotationError: a source that cannot be streamed; from iterating, a bad record ("raise") or no record at all.
        ImageReadError: from iterating, an image that cannot be decoded ("raise").
    """

    def __init__(
        self,
        sources: object,
        items: PretrainingItems | TaskItems,
        collator: Callable[[Sequence[Mapping]], dict[str, torch.Tensor]],
        options: StreamOptions,
        image_root: str | Sequence[str] | None = None,
        parser: Callable[[ImageFinder], Callable[[Mapping, RawRecord], object]] = ImageTextParser,
    ):
        listed = list_sources(sources)
        roots = roots_of_sources(listed, image_root)
        self.shards = [stream_shards(source, root) for source, root in zip(listed, roots, strict=True)]
        weights = [getattr(as_corpus_source(source), "weight", None) or 1.0 for source in listed]
        self._shares = np.cumsum(weights) / sum(weights)
        self.items = items
        self.collator = collator
        self.options = options
        self.rejects: RejectsFile | None = None
        # A file that is missing is found when it is opened: the names of a stream's files would fill the memory.
        self._parse = parser(ImageFinder(False, options.allow_outside_root))
        fresh = ReaderState((StreamPlace(),) * len(listed))
        self._states = [fresh] * options.readers_per_process
        self._next_reader = 0

    def fingerprint(self) -> str:
        """A number in hexadecimal that changes with the shards and how they are mixed."""
        facts = [
            [describe_shards(shards) for shards in self.shards],
            self._shares.tolist(),
            self.options.buffer_size,
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    @property
    def sharing(self) -> str:
        """Processes and workers that share the shards, in words."""
        return f"{self.options.num_processes} processes x {self.options.readers_per_process} workers"

    @property
    def states(self) -> list[dict]:
        """Places of the readers of this process, as JSON."""
        return [state.as_json() for state in self._states]

    def go_on_from(self, states: Sequence[Mapping], batches: int) -> None:
        """
        Sets the places that the next iteration begins at.

        Args:
            states: of the readers of this process.
            batches: that this process has seen.

        Raises:
            ValueError: states of another number of readers.
        """
        if len(states) != self.options.readers_per_process:
            raise ValueError(
                f"the checkpoint knows the places of {len(states)} readers of each process, and there are "
                f"{self.options.readers_per_process}: continue with as many workers, or start anew from its weights."
            )
        self._states = [ReaderState.from_json(state) for state in states]
        self._next_reader = batches % len(self._states)

    def saw(self, batch: StreamBatch) -> None:
        """Notes the place behind a batch that was used, for `states`."""
        self._states[batch.reader] = ReaderState.from_json(batch.state)

    def __iter__(self) -> Iterator[StreamBatch]:
        info = get_worker_info()
        worker = 0 if info is None else info.id
        # Loading processes take turns, the first one first.
        reader = (self._next_reader + worker) % self.options.readers_per_process
        examples = self._examples(reader, self._states[reader])
        while True:
            items, records = [], []
            for item, where, state in examples:  # noqa: B007 -- used behind the loop
                items.append(item)
                records.append(where)
                if len(items) == self.options.batch_size:
                    break
            yield StreamBatch(self.collator(items), records, reader, state.as_json())

    def _examples(self, own_number: int, state: ReaderState) -> Iterator[tuple[Mapping, str, ReaderState]]:
        options = self.options
        reader = options.process_index * options.readers_per_process + own_number
        streams = [
            _SourceReader(shards, number, reader, options, self._leave_out).from_place(place)
            for number, (shards, place) in enumerate(zip(self.shards, state.places, strict=True))
        ]
        bad_in_a_row = 0
        while True:
            source = 0
            if len(streams) > 1:
                drawn = self._rng(reader, _SOURCE, state.examples).random()
                source = int(np.searchsorted(self._shares, drawn, side="right"))
            raw, place = next(streams[source])
            places = tuple(place if number == source else one for number, one in enumerate(state.places))
            try:
                item = self.items.make(self._parse(fields_of(raw), raw), self._rng(reader, _ITEM, state.examples))
            except (RecordProblem, ImageReadError) as problem:
                self._reject(raw, problem)
                bad_in_a_row += 1
                if bad_in_a_row > 100 * options.buffer_size:
                    raise AnnotationError(f"no usable record among the last {bad_in_a_row} of the stream") from problem
                state = replace(state, places=places)
                continue
            bad_in_a_row = 0
            state = ReaderState(places, state.examples + 1)
            yield item, raw.where, state

    def _leave_out(self, error: ShardReadError) -> None:
        if self.options.on_bad_record == "raise":
            raise error
        if self.rejects is not None:
            self.rejects.add(RejectedRecord(error.where, error.problem.label, error.problem.message))

    def _reject(self, raw: RawRecord, problem: RecordProblem | ImageReadError) -> None:
        if isinstance(problem, ImageReadError):
            label, message = f"field 'image': {problem.cause}", problem.message
        else:
            label, message = problem.label, problem.message
        if self.options.on_bad_record == "raise":
            raise problem if isinstance(problem, ImageReadError) else AnnotationError(f"{raw.where}: {message}")
        if self.rejects is not None:
            self.rejects.add(RejectedRecord(raw.where, label, message))

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self.options.seed, spawn_key=key))
