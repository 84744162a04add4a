"""The first stage through FAISS, for indexes of millions."""

import logging
from pathlib import Path

import torch


logger = logging.getLogger(__name__)

# Below this size comparing with every embedding is faster than anything else.
EXACT_BELOW = 20_000
# Cells that a query looks into, of about 4 * sqrt(n).
PROBES = 32


class ApproximateSearch:
    """
    A FAISS index of some embeddings, kept on the disk.

    Args:
        embeds: [N, E], L2-normalised.
        path: file of the index; one of as many embeddings is read, otherwise it is made.

    Raises:
        ValueError: FAISS is not installed.
    """

    def __init__(self, embeds: torch.Tensor, path: Path):
        try:
            import faiss
        except ImportError as error:
            raise ValueError("approximate search needs FAISS: pip install vicha_hf[faiss]") from error
        self._index = self._stored(faiss, embeds, path)
        if self._index is None:
            self._index = self._made(faiss, embeds)
            faiss.write_index(self._index, str(path.with_suffix(".unfinished")))
            path.with_suffix(".unfinished").replace(path)
        if hasattr(self._index, "nprobe"):
            self._index.nprobe = PROBES

    @staticmethod
    def _stored(faiss, embeds: torch.Tensor, path: Path):
        newest = max((shard.stat().st_mtime_ns for shard in path.parent.glob("shard-*")), default=0)
        manifest = path.parent / "index.json"
        if not path.is_file() or path.stat().st_mtime_ns < max(newest, manifest.stat().st_mtime_ns):
            return None
        try:
            index = faiss.read_index(str(path))
        except RuntimeError as error:
            logger.warning("%s cannot be read (%s): making it anew.", path, error)
            return None
        return index if (index.ntotal, index.d) == tuple(embeds.shape) else None

    @staticmethod
    def _made(faiss, embeds: torch.Tensor):
        number, dim = embeds.shape
        if number < EXACT_BELOW:
            index = faiss.IndexFlatIP(dim)
        else:
            cells = int(4 * number**0.5)
            index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, cells, faiss.METRIC_INNER_PRODUCT)
            index.train(embeds.numpy())
        index.add(embeds.numpy())
        return index

    def nearest(self, embed: torch.Tensor, number: int) -> tuple[list[int], list[float]]:
        """Rows and their cosine, nearest first; equal ones in the order of the index."""
        similarities, rows = self._index.search(embed[None].numpy(), number)
        found = [
            (similarity, row)
            for similarity, row in zip(similarities[0].tolist(), rows[0].tolist(), strict=True)
            if row >= 0
        ]
        found.sort(key=lambda pair: (-pair[0], pair[1]))
        return [row for _, row in found], [similarity for similarity, _ in found]
