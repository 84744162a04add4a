"""The nearest concepts of each image: exact, in bounded memory, the same for any split of the images."""

import time
from functools import lru_cache

import numpy as np
import torch


# Squares of the entries of rows whose lengths lie between these neither overflow nor vanish.
_SHORTEST, _LONGEST = 1e-12, 1e12
# Above the length of a unit row that bfloat16 has rounded.
_LONGEST_ROW = 1 + 2.0**-7
# Sums of D float32 products of unit rows are off by at most D times this, whatever their order.
_ROUNDING = 2.0**-24
# Of a number that bfloat16 has rounded, and of what it was, at most this share lies between.
_BFLOAT16_ROUNDING = 2.0**-8
_GROUP_SIZE = 16
_GROUPS_PER_FAMILY = 8
_IMAGES_PER_BLOCK = 256
# More candidates than these are looked at in parts.
_MOST_CANDIDATES = 1 << 20
# Bytes of the rows that are summed at a time: they stay in the processor's cache.
_BYTES_PER_SUM = 1 << 20
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
    if k:
        dtype = product_dtype_for(number * width * len(concept_embeds), device)
        indices, scores = ConceptRanking(concept_embeds, k, device, dtype).select(image_embeds)
    else:
        indices = torch.zeros(number, 0, dtype=torch.int64, device=device)
        scores = torch.zeros(number, 0, device=device)
    return (indices, scores) if isinstance(image_embeds, torch.Tensor) else (indices.numpy(), scores.numpy())


def product_dtype_for(multiplications: int, device: torch.device) -> torch.dtype:
    """Of the product that finds candidates: the one that so much work is done fastest with."""
    # The bound on the error holds for sums in float32, which a GPU's product of bfloat16 may not keep to.
    much = multiplications >= _MUCH_WORK and device.type == "cpu"
    return fastest_product_dtype() if much else torch.float32


@lru_cache
def fastest_product_dtype() -> torch.dtype:
    """
    bfloat16 where this processor multiplies it faster than float32, found by trying; many only emulate it.
    """
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        rows = torch.ones(_IMAGES_PER_BLOCK, 256, dtype=dtype)
        seconds[dtype] = min(_seconds_of_product(rows) for _ in range(3))
    return torch.bfloat16 if seconds[torch.bfloat16] < 0.7 * seconds[torch.float32] else torch.float32


def _seconds_of_product(rows: torch.Tensor) -> float:
    started = time.perf_counter()
    rows @ rows.T
    return time.perf_counter() - started


