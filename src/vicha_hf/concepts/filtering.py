"""The pairs of a corpus that fit together best, by the cosine of image and caption (ViCHA, arXiv 2208.13628, section 4)."""

import math
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from ..data.source_license import carry_license
from .annotation_writer import AnnotationRow, require_annotation_file, write_annotations
from .corpus import ConceptCorpus, require_captions
from .embedding_store import EmbeddingStore, require_same_encoder
from .manifests import OutputFile, digest_of_items
from .selection import require_same_images


_PAIRS_AT_A_TIME = 8192
_HISTOGRAM_BINS = 20
FilterScope = Literal["corpus", "image"]


@dataclass(frozen=True)
class FilterResult:
    """
    The result of a filter.

    Attributes:
        num_pairs, num_kept: pairs of an image and a caption.
        threshold: the lowest cosine that was kept.
        edges, counts: histogram of the cosines of all pairs; one edge more than counts.
        was_current: whether the file was there already, made from the same inputs.
    """

    num_pairs: int
    num_kept: int
    threshold: float
    edges: list[float]
    counts: list[int]
    was_current: bool = False

    def histogram(self, width: int = 40) -> str:
        """Lines of bars, one per range of cosines."""
        most = max(self.counts, default=1) or 1
        rows = zip(self.edges, self.edges[1:], self.counts, strict=False)
        return "\n".join(
            f"{low:6.3f} to {high:6.3f} {count:9d} {'#' * math.ceil(width * count / most)}"
            for low, high, count in rows
        )


def filter_pairs(
    images: EmbeddingStore,
    captions: EmbeddingStore,
    corpus: ConceptCorpus,
    output: str | os.PathLike,
    *,
    keep: float,
    scope: FilterScope = "corpus",
    overwrite: bool = False,
) -> FilterResult:
    """
    Writes the best pairs of a corpus, with `caption_scores` (cosines).

    Args:
        images, captions: of the corpus, by one encoder.
        corpus: whose records, all fields of them kept; a record without a caption left is left out.
        output: *.jsonl or *.parquet.
        keep: percent of the pairs, above 0, at most 100.
        scope: the best of the whole "corpus" (paper: 70 % of SBU), or the best captions of each "image", at least one
            (paper: 50 % of Visual Genome).
        overwrite: replace a file that this step did not make.

    Raises:
        StoreError: embeddings of different encoders, or of another corpus.
        FileExistsError: `output` is another file.
        ValueError: an impossible `keep`, or a record without captions.
    """
    if not 0 < keep <= 100:
        raise ValueError(f"keep={keep} must be a percentage above 0, at most 100")
    require_annotation_file(Path(output), corpus.records)
    require_same_encoder(images, captions)
    require_same_images(images, corpus)
    captions_digest = digest_of_items(corpus.captions_digest_items())
    captions.require_items(captions_digest, "the captions of this corpus", "embed the captions again")
    file = OutputFile(
        output,
        "filter",
        {
            "images": images.digest,
            "captions": captions.digest,
            "corpus": corpus.written_digest(),
            "keep": keep,
            "scope": scope,
        },
    )
    if file.is_current(overwrite):
        return FilterResult(**file.facts()["result"], was_current=True)
    numbers = np.array(
        [number for number, record in corpus.numbered_records() for _ in require_captions(record)], dtype=np.int64
    )
    scores = pair_scores(images, captions, numbers, corpus.num_images)
    kept = _best(scores, numbers, keep, scope)

    def rows() -> Iterator[AnnotationRow]:
        position = 0
        for record in corpus.records:
            places = range(position, position + len(record.captions))
            position += len(record.captions)
            chosen = [place for place in places if kept[place]]
            if not chosen:
                continue
            texts = [record.captions[place - places.start] for place in chosen]
            fields = corpus.fields_to_write(record)
            fields["caption"] = texts[0] if isinstance(fields["caption"], str) else texts
            fields["caption_scores"] = [round(float(scores[place]), 6) for place in chosen]
            yield AnnotationRow(fields, record.image, record.where)

    write_annotations(Path(output), rows)
    known = scores[np.isfinite(scores)]
    counts, edges = np.histogram(known, bins=_HISTOGRAM_BINS) if len(known) else ([], [])
    result = {
        "num_pairs": len(scores),
        "num_kept": int(kept.sum()),
        "threshold": round(float(scores[kept].min()), 6) if kept.any() else 0.0,
        "edges": [round(float(edge), 6) for edge in edges],
        "counts": [int(count) for count in counts],
    }
    carry_license(corpus.sources, Path(output))
    file.finish(result=result, encoder=images.encoder)
    return FilterResult(**result)


def pair_scores(images: EmbeddingStore, captions: EmbeddingStore, numbers: np.ndarray, num_images: int) -> np.ndarray:
    """
    The cosine of each caption with its image, float32 [captions]; minus infinity where the image is unreadable.

    Args:
        numbers: int64 [captions], the image of each caption.
        num_images: distinct images of the corpus.
    """
    shards = [(items, embeds) for items, embeds in images.shards() if len(items)]
    shard_of, row_of = np.full(num_images, -1, np.int32), np.zeros(num_images, np.int32)
    for index, (items, _) in enumerate(shards):
        shard_of[items], row_of[items] = index, np.arange(len(items))
    scores = np.full(len(numbers), -np.inf, np.float32)
    for places, embeds in captions.shards():
        for start in range(0, len(places), _PAIRS_AT_A_TIME):
            block = places[start : start + _PAIRS_AT_A_TIME]
            texts = torch.from_numpy(np.array(embeds[start : start + _PAIRS_AT_A_TIME])).float()
            for index in np.unique(shard_of[numbers[block]]):
                if index < 0:
                    continue
                chosen = np.flatnonzero(shard_of[numbers[block]] == index)
                rows = torch.from_numpy(np.array(shards[index][1][row_of[numbers[block[chosen]]]])).float()
                scores[block[chosen]] = torch.nn.functional.cosine_similarity(rows, texts[chosen], dim=1).numpy()
    return scores


def _best(scores: np.ndarray, numbers: np.ndarray, keep: float, scope: FilterScope) -> np.ndarray:
    """Marks the captions that stay; equal scores go by order."""
    kept = np.zeros(len(scores), bool)
    readable = np.flatnonzero(np.isfinite(scores))
    if scope == "corpus":
        groups = [readable.tolist()]
    else:
        of_image = defaultdict(list)
        for place in readable.tolist():
            of_image[numbers[place]].append(place)
        groups = list(of_image.values())
    for places in groups:
        ordered = sorted(places, key=lambda place: (-scores[place], place))
        kept[ordered[: max(1, round(len(places) * keep / 100))]] = True
    return kept
