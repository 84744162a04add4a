"""
Random draws of a step: uniform numbers, choices, and the patches that masked image modelling hides in blocks.

References:
    [1] Khan et al., SIMLA, arXiv 2203.14395, section 3.3 (cross-modality reconstruction).
    [2] Bao et al., BEiT, arXiv 2106.08254, algorithm 1 (blocks), with the counts that SIMLA uses.
"""

import math
from collections.abc import Sequence

import torch


# The lower half of an integer of 64 bits: hashes work on it, so that no product overflows.
HALF = 0xFFFFFFFF


class Draws:
    """
    Source of a step's random numbers. Without a seed it is torch's own generator. With one, numbers are hashes of it and
    of how many draws came before: a formula without state, so that a compiled step is one graph.

    Args:
        seed: int64 [], such as [`Pairs.seed`].
    """

    def __init__(self, seed: torch.Tensor | None = None):
        self.seed = seed
        self._drawn = 0

    def uniform(self, shape: Sequence[int], device: torch.device) -> torch.Tensor:
        """Numbers from 0 to 1, float32."""
        if self.seed is None:
            return torch.rand(*shape, device=device)
        # 23 bits and a half: exact in float32, and neither 0 nor 1.
        return ((self._words(shape) >> 9).to(torch.float32) + 0.5) / 2**23

    def integers(
        self, end: int, shape: Sequence[int], device: torch.device, dtype: torch.dtype = torch.int64
    ) -> torch.Tensor:
        """Integers from 0 to `end`, which is left out; at most 2**32."""
        if self.seed is None:
            return torch.randint(end, shape, dtype=dtype, device=device)
        return (self._words(shape) % end).to(dtype)

    def exponential(self, shape: Sequence[int], device: torch.device) -> torch.Tensor:
        """Exponentially distributed numbers, float32."""
        if self.seed is None:
            return torch.empty(*shape, device=device).exponential_()
        return -self.uniform(shape, device).log()

    def choices(self, weights: torch.Tensor) -> torch.Tensor:
        """One column for each row of `weights` [B, N], in proportion to them: [B]."""
        if self.seed is None:
            return torch.multinomial(weights, 1).squeeze(1)
        # The first of exponential clocks to ring, each at its weight's rate.
        return (weights / self.exponential(weights.shape, weights.device)).argmax(dim=1)

    def _words(self, shape: Sequence[int]) -> torch.Tensor:
        """Integers of 32 random bits."""
        self._drawn += 1
        first = _mixed((self.seed & HALF) ^ self._drawn)
        # Mixed twice, or the row whose index is the seed's upper half would always be 0.
        second = _mixed(_mixed(((self.seed >> 32) & HALF) ^ first) ^ self._drawn)
        index = torch.arange(math.prod(shape), device=self.seed.device)
        return _mixed(_mixed(index ^ first) ^ second).reshape(shape)


def _mixed(words: torch.Tensor) -> torch.Tensor:
    """
    Hashes integers of 32 bits, held in 64, to such integers, one to one: xor-shifts and products with odd constants
    (C. Wellons, "Prospecting for hash functions", 2018).
    """
    words = words ^ (words >> 15)
    words = (words * 0x2C1B3C6D) & HALF
    words = words ^ (words >> 12)
    words = (words * 0x297A2D39) & HALF
    return words ^ (words >> 15)


# Placements tried for one block before an image counts as full, as in BEiT.
MAX_ATTEMPTS = 10


