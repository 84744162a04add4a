"""The nearest concepts of each image: exact, in bounded memory, the same for any split of the images."""

import time
from functools import lru_cache

import numpy as np
import torch


# Rows whose length differs from 1 by no more than the rounding of float16 are unit vectors already.
_UNIT_TOLERANCE = 1e-3
# Sums of D float32 products of unit rows are off by at most D times this, whatever their order.
_ROUNDING = 2.0**-24
# Candidates beyond k, so that few images need a second look: the coarser the product, the more.
_SPARE_CANDIDATES = {torch.float32: 4, torch.bfloat16: 25}
_GROUP_SIZE = 32
_IMAGES_PER_BLOCK = 256
_IMAGES_PER_SUM = 32
_MAX_ROWS_NAMED = 5
# Multiplications from which on it pays to find out how fast this machine is.
_MUCH_WORK = 10**10


def select_concepts(image_embeds, concept_embeds, k: int = 15):
    """
    The `k` concepts of highest cosine for each image (ViCHA, arXiv 2208.13628, section 3.2).

    The result is exact and depends on a pair's two rows alone: not on blocks, shards or the order of the images. Rows of
    any length are compared by direction; a row of zeros has cosine 0 with everything.

    Args:
        image_embeds: [N, D], a NumPy array, a memory map or a tensor; float16, bfloat16, float32 or float64. Read once,
            block by block.
        concept_embeds: [V, D], likewise.
        k: concepts per image; no more than V are returned.

    Returns:
        `indices` int64 [N, k] and `scores` float32 [N, k], best first, equal scores by index; tensors where
        `image_embeds` is a tensor, else arrays.

    Raises:
        ValueError: not two matrices of one width, a `k` below 1, or rows that are not finite (named).
    """
    if k < 1:
        raise ValueError(f"k={k} must be at least 1")
    for name, rows in (("image_embeds", image_embeds), ("concept_embeds", concept_embeds)):
        if rows.ndim != 2:
            raise ValueError(f"{name} must be a matrix [rows, width], got shape {tuple(rows.shape)}")
    if image_embeds.shape[1] != concept_embeds.shape[1]:
        raise ValueError(
            f"image_embeds have width {image_embeds.shape[1]} and concept_embeds {concept_embeds.shape[1]}: they come "
            "from different encoders"
        )
    number, width = image_embeds.shape
    device = image_embeds.device if isinstance(image_embeds, torch.Tensor) else torch.device("cpu")
    k = min(k, len(concept_embeds))
    indices = torch.zeros(number, k, dtype=torch.int64, device=device)
    scores = torch.zeros(number, k, dtype=torch.float32, device=device)
    if k:
        much = number * width * len(concept_embeds) >= _MUCH_WORK
        dtype = fastest_product_dtype(str(device)) if much else torch.float32
        ranking = ConceptRanking(concept_embeds, k, device, dtype)
        for start in range(0, number, _IMAGES_PER_BLOCK):
            block = slice(start, start + _IMAGES_PER_BLOCK)
            indices[block], scores[block] = ranking.rank(image_embeds[block], start)
    return (indices, scores) if isinstance(image_embeds, torch.Tensor) else (indices.numpy(), scores.numpy())


@lru_cache
def fastest_product_dtype(device: str = "cpu") -> torch.dtype:
    """
    bfloat16 where this machine multiplies it faster than float32, found by trying; many processors only emulate it.
    """
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        rows = torch.ones(_IMAGES_PER_BLOCK, 256, dtype=dtype, device=device)
        seconds[dtype] = min(_seconds_of_product(rows) for _ in range(3))
    return torch.bfloat16 if seconds[torch.bfloat16] < 0.7 * seconds[torch.float32] else torch.float32


def _seconds_of_product(rows: torch.Tensor) -> float:
    started = time.perf_counter()
    # Reading a value waits for the device.
    (rows @ rows.T)[0, 0].item()
    return time.perf_counter() - started