class ConceptRanking:
    """
    Concepts made ready for ranking, block by block of images.

    A matrix product gives rough scores. The k-th largest maximum of a group of concepts bounds an image's k-th best score
    from below. All concepts that reach this bound, less what the product may be off, are candidates. Their scores are then
    summed in float32 in one fixed order.

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
        # With few concepts each is a group of its own. Families are groups of groups: the fewer, the sooner the k-th is found.
        self._group_size = _GROUP_SIZE if number >= 4 * k * _GROUP_SIZE else 1
        self._family_size = _GROUPS_PER_FAMILY if number >= 4 * k * _GROUP_SIZE * _GROUPS_PER_FAMILY else 1
        together = self._group_size * self._family_size
        padded = -(-number // together) * together
        self._num_groups = padded // self._group_size
        rounded = self._concepts.to(product_dtype)
        self._rounding = (self._concepts - rounded.float()).norm(dim=1).max()
        # Group g has the concepts from g * S on. They stand in the columns g, g + G, ...: maxima are then taken along
        # contiguous memory.
        rows = torch.nn.functional.pad(rounded, (0, 0, 0, padded - number))
        self._columns = rows.view(-1, self._group_size, width).transpose(0, 1).reshape(padded, width).T
        place = torch.arange(number, padded, device=device)
        self._padding = place % self._group_size * self._num_groups + place // self._group_size
        # Of two sums of D products: the matrix product's, and the final score's.
        self._sum_error = 2 * (width + 1) * _ROUNDING * _LONGEST_ROW
        self._products = torch.empty(0, padded, dtype=product_dtype, device=device)

    def select(self, image_embeds) -> tuple[torch.Tensor, torch.Tensor]:
        """
        `indices` int64 and `scores` float32 [N, k] of any number of images [N, D], read block by block.

        Raises:
            ValueError: rows that are not finite.
        """
        number, device = len(image_embeds), self._concepts.device
        indices = torch.zeros(number, self.k, dtype=torch.int64, device=device)
        scores = torch.zeros(number, self.k, dtype=torch.float32, device=device)
        for start in range(0, number, _IMAGES_PER_BLOCK):
            block = slice(start, start + _IMAGES_PER_BLOCK)
            indices[block], scores[block] = self.rank(image_embeds[block], start)
        return indices, scores

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
            self._products = self._products.new_empty(len(images), self._products.shape[1])
        products = torch.mm(rounded, self._columns, out=self._products[: len(images)])
        products.index_fill_(1, self._padding, -torch.inf)
        products = products.view(len(images), self._group_size, self._num_groups)
        maxima = products.amax(dim=1)
        families = maxima.view(len(images), self._family_size, -1).amax(dim=1).float()
        lowest = self._lowest_candidate(families.topk(self.k, dim=1).values[:, -1], images, rounded)
        return self._choose(images, products, maxima, lowest[:, None])

    def _lowest_candidate(self, reached: torch.Tensor, images: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
        """[n], the rough score from which on a concept may be one of the k best, where k of them reach `reached`."""
        # Cauchy and Schwarz: rounding two rows changes their product by at most the changes' lengths times the rows'.
        error = ((images - rounded.float()).norm(dim=1) + self._rounding) * _LONGEST_ROW + self._sum_error
        share = _BFLOAT16_ROUNDING if self._dtype == torch.bfloat16 else 0.0
        # k final scores are at least this; a candidate's may be off as much.
        lowest = reached - share * reached.abs() - 2 * error
        return lowest - 2 * share * lowest.abs()

    def _choose(
        self, images: torch.Tensor, products: torch.Tensor, maxima: torch.Tensor, lowest: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`indices` and `scores` [n, k] of images [n, D] by their products [n, S, G], with maxima [n, G] and bounds [n, 1]."""
        rows, groups = (maxima >= lowest).nonzero(as_tuple=True)
        if len(images) > 1 and len(rows) * self._group_size > _MOST_CANDIDATES:
            half = len(images) // 2
            first, second = (
                self._choose(images[part], products[part], maxima[part], lowest[part])
                for part in (slice(half), slice(half, None))
            )
            return torch.cat((first[0], second[0])), torch.cat((first[1], second[1]))
        found, members = (products[rows, :, groups] >= lowest[rows]).nonzero(as_tuple=True)
        rows, concepts = rows[found], groups[found] * self._group_size + members
        scores = _pair_scores(images, rows, self._concepts, concepts)
        # Stable sorts: candidates come by image and by index.
        order = scores.sort(descending=True, stable=True).indices
        order = order[rows[order].sort(stable=True).indices]
        counts = rows.bincount(minlength=len(images))
        best = order[(counts.cumsum(0) - counts)[:, None] + torch.arange(self.k, device=order.device)]
        return concepts[best], scores[best]


def _unit_rows(rows, what: str, first_row: int, device) -> torch.Tensor:
    """Rows as float32 of length 1 (or 0). Raises `ValueError` for rows that are not finite."""
    if not isinstance(rows, torch.Tensor):
        rows = torch.from_numpy(np.array(rows))
    rows = rows.to(device=device, dtype=torch.float64 if rows.dtype == torch.float64 else torch.float32)
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
    # Unit rows in float16 too: rounding has made some of them longer than others, and these would win.
    unit = rows / length[:, None]
    is_plain = (length > _SHORTEST) & (length < _LONGEST)
    if not bool(is_plain.all()):
        # The largest entry is divided out first.
        largest = rows.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
        scaled = rows / largest
        scaled = scaled / scaled.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
        unit = torch.where(is_plain[:, None], unit, scaled)
    return unit.float().contiguous()


def _pair_scores(
    images: torch.Tensor, rows: torch.Tensor, concepts: torch.Tensor, indices: torch.Tensor
) -> torch.Tensor:
    """Products [P] of pairs of an image and a concept, by their rows [P], each summed in the same order wherever it stands."""
    # One sum per pair along contiguous memory, not a matrix product: the order of a product's sum depends on where a pair
    # stands in the matrix.
    scores = torch.empty(len(rows), dtype=torch.float32, device=images.device)
    step = max(_BYTES_PER_SUM // (4 * max(images.shape[1], 1)), 1)
    # Two buffers for all: new memory would be cleared by the system each time, which takes longer than the sums.
    left, right = images.new_empty(2, min(step, len(rows)), images.shape[1])
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        size = len(rows[part])
        torch.index_select(images, 0, rows[part], out=left[:size])
        torch.index_select(concepts, 0, indices[part], out=right[:size])
        torch.sum(left[:size].mul_(right[:size]), dim=-1, out=scores[part])
    return scores


__all__ = ["ConceptRanking", "fastest_product_dtype", "product_dtype_for", "select_concepts"]
