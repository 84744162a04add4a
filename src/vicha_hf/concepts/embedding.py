"""Embeddings of a vocabulary, of a corpus's images and of its captions, in as many processes as there are."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..data.image_files import ImageReadError, open_image
from ..data.stored_images import EmbeddedImage
from ..models.concept_selector import DualEncoder, check_prompts, prepare_images
from .corpus import ConceptCorpus, require_captions
from .embedding_store import EmbeddingJob, EmbeddingStore, EmbeddingWriter, StoreError
from .manifests import digest_of_items


DEFAULT_PROMPTS = ("a photo of a {}",)
DEFAULT_BATCH_SIZE = 64
# A run that is killed does the shard at hand again: that must be little of all, and files must not be too many.
_MOST_PER_SHARD = 4096
_SHARDS_AIMED_AT = 128


def new_accelerator(mixed_precision: str = "no") -> Accelerator:
    """
    The processes of this run, and where they compute.

    Args:
        mixed_precision: "no", "fp16" or "bf16".
    """
    # Without `cpu` several processes on a machine without GPU would not find each other.
    return Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision=mixed_precision)


def embed_concepts(
    vocabulary: Sequence[str] | Mapping[str, int],
    encoder: DualEncoder,
    output,
    *,
    prompts: Sequence[str] = DEFAULT_PROMPTS,
    batch_size: int = DEFAULT_BATCH_SIZE,
    accelerator: Accelerator | None = None,
    progress: bool = False,
) -> EmbeddingStore:
    """
    Embeds a vocabulary into a folder: for each word the mean over prompts.

    Args:
        vocabulary: the words.
        encoder: where it runs is decided by the accelerator.
        output: a new folder, or one that the same call left unfinished.
        prompts: texts with {} where the word goes.
        batch_size: words embedded at a time.
        accelerator: of a run of several processes; each does its share.
        progress: show a progress bar.

    Raises:
        FileExistsError, StoreError: the folder holds something else; nothing is changed.
    """
    check_prompts(prompts)
    counts = vocabulary if isinstance(vocabulary, Mapping) else dict.fromkeys(vocabulary, 0)
    words = list(counts)
    accelerator = accelerator or new_accelerator()
    job = _job("concepts", encoder, accelerator, len(words), digest_of_items(words), batch_size, prompts=list(prompts))

    def embed(batch: Sequence[int]) -> torch.Tensor:
        return encoder.encode_concepts([words[item] for item in batch], prompts)

    return _embed_texts(output, job, encoder, accelerator, words, embed, progress, vocabulary=counts)


def embed_captions(
    corpus: ConceptCorpus,
    encoder: DualEncoder,
    output,
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
    accelerator: Accelerator | None = None,
    progress: bool = False,
) -> EmbeddingStore:
    """
    Embeds every caption of a corpus, record by record, into a folder; arguments and errors as for `embed_concepts`.
    """
    accelerator = accelerator or new_accelerator()
    captions = [caption for record in corpus.records for caption in require_captions(record)]
    digest = digest_of_items(corpus.captions_digest_items())
    job = _job("captions", encoder, accelerator, len(captions), digest, batch_size)

    def embed(batch: Sequence[int]) -> torch.Tensor:
        return encoder.encode_texts([captions[item] for item in batch])

    return _embed_texts(output, job, encoder, accelerator, captions, embed, progress)


def embed_images(
    corpus: ConceptCorpus,
    encoder: DualEncoder,
    output,
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
    num_workers: int = 0,
    accelerator: Accelerator | None = None,
    progress: bool = False,
) -> EmbeddingStore:
    """
    Embeds every distinct image of a corpus into a folder.

    Args:
        corpus: says what becomes of images that cannot be decoded: they end the run, or are left out and listed in the
            manifest.
        num_workers: processes that decode images, for each process that embeds.
        encoder, output, batch_size, accelerator, progress: as for `embed_concepts`.

    Raises:
        ImageReadError: an image that cannot be decoded, unless the corpus skips such.
        FileExistsError, StoreError: the folder holds something else; nothing is changed.
    """
    if num_workers < 0:
        raise ValueError(f"num_workers={num_workers} must be at least 0")
    accelerator = accelerator or new_accelerator()
    digest = digest_of_items(corpus.images_digest_items())
    job = _job(
        "images", encoder, accelerator, corpus.num_images, digest, batch_size, on_bad_record=corpus.on_bad_record
    )
    writer, shards = _begin(output, job, accelerator)
    batches = [batch for shard in shards for batch in _batches(job, shard)]
    loader = DataLoader(_Images(corpus, encoder), batch_sampler=batches, num_workers=num_workers, collate_fn=_collate)
    encoder.model.to(accelerator.device)

    def embedded() -> Iterator["_Batch"]:
        for batch in loader:
            if batch.inputs is not None:
                with accelerator.autocast():
                    batch.embeds = encoder.encode_prepared(batch.inputs).cpu()
            yield batch

    _write_shards(writer, shards, embedded(), accelerator, progress)
    return _finish(writer, accelerator)


@dataclass
class _Batch:
    """Things of one batch: places, what the encoder takes, digests of the content, and what could not be read."""

    items: list[int]
    inputs: dict[str, torch.Tensor] | None
    contents: list[str]
    unreadable: dict[int, str]
    embeds: torch.Tensor | None = None


class _Images(Dataset):
    """Items are (number of the image, digest of its bytes, what the encoder takes or why it cannot be read)."""

    def __init__(self, corpus: ConceptCorpus, encoder: DualEncoder):
        self._corpus = corpus
        # Without the model, which the processes that decode have no use for.
        self._prepare = partial(prepare_images, encoder.processor.image_processor)

    def __len__(self) -> int:
        return self._corpus.num_images

    def __getitem__(self, number: int) -> tuple[int, str, dict[str, torch.Tensor] | str]:
        image, where = self._corpus.image(number)
        try:
            content = content_digest(image)
            return number, content, self._prepare([open_image(image, where)])
        except (ImageReadError, OSError) as error:
            if self._corpus.on_bad_record == "raise":
                raise
            return number, "", str(error)


def content_digest(image: str | EmbeddedImage) -> str:
    """A hash of an image's bytes as they are stored."""
    content = image.read_bytes() if isinstance(image, EmbeddedImage) else Path(image).read_bytes()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _collate(entries: list[tuple[int, str, dict[str, torch.Tensor] | str]]) -> _Batch:
    read = [(number, inputs) for number, _, inputs in entries if not isinstance(inputs, str)]
    names = read[0][1] if read else ()
    return _Batch(
        items=[number for number, _ in read],
        inputs={name: torch.cat([inputs[name] for _, inputs in read]) for name in names} or None,
        contents=[content for _, content, _ in entries],
        unreadable={number: inputs for number, _, inputs in entries if isinstance(inputs, str)},
    )