class ConceptRanking:
    """
    Concepts made ready for ranking, block by block of images.

    A matrix product finds candidates: the members of the groups of concepts with the largest maxima. Their scores are
    then summed in float32 in one fixed order. An image whose candidates may leave one of the best out, by the bound on the
    product's error, is looked at again.

    Args:
        concept_embeds: [V, D], V at least 1.
        k: concepts per image, at most V.
        device: where to compute.
        product_dtype: float32 or bfloat16, of the product that finds the candidates; the result is the same.

    Raises:
        ValueError: rows that are not finite.
    """

    def __init__(
        self,
        concept_embeds,
        k: int,
        device: torch.device | str = "cpu",
        product_dtype: torch.dtype = torch.float32,
    ):
        self.k, self._dtype = k, product_dtype
        self._concepts = _unit_rows(concept_embeds, "concept", 0, device)
        number, width = self._concepts.shape
        self._num_candidates = min(k + _SPARE_CANDIDATES[product_dtype], number)
        # With few concepts each is a group of its own.
        self._group_size = _GROUP_SIZE if number >= 4 * _GROUP_SIZE * self._num_candidates else 1
        self._num_groups = -(-number // self._group_size)
        rounded = self._concepts.to(product_dtype)
        self._rounding = (self._concepts - rounded.float()).norm(dim=1).max()
        padding = self._num_groups * self._group_size - number
        self._columns = torch.nn.functional.pad(rounded, (0, 0, 0, padding)).T
        # Of two sums of D products: the matrix product's, and the final score's.
        self._sum_error = 2 * width * _ROUNDING
        self._products = torch.empty(0, self._columns.shape[1], dtype=product_dtype, device=device)

    @torch.no_grad()
    def rank(self, image_embeds, first_row: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """
        `indices` and `scores` [n, k] of a block of images [n, D].

        Args:
            image_embeds: the block; a few hundred rows keep the products in the processor's cache.
            first_row: number of its first row, for the error that names rows.

        Raises:
            ValueError: rows that are not finite.
        """
        images = _unit_rows(image_embeds, "image", first_row, self._concepts.device)
        rounded = images.to(self._dtype)
        # One buffer for all blocks: new memory would be cleared by the system each time.
        if len(self._products) < len(images):
            self._products = self._products.new_empty(len(images), self._columns.shape[1])
        products = torch.mm(rounded, self._columns, out=self._products[: len(images)])
        products[:, len(self._concepts) :] = -torch.inf
        candidates, rough = self._find_candidates(products)
        indices, scores = _order(candidates, _pair_scores(images, self._concepts, candidates), self.k)
        if self._num_candidates < len(self._concepts):
            # What is no candidate has at most the last candidate's rough score.
            error = self._product_error(images, rounded, rough)
            lowest = rough[:, self.k - 1].float() - 2 * error
            for row in (rough[:, -1].float() >= lowest).nonzero().flatten().tolist():
                near = (products[row, : len(self._concepts)].float() >= lowest[row]).nonzero().T
                exact = _pair_scores(images[row : row + 1], self._concepts, near)
                indices[row], scores[row] = (best[0] for best in _order(near, exact, self.k))
        return indices, scores

    def _find_candidates(self, products: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Indices and rough scores [n, K] of the K largest products of each row, the largest first."""
        if self._group_size == 1:
            rough, candidates = products.topk(self._num_candidates, dim=1)
            return candidates, rough
        # Concepts g, g + G, g + 2 G, ... are group g: maxima are then taken along contiguous memory. The K largest
        # products lie in the K groups of largest maxima.
        grouped = products.view(len(products), self._group_size, self._num_groups)
        groups = grouped.amax(dim=1).topk(self._num_candidates, dim=1, sorted=False).indices
        steps = torch.arange(self._group_size, device=products.device) * self._num_groups
        members = (groups[:, None, :] + steps[:, None]).flatten(1)
        rough, places = products.gather(1, members).topk(self._num_candidates, dim=1)
        return members.gather(1, places), rough

    def _product_error(self, images: torch.Tensor, rounded: torch.Tensor, rough: torch.Tensor) -> torch.Tensor:
        """[n], how far a rough score of the last or the k-th candidate may be from the final one, at most."""
        if self._dtype == torch.float32:
            return torch.full((len(images),), self._sum_error, device=images.device)
        # Cauchy and Schwarz: rounding two unit rows changes their product by at most the sum of the changes' lengths.
        inputs = (images - rounded.float()).norm(dim=1) + self._rounding * (1 + 2.0**-7)
        largest = torch.maximum(rough[:, self.k - 1].float().abs(), rough[:, -1].float().abs())
        return inputs + self._sum_error + 2.0**-8 * largest


def _unit_rows(rows, what: str, first_row: int, device) -> torch.Tensor:
    """Rows as float32 of length 1 (or 0). Raises `ValueError` for rows that are not finite."""
    if not isinstance(rows, torch.Tensor):
        rows = torch.from_numpy(np.array(rows))
    rows = rows.to(device=device, dtype=torch.float64 if rows.dtype == torch.float64 else torch.float32)
    # The largest entry is divided out first: squares of large numbers overflow.
    length = rows.norm(dim=1)
    if not bool(length.isfinite().all()):
        bad = (~rows.isfinite().all(dim=1)).nonzero().flatten()
        if len(bad):
            named = ", ".join(str(first_row + row) for row in bad[:_MAX_ROWS_NAMED].tolist())
            more = f" and {len(bad) - _MAX_ROWS_NAMED} more" if len(bad) > _MAX_ROWS_NAMED else ""
            raise ValueError(
                f"{what} embeddings that are not finite, rows {named}{more}: embed these again (a NaN would win or lose "
                "every comparison)"
            )
    is_unit = (length - 1).abs() <= _UNIT_TOLERANCE
    if not bool(is_unit.all()):
        largest = rows.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
        scaled = rows / largest
        scaled = scaled / scaled.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
        rows = torch.where(is_unit[:, None], rows, scaled)
    return rows.float().contiguous()


def _pair_scores(images: torch.Tensor, concepts: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """Products [n, K] of images [n, D] with their candidates, each summed in the same order wherever it stands."""
    # One sum per pair along contiguous memory, not a matrix product: the order of a product's sum depends on where a pair
    # stands in the matrix.
    scores = torch.empty(candidates.shape, dtype=torch.float32, device=images.device)
    for start in range(0, len(images), _IMAGES_PER_SUM):
        rows = slice(start, start + _IMAGES_PER_SUM)
        torch.sum(concepts[candidates[rows]] * images[rows, None, :], dim=-1, out=scores[rows])
    return scores


def _order(candidates: torch.Tensor, scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best of each row, equal scores by index."""
    candidates, by_index = candidates.sort(dim=1)
    scores, by_score = scores.gather(1, by_index).sort(dim=1, descending=True, stable=True)
    return candidates.gather(1, by_score)[:, :k], scores[:, :k]


__all__ = ["ConceptRanking", "fastest_product_dtype", "select_concepts"]
