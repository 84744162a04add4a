"""The nearest concepts of every image of a corpus, written into its annotations."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data.source_license import carry_license
from ..models.concept_ranking import ConceptRanking, product_dtype_for, select_concepts
from .annotation_writer import AnnotationRow, require_annotation_file, write_annotations
from .corpus import ConceptCorpus
from .embedding import content_digest
from .embedding_store import EmbeddingStore, StoreError, require_same_encoder
from .manifests import OutputFile, digest_of_items


DEFAULT_K = 15
# Of FAISS: how many of its lists a query looks through.
_LISTS_PROBED = 16
SearchMethod = Literal["exact", "approximate"]


@dataclass(frozen=True)
class SelectionResult:
    """
    The result of a selection.

    Attributes:
        num_records: records written.
        num_unreadable: records left out because their image could not be decoded.
        was_current: whether the file was there already, made from the same inputs.
    """

    num_records: int
    num_unreadable: int
    was_current: bool = False


def select_for_corpus(
    images: EmbeddingStore,
    concepts: EmbeddingStore,
    corpus: ConceptCorpus,
    output: str | os.PathLike,
    *,
    k: int = DEFAULT_K,
    method: SearchMethod = "exact",
    overwrite: bool = False,
    progress: bool = False,
) -> SelectionResult:
    """
    Writes a corpus with `concepts` and `concept_scores` (cosines), the best first.

    Args:
        images: of the corpus.
        concepts: of the vocabulary; equal scores go by its order.
        corpus: whose records, all fields of them kept.
        output: *.jsonl or *.parquet.
        k: concepts per image.
        method: "exact", or "approximate" with an inverted index of FAISS.
        overwrite: replace a file that this step did not make.
        progress: show a progress bar.

    Raises:
        StoreError: embeddings of different encoders, of another corpus or vocabulary, or broken ones.
        FileExistsError: `output` is another file.
        ValueError: embeddings that are not finite.
    """
    if k < 1:
        raise ValueError(f"k={k} must be at least 1")
    require_same_encoder(images, concepts)
    require_annotation_file(Path(output), corpus.records)
    vocabulary = list(concepts.vocabulary())
    require_same_images(images, corpus)
    file = OutputFile(
        output,
        "select",
        {
            "images": images.digest,
            "concepts": concepts.digest,
            "corpus": corpus.written_digest(),
            "k": k,
            "method": method,
        },
    )
    if file.is_current(overwrite):
        facts = file.facts()
        return SelectionResult(facts["records"], facts["unreadable"], was_current=True)
    indices, scores, found = _select(images, concepts, corpus.num_images, k, method, progress)

    def rows() -> Iterator[AnnotationRow]:
        for number, record in corpus.numbered_records():
            if not found[number]:
                continue
            fields = {name: value for name, value in corpus.fields_to_write(record).items() if name != "kwords"}
            fields["concepts"] = [vocabulary[index] for index in indices[number]]
            fields["concept_scores"] = [round(float(score), 6) for score in scores[number]]
            yield AnnotationRow(fields, record.image, record.where)

    written = write_annotations(Path(output), rows)
    result = SelectionResult(written, len(corpus.records) - written)
    carry_license(corpus.sources, Path(output))
    file.finish(records=result.num_records, unreadable=result.num_unreadable, encoder=images.encoder)
    return result


def require_same_images(images: EmbeddingStore, corpus: ConceptCorpus) -> None:
    """
    Checks that embeddings are of a corpus's images as they are now.

    Raises:
        StoreError: they are not.
    """
    if images.manifest["items_digest"] == digest_of_items(corpus.images_digest_items()):
        return
    # Files that were copied have other times; their content decides.
    shards, size = images.manifest["shards"], images.manifest["shard_size"]
    if images.manifest["num_items"] == corpus.num_images and all(
        shard["content"] == digest_of_items(_contents(corpus, number * size, size))
        for number, shard in enumerate(shards)
    ):
        return
    raise StoreError(
        f"{images.folder} was not made from the images of this corpus, or they have changed since ({corpus.num_images} "
        f"images now, {images.manifest['num_items']} then): embed them again into another folder"
    )


def _contents(corpus: ConceptCorpus, start: int, size: int) -> list[str]:
    return [content_digest(corpus.image(number)[0]) for number in range(start, min(start + size, corpus.num_images))]


def _select(
    images: EmbeddingStore, concepts: EmbeddingStore, num_images: int, k: int, method: SearchMethod, progress: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices and scores [images, k], and whether an image has embeddings [images]."""
    embeds = concepts.read_all()
    k = min(k, len(embeds))
    indices = np.zeros((num_images, k), np.int32)
    scores = np.zeros((num_images, k), np.float32)
    found = np.zeros(num_images, bool)
    try:
        search = (_ApproximateSearch if method == "approximate" else _ExactSearch)(embeds, k, len(images))
    except ValueError as error:
        raise StoreError(f"{concepts.folder}: {error}") from error
    with tqdm(desc="Selecting", total=len(images), unit="image", disable=not progress) as bar:
        for items, rows in images.shards():
            # No image of the shard could be read.
            if not len(items):
                continue
            try:
                best = search.select(rows)
            except ValueError as error:
                raise StoreError(f"{images.folder}, images {items[0]} to {items[-1]}: {error}") from error
            indices[items], scores[items] = best
            found[items] = True
            bar.update(len(items))
    return indices, scores, found


class _ExactSearch:
    """The search of `select_concepts`, with concepts that are made ready once for all shards."""

    def __init__(self, embeds: np.ndarray, k: int, num_images: int):
        cpu = torch.device("cpu")
        self._ranking = ConceptRanking(embeds, k, cpu, product_dtype_for(num_images * embeds.size, cpu))

    def select(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Indices and scores [n, k] of the embeddings of a shard."""
        indices, scores = self._ranking.select(rows)
        return indices.numpy(), scores.numpy()


class _ApproximateSearch:
    """An inverted index of FAISS over the concepts: fewer of them are compared with each image."""

    def __init__(self, embeds: np.ndarray, k: int, num_images: int):
        try:
            import faiss
        except ImportError as error:
            raise ImportError(
                "the approximate search needs FAISS: pip install 'vicha_hf[faiss]', or choose the exact search"
            ) from error
        self._k = k
        self._embeds = _unit(embeds)
        # FAISS's training wants about 40 rows per list.
        lists = max(1, min(len(embeds) // 40, int(4 * len(embeds) ** 0.5)))
        self._index = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(embeds.shape[1]), embeds.shape[1], lists, faiss.METRIC_INNER_PRODUCT
        )
        self._index.train(self._embeds)
        self._index.add(self._embeds)
        self._index.nprobe = min(_LISTS_PROBED, lists)

    def select(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Does what `select_concepts` does, though an image's best concepts may be missed."""
        rows = np.array(rows, dtype=np.float32)
        if not np.isfinite(rows).all():
            bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
            raise ValueError(f"image embeddings that are not finite, rows {', '.join(map(str, bad[:5]))}")
        rows = _unit(rows)
        scores, indices = self._index.search(rows, self._k)
        # Too few concepts in the lists that were looked through: the exact search fills in.
        short = np.flatnonzero((indices < 0).any(axis=1))
        if len(short):
            indices[short], scores[short] = select_concepts(rows[short], self._embeds, self._k)
        order = np.lexsort((indices, -scores), axis=1)
        return np.take_along_axis(indices, order, 1), np.take_along_axis(scores, order, 1)


def _unit(rows: np.ndarray) -> np.ndarray:
    return torch.nn.functional.normalize(torch.from_numpy(rows).float(), dim=1).numpy()
