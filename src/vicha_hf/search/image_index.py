"""Queries of an index: the nearest embeddings first, then the matching head on the best of them."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from ..data.image_files import ImageReadError, open_image
from ..data.source_folders import IMAGE_SUFFIXES
from .approximate import ApproximateSearch
from .embedder import Embedder
from .index_files import IndexedImage, Manifest, SearchIndexError, live_rows, read_shards


logger = logging.getLogger(__name__)
Target = Literal["images", "texts"]

# Candidates that the matching head scores.
RERANKED = 32
# Rows whose best is found at once, before the best of all are sorted.
BLOCK = 64


@dataclass(frozen=True)
class Hit:
    """
    A result of a search.

    Attributes:
        rank: 1 is the best.
        image: path of the image; of a text, that of the image which it belongs to.
        text: the caption that was found; None where images are searched.
        score: of the matching head, with the weighted similarity; None where it was not asked.
        similarity: cosine of the projections.
    """

    rank: int
    image: str
    text: str | None
    score: float | None
    similarity: float

    def to_dict(self) -> dict:
        """The same for JSON."""
        return asdict(self)


class ImageIndex:
    """
    Images that can be searched.

    ```python
    >>> index = ImageIndex("photos.index")
    >>> index.search("two dogs in the snow", top=3)
    [Hit(rank=1, image='/photos/17.jpg', text=None, score=5.2, similarity=0.61), ...]
    ```

    Args:
        folder: as [`build_index`] wrote it.
        model: folder or Hub id of the model, where it is not the one that the index names.
        device: where the model runs; by default on a GPU where there is one.
        backend: "torch", or "onnx" for a folder that `vicha-hf export` wrote; by default what the folder is for.
        approximate: whether the first stage uses FAISS (extra `faiss`) instead of comparing with every embedding.

    Raises:
        SearchIndexError: no index, a broken one, an empty one, or one of another model.
    """

    def __init__(
        self,
        folder: str | Path,
        model: str | None = None,
        device: str | None = None,
        approximate: bool = False,
        backend: str | None = None,
    ):
        self.folder = Path(folder).expanduser()
        self.manifest = Manifest.read(self.folder)
        if self.manifest.unfinished:
            logger.warning(
                "%s is not whole: a run that was to embed %d images has not ended. Run `vicha-hf index` again where it was "
                "stopped.",
                self.folder,
                self.manifest.unfinished,
            )
        self._model, self._device, self._approximate = model or self.manifest.model, device, approximate
        self._backend = backend
        shards = list(read_shards(self.folder, self.manifest.dim))
        everything = [image for shard in shards for image in shard.images]
        rows = sorted(live_rows(everything, self.manifest.removed).values())
        if not rows:
            raise SearchIndexError(f"{self.folder} holds no image: run `vicha-hf index` again.")
        self.images: list[IndexedImage] = [everything[row] for row in rows]
        self.image_embeds = torch.cat([shard.image_embeds for shard in shards])[rows].contiguous()
        owner = torch.tensor([row for row, image in enumerate(everything) for _ in image.captions], dtype=torch.long)
        position = torch.full((len(everything),), -1)
        position[rows] = torch.arange(len(rows))
        kept = position[owner] >= 0
        self.text_embeds = torch.cat([shard.text_embeds for shard in shards])[kept].contiguous()
        self.image_of_text = position[owner][kept].tolist()
        self.texts = [caption for image in self.images for caption in image.captions]

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def embedder(self) -> Embedder:
        """The model, loaded when it is needed and checked against the index."""
        find_concepts = self.manifest.concepts == "auto"
        embedder = Embedder(self._model, self._device, find_concepts, self._backend)
        self.manifest.require_same_model(embedder.fingerprint(), embedder.name, self.folder)
        return embedder

    def search(
        self,
        query: str | Path | Image.Image,
        top: int = 10,
        *,
        target: Target = "images",
        kind: Literal["auto", "text", "image"] = "auto",
        rerank: int = RERANKED,
    ) -> list[Hit]:
        """
        The best images, or captions, for a text or an image.

        Args:
            query: a text, or an image as a path, a URL or a Pillow image.
            top: how many results.
            target: "images", or "texts" for the captions that were indexed with them.
            kind: "auto" takes a query for an image where it is the path of a file, has the ending of one, or is a URL.
            rerank: of the nearest, how many the matching head orders; 0 for none. Images found by an image are not
                re-ranked: the head compares images with texts.

        Returns:
            Hits, best first: those that the matching head ordered, then the others by similarity.

        Raises:
            ValueError: an empty query, impossible numbers, or captions asked for where there are none.
            OSError: an image that cannot be read.
        """
        if top < 1 or rerank < 0:
            raise ValueError(f"`top={top}` must be at least 1, and `rerank={rerank}` at least 0.")
        if target == "texts" and not self.texts:
            raise ValueError(f"{self.folder} holds no captions: index an annotation file to search in its captions.")
        is_image = kind == "image" or (kind == "auto" and looks_like_image(query))
        if not is_image and not str(query).strip():
            raise ValueError("the query is empty: write what to look for.")
        embedder = self.embedder
        if is_image:
            encoded = embedder.encode_images(embedder.prepare_images([_opened(query)]))
        else:
            encoded = embedder.encode_texts([str(query)])
        crosses = is_image == (target == "texts")
        reranked = rerank if crosses and embedder.reranks else 0
        indices, similarities = self.nearest(encoded.embeds[0].float().cpu(), max(top, reranked), target)
        opened = []
        if target == "images" and reranked:
            indices, similarities, opened = self._opened_again(indices, similarities, reranked)
        scores: list[float | None] = [None] * len(indices)
        candidates = indices[: len(opened)] if target == "images" else indices[:reranked]
        if candidates:
            if is_image:
                found = embedder.rerank(encoded, embedder.encode_texts([self.texts[index] for index in candidates]))[0]
            else:
                found = embedder.rerank(self._encode_again(candidates, opened), encoded)[:, 0]
            scores[: len(candidates)] = found.tolist()
        order = sorted(
            range(len(indices)),
            key=lambda place: (scores[place] is None, 0.0 if scores[place] is None else -scores[place], place),
        )
        return [
            self._hit(rank, indices[place], target, scores[place], similarities[place])
            for rank, place in enumerate(order[:top], start=1)
        ]

    def nearest(self, embed: torch.Tensor, number: int, target: Target = "images") -> tuple[list[int], list[float]]:
        """
        The first stage.

        Args:
            embed: [E], L2-normalised.
            number: how many.
            target: see `search`.

        Returns:
            Rows and their cosine, nearest first; equal ones in the order of the index.
        """
        embeds = self.image_embeds if target == "images" else self.text_embeds
        number = min(number, len(embeds))
        if self._approximate:
            return self._approximate_search(target).nearest(embed, number)
        return nearest_rows(embeds, embed, number)

    @cached_property
    def _approximate_search(self) -> Callable[[Target], ApproximateSearch]:
        made: dict[str, ApproximateSearch] = {}

        def of(target: Target) -> ApproximateSearch:
            if target not in made:
                embeds = self.image_embeds if target == "images" else self.text_embeds
                made[target] = ApproximateSearch(embeds, self.folder / f"{target}.faiss")
            return made[target]

        return of

    def _opened_again(
        self, indices: list[int], similarities: list[float], number: int
    ) -> tuple[list[int], list[float], list[Image.Image]]:
        """
        Opens the first so many images, which are re-ranked. Those that are gone, or can no longer be read, are left out and
        told: the rows and similarities of the others, and the opened images.
        """
        opened: dict[int, Image.Image] = {}
        lost: dict[int, str] = {}
        for place, index in enumerate(indices[:number]):
            image = self.images[index]
            try:
                opened[place] = open_image(image.path, image.source)
            except ImageReadError:
                lost[place] = image.path
        if lost:
            path = next(iter(lost.values()))
            source = self.images[indices[next(iter(lost))]].source
            message = (
                f"images that are gone or cannot be read since they were indexed: {len(lost)}, such as {path}; run `vicha-hf "
                f"index {source}` again, or make a new index where that is no longer there."
            )
            if len(lost) == len(indices):
                raise FileNotFoundError(message)
            logger.warning(message)
        kept = [place for place in range(len(indices)) if place not in lost]
        return [indices[place] for place in kept], [similarities[place] for place in kept], list(opened.values())

    def _encode_again(self, rows: Sequence[int], opened: Sequence[Image.Image]):
        """Encodings of indexed images, opened: only their embeddings are kept on the disk."""
        concepts = [self.images[row].concepts for row in rows] if self.embedder.reads_concepts else None
        return self.embedder.encode_images(self.embedder.prepare_images(opened, concepts))

    def _hit(self, rank: int, index: int, target: Target, score: float | None, similarity: float) -> Hit:
        if target == "images":
            return Hit(rank, self.images[index].path, None, score, similarity)
        return Hit(rank, self.images[self.image_of_text[index]].path, self.texts[index], score, similarity)


def nearest_rows(embeds: torch.Tensor, embed: torch.Tensor, number: int) -> tuple[list[int], list[float]]:
    """
    Rows of `embeds` [N, E] with the highest product with `embed` [E], and the products, best first.

    Equal ones come in the order of the rows.
    """
    similarities = (embeds @ embed).numpy()
    # NumPy's part is small: threads would only wait for each other. As many blocks as results have a row that is at least
    # as good as `bound`; its equals stay in, for their order decides.
    blocks = similarities[: len(similarities) // BLOCK * BLOCK].reshape(-1, BLOCK).max(axis=1)
    best_known = blocks if len(blocks) >= number else similarities
    bound = np.partition(best_known, len(best_known) - number)[len(best_known) - number]
    rows = np.flatnonzero(similarities >= bound)
    order = np.argsort(-similarities[rows], kind="stable")[:number]
    return rows[order].tolist(), similarities[rows[order]].tolist()


def looks_like_image(query: str | Path | Image.Image) -> bool:
    """Whether a query is an image, a URL, or the path of a file, one that is not there included, rather than a text."""
    if not isinstance(query, str):
        return True
    if query.startswith(("http://", "https://")) or query.lower().endswith(IMAGE_SUFFIXES):
        return True
    try:
        return Path(query).expanduser().is_file()
    except OSError:
        # A text that is longer than a file name may be.
        return False


def _opened(query: str | Path | Image.Image):
    """A file as an image, with an error that names it; URLs are left to the processor."""
    if isinstance(query, Image.Image) or str(query).startswith(("http://", "https://")):
        return query
    return open_image(str(Path(query).expanduser()), "the query")