def _job(
    kind: str,
    encoder: DualEncoder,
    accelerator: Accelerator,
    num_items: int,
    items_digest: str,
    batch_size: int,
    **options,
) -> EmbeddingJob:
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    batches_per_shard = min(-(-num_items // (_SHARDS_AIMED_AT * batch_size)), _MOST_PER_SHARD // batch_size)
    return EmbeddingJob(
        kind=kind,
        encoder={
            "name": encoder.name,
            "revision": encoder.revision,
            "digest": encoder.digest(),
            "precision": accelerator.mixed_precision,
        },
        num_items=num_items,
        items_digest=items_digest,
        options=options,
        batch_size=batch_size,
        shard_size=max(batches_per_shard, 1) * batch_size,
    )


def _begin(
    output, job: EmbeddingJob, accelerator: Accelerator, vocabulary: Mapping[str, int] | None = None
) -> tuple[EmbeddingWriter, list[int]]:
    """The writer, and the shards that are this process's to make."""
    writer = EmbeddingWriter(output, job)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        writer.begin(vocabulary)
    accelerator.wait_for_everyone()
    missing = writer.missing_shards()
    if missing and accelerator.is_main_process:
        writer.reopen(missing)
    # Nobody writes before everybody has looked.
    accelerator.wait_for_everyone()
    return writer, missing[accelerator.process_index :: accelerator.num_processes]


def _batches(job: EmbeddingJob, shard: int) -> list[list[int]]:
    items = job.items_of(shard)
    return [list(items[start : start + job.batch_size]) for start in range(0, len(items), job.batch_size)]


def _embed_texts(
    output,
    job: EmbeddingJob,
    encoder: DualEncoder,
    accelerator: Accelerator,
    texts: Sequence[str],
    embed: Callable[[Sequence[int]], torch.Tensor],
    progress: bool,
    vocabulary: Mapping[str, int] | None = None,
) -> EmbeddingStore:
    writer, shards = _begin(output, job, accelerator, vocabulary)
    encoder.model.to(accelerator.device)

    def embedded() -> Iterator[_Batch]:
        for shard in shards:
            for items in _batches(job, shard):
                contents = [texts[item] for item in items]
                with accelerator.autocast():
                    embeds = embed(items).cpu()
                yield _Batch(items, None, contents, {}, embeds)

    _write_shards(writer, shards, embedded(), accelerator, progress)
    return _finish(writer, accelerator)


def _write_shards(
    writer: EmbeddingWriter, shards: Sequence[int], batches: Iterator[_Batch], accelerator: Accelerator, progress: bool
) -> None:
    job = writer.job
    todo = sum(len(job.items_of(shard)) for shard in shards)
    with tqdm(
        desc=f"Embedding {job.kind}",
        total=todo,
        unit=job.kind[:-1],
        disable=not (progress and accelerator.is_main_process),
    ) as bar:
        for shard in shards:
            items, embeds, contents, unreadable = [], [], [], {}
            for _ in _batches(job, shard):
                batch = next(batches)
                items += batch.items
                contents += batch.contents
                unreadable |= batch.unreadable
                if batch.embeds is not None:
                    embeds.append(batch.embeds)
                bar.update(len(batch.contents))
            rows = torch.cat(embeds) if embeds else torch.zeros(0, 0)
            _require_finite(rows, items, job)
            places = np.array(items, dtype=np.int64)
            writer.write_shard(shard, rows.half().numpy(), places, digest_of_items(contents), unreadable)


def _require_finite(rows: torch.Tensor, items: Sequence[int], job: EmbeddingJob) -> None:
    bad = (~rows.isfinite().all(dim=1)).nonzero().flatten().tolist() if rows.numel() else []
    if bad:
        raise ValueError(
            f"the encoder {job.encoder['name']} gives embeddings that are not finite, for {job.kind[:-1]} "
            f"{', '.join(str(items[row]) for row in bad[:5])}: its weights are broken, or the precision too low"
        )


def _finish(writer: EmbeddingWriter, accelerator: Accelerator) -> EmbeddingStore:
    accelerator.wait_for_everyone()
    if accelerator.is_main_process and not writer.is_finished:
        left = writer.missing_shards()
        if left:
            raise StoreError(f"{writer.folder}: shards {left[:5]} vanished while others were made; run again")
        writer.finish()
    accelerator.wait_for_everyone()
    return EmbeddingStore(writer.folder)