def draw_block_masks(
    batch_size: int,
    grid_size: int | tuple[int, int],
    *,
    max_masked: int = 75,
    min_block: int = 16,
    min_aspect: float = 0.3,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """
    Masks rectangles of patches, one after the other, until `max_masked` are hidden or no further rectangle fits.

    A rectangle's area is uniform between `min_block` and what is still to be hidden, its shape log-uniform, its place
    uniform. It counts if it lies within the grid and leaves at least one row and one column free. It must hide at
    least one patch more, but not more than are still to be hidden. So images hide *up to* `max_masked` patches: with
    the defaults on 16 x 16 patches 74.35 in the mean, and exactly 75 in 63 % of the images. As in the published code,
    what is still to be hidden may be less than `min_block`: the area then lies between the two.

    The draws come from a generator of the CPU, whatever `device` is. Their number depends on the draws
    themselves, so an accelerator would have to be waited for again and again.

    Args:
        batch_size: B.
        grid_size: patches along a side, or (rows, columns); P = rows * columns.
        max_masked: patches hidden at most (75 of 256 in the paper).
        min_block: smallest area of a rectangle, patches (16).
        min_aspect: smallest height to width of a rectangle (0.3); the largest is its inverse.
        device: where the result goes.
        generator: of the CPU; torch's own by default.

    Returns:
        bool [B, P], True = hidden; patches in row-major order.

    Raises:
        ValueError: as [`check_block_mask`]; a negative `batch_size`.
    """
    if batch_size < 0:
        raise ValueError(f"`batch_size={batch_size}` must not be negative")
    rows, columns = check_block_mask(
        grid_size,
        max_masked=max_masked,
        min_block=min_block,
        min_aspect=min_aspect,
    )
    log_aspects = math.log(min_aspect), math.log(1 / min_aspect)
    row, column = torch.arange(rows)[None, :, None], torch.arange(columns)[None, None, :]
    masks = torch.zeros(batch_size, rows, columns, dtype=torch.bool)
    missing = torch.full((batch_size,), max_masked)
    failures = torch.zeros(batch_size, dtype=torch.int64)
    # One placement per image and turn; images that are full drop out.
    while (open_images := ((missing > 0) & (failures < MAX_ATTEMPTS)).nonzero().flatten()).numel():
        draws = torch.rand(batch_size, 4, dtype=torch.float64, generator=generator)[open_images].unbind(1)
        allowed = missing[open_images]
        area = min_block + (allowed - min_block) * draws[0]
        aspect = (log_aspects[0] + (log_aspects[1] - log_aspects[0]) * draws[1]).exp()
        height, width = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
        fits = (height < rows) & (width < columns)
        top = (draws[2] * (rows - height + 1)).long()[:, None, None]
        left = (draws[3] * (columns - width + 1)).long()[:, None, None]
        bottom, right = top + height[:, None, None], left + width[:, None, None]
        block = (row >= top) & (row < bottom) & (column >= left) & (column < right)
        before = masks[open_images]
        added = (block & ~before).sum(dim=(1, 2))
        accepted = fits & (added > 0) & (added <= allowed)
        masks[open_images] = before | (block & accepted[:, None, None])
        missing[open_images] -= torch.where(accepted, added, 0)
        failures[open_images] = torch.where(accepted, 0, failures[open_images] + 1)
    return masks.flatten(1).to(device)


def check_block_mask(
    grid_size: int | tuple[int, int],
    *,
    max_masked: int,
    min_block: int,
    min_aspect: float = 0.3,
) -> tuple[int, int]:
    """
    The grid as (rows, columns), if masks can be drawn with these values (those of [`draw_block_masks`]).

    Raises:
        ValueError: an impossible value, by its name, or values with which hardly any rectangle could ever be placed.
    """
    rows, columns = (grid_size, grid_size) if isinstance(grid_size, int) else grid_size
    if min(rows, columns) < 2:
        raise ValueError(f"`grid_size={grid_size}`: a grid of {rows} x {columns} patches is too small for blocks")
    if not 1 <= max_masked < rows * columns:
        raise ValueError(
            f"`max_masked={max_masked}` must be at least 1 and leave some of the {rows} x {columns} patches to be seen"
        )
    if not 1 <= min_block <= max_masked:
        raise ValueError(f"`min_block={min_block}` must lie between 1 and `max_masked={max_masked}`")
    if not 0 < min_aspect <= 1:
        raise ValueError(f"`min_aspect={min_aspect}` is the smaller side over the larger: above 0, at most 1")
    if not _placeable(rows, columns, min_block, min_aspect):
        raise ValueError(
            f"`min_block={min_block}`: no rectangle of this area leaves a row and a column of the {rows} x {columns} "
            f"patches free with a height to width between {min_aspect:.2g} and {1 / min_aspect:.2g}; choose a smaller one"
        )
    return rows, columns


def _placeable(rows: int, columns: int, area: int, min_aspect: float) -> bool:
    """Whether a rectangle of this area and an allowed shape can be smaller than the grid both ways, after rounding."""
    tallest, widest = rows - 0.5, columns - 0.5
    return max(area / widest**2, min_aspect) < min(tallest**2 / area, 1 / min_aspect)


def num_kept_patches(num_patches: int, dropout: float) -> int:
    """Counts the patches that stay where the share `dropout` goes: (1 - dropout) * num_patches, rounded."""
    return round((1 - dropout) * num_patches)


def draw_kept_patches(num_images: int, num_patches: int, dropout: float, device: torch.device) -> torch.Tensor:
    """
    The patches that each image keeps, every choice of them equally likely, in reading order: indices [B, K],
    K = [`num_kept_patches`]. From torch's generator of the device.
    """
    order = torch.rand(num_images, num_patches, device=device).argsort(dim=1)
    return order[:, : num_kept_patches(num_patches, dropout)].sort(dim=1).values


@torch.library.custom_op("vicha_hf::block_masks", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def block_masks(
    pixel_values: torch.Tensor,
    seed: torch.Tensor | None,
    rows: int,
    columns: int,
    max_masked: int,
    min_block: int,
    min_aspect: float,
) -> torch.Tensor:
    """
    [`draw_block_masks`] for images [B, ...] as one operator: how often it draws depends on what it drew, which is no
    graph. Without a seed (int64 []) torch's generator draws.
    """
    return draw_block_masks(
        len(pixel_values),
        (rows, columns),
        max_masked=max_masked,
        min_block=min_block,
        min_aspect=min_aspect,
        device=pixel_values.device,
        generator=None if seed is None else torch.Generator().manual_seed(int(seed)),
    )


@block_masks.register_fake
def _(pixel_values, seed, rows, columns, max_masked, min_block, min_aspect):
    return pixel_values.new_empty((len(pixel_values), rows * columns), dtype=torch.bool)


__all__ = ["Draws", "block_masks", "check_block_mask", "draw_block_masks", "draw_kept_patches", "num_kept_patches"]
