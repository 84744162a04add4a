"""
A small visual tokenizer without a download: k-means codes of blurred patches.

Why this one: the demo and the tests need codes that say something about the image, from data that is at hand, within
seconds. A random projection with random codes (BEST-RQ, [1]) needs no data at all. But on images with large plain
areas, a few of its codes take nearly every patch. Codes that are always the same teach nothing. A trained dVAE would
take longer than the demo's training. K-means on the corpus lies between the two: deterministic, fitted in seconds,
codes placed where patches are, and every code is a little image that can be looked at (`reconstruct`). For real images
use `CodebookVisualTokenizer`: colours in a 4 x 4 raster know little about what a patch shows.

References:
    [1] Chiu et al., arXiv 2202.01855 (random-projection quantizer).
    [2] Arthur and Vassilvitskii, k-means++, SODA 2007 (starting codes).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import avg_pool2d, interpolate
from transformers import initialization as init

from .configuration import PatchVisualTokenizerConfig
from .tokenizer import VisualTokenizer


# Patches compared with the codes at a time; limits the memory of the distances.
CHUNK = 8192
# Squared distances below this share of the squared lengths are rounding: the points are the same.
SAME_POINT = 1e-5


@dataclass
class PatchCodeFit:
    """
    Outcome of a fit: `num_patches` used, and `explained_variance`, the share of the patches' variance that the codes
    keep, at most 1.
    """

    num_patches: int
    explained_variance: float


class PatchVisualTokenizer(VisualTokenizer):
    """
    A patch is averaged down to code_size x code_size colours; its token is the nearest of `vocab_size` such codes.

    A new tokenizer has random codes, drawn from `config.seed`: it works, and gives the same tokens everywhere, but few of
    its codes occur. [`~PatchVisualTokenizer.fit`] places the codes where the patches of a corpus are.
    """

    config: PatchVisualTokenizerConfig
    config_class = PatchVisualTokenizerConfig

    def __init__(self, config: PatchVisualTokenizerConfig):
        super().__init__(config)
        # A code: [rows, columns, 3] flattened, normalised like the pixel values.
        codes = torch.zeros(config.vocab_size, config.code_size**2 * 3)
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.post_init()
        self.eval()

    def tokenize(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[B, 3, rows * patch_size, columns * patch_size] -> ids [B, rows, columns]."""
        patches = self._blurred_patches(pixel_values)
        return nearest_codes(patches.flatten(0, 2), self.codes)[0].view(patches.shape[:3])

    def _blurred_patches(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[B, rows, columns, code_size**2 * 3]."""
        size = self.config.code_size
        small = avg_pool2d(pixel_values.float(), self.patch_size // size)
        patches = small.unflatten(3, (-1, size)).unflatten(2, (-1, size))
        return patches.permute(0, 2, 4, 3, 5, 1).flatten(3)

    @torch.no_grad()
    def fit(
        self, pixel_values: Iterable[torch.Tensor], *, num_iterations: int = 20, max_patches: int = 100_000
    ) -> PatchCodeFit:
        """
        Places the codes by k-means. The same images and `config.seed` give the same codes.

        Args:
            pixel_values: batches [B, 3, H, W] of images without augmentation, normalised like the model's input.
            num_iterations: rounds of k-means.
            max_patches: patches kept for the fit, drawn at random among all that are given.

        Raises:
            ValueError: fewer different patches than codes, or values that are not finite.
        """
        if num_iterations < 1 or max_patches < self.vocab_size:
            raise ValueError(
                f"num_iterations={num_iterations} must be at least 1, and max_patches={max_patches} at least "
                f"vocab_size={self.vocab_size}"
            )
        generator = torch.Generator().manual_seed(self.config.seed)
        patches = self._sample_patches(pixel_values, max_patches, generator)
        if not patches.isfinite().all():
            raise ValueError("the pixel values that the codes are to be fitted to are not all finite")
        codes = kmeans(patches, self.vocab_size, num_iterations, generator)
        self.codes.copy_(codes)
        error = nearest_codes(patches, codes)[1].mean().item() / patches.shape[1]
        variance = patches.var(dim=0, unbiased=False).mean().item()
        return PatchCodeFit(len(patches), 1 - error / variance if variance > 0 else 1.0)

    def _sample_patches(self, batches: Iterable[torch.Tensor], count: int, generator: torch.Generator) -> torch.Tensor:
        """Up to `count` patches, each equally likely: those with the smallest random keys."""
        kept, kept_keys = torch.empty(0, self.codes.shape[1]), torch.empty(0, dtype=torch.float64)
        for pixel_values in batches:
            rows, columns = self.grid_size(*pixel_values.shape[2:])
            whole = pixel_values[:, :, : rows * self.patch_size, : columns * self.patch_size]
            patches = self._blurred_patches(whole).flatten(0, 2).cpu()
            keys = torch.rand(len(patches), generator=generator, dtype=torch.float64)
            kept, kept_keys = torch.cat([kept, patches]), torch.cat([kept_keys, keys])
            if len(kept) > count:
                kept_keys, smallest = kept_keys.topk(count, largest=False)
                kept = kept[smallest]
        return kept

    def reconstruct(self, token_ids: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
        """
        The images that tokens stand for, for people to look at.

        Args:
            token_ids: [B, P].
            grid_size: rows and columns of tokens; P = rows * columns.

        Returns:
            Normalised pixel values [B, 3, rows * patch_size, columns * patch_size].
        """
        size = self.config.code_size
        rasters = self.codes[token_ids].unflatten(2, (size, size, 3)).unflatten(1, grid_size)
        small = rasters.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        return interpolate(small, scale_factor=self.patch_size // size, mode="nearest")

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, PatchVisualTokenizer):
            # A colour for the whole patch, and a weaker raster of its own: plain patches should find different codes too.
            generator = torch.Generator().manual_seed(module.config.seed)
            size = module.config.code_size
            color = torch.randn(module.config.vocab_size, 1, 3, generator=generator)
            raster = torch.randn(module.config.vocab_size, size**2, 3, generator=generator)
            init.copy_(module.codes, (color + 0.5 * raster).flatten(1))


def nearest_codes(points: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of points [N, D] among codes [V, D]: the nearest one's index [N] (the first of equally near ones) and the squared
    distance to it [N]."""
    points = points.to(codes.dtype)
    half_norms = codes.square().sum(dim=1) / 2
    indices = torch.cat([(half_norms - chunk @ codes.T).argmin(dim=1) for chunk in points.split(CHUNK)])
    return indices, (points - codes[indices]).square().sum(dim=1)


def kmeans(points: torch.Tensor, num_codes: int, num_iterations: int, generator: torch.Generator) -> torch.Tensor:
    """
    Codes [num_codes, D] that lie in the middle of the points [N, D] nearest to them, started by k-means++ [2]. A code
    that loses all its points moves to the point that is farthest from its own code.

    Raises:
        ValueError: fewer different points than codes.
    """
    codes = _spread_points(points, num_codes, generator)
    for _ in range(num_iterations):
        assignment, distances = nearest_codes(points, codes)
        counts = torch.bincount(assignment, minlength=num_codes)
        sums = torch.zeros_like(codes).index_add_(0, assignment, points)
        codes = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], codes)
        empty = (counts == 0).nonzero().flatten()
        codes[empty] = points[distances.topk(len(empty)).indices]
    return codes


def _spread_points(points: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Points drawn one after the other, each in proportion to its squared distance from those drawn before."""
    if not len(points):
        raise ValueError("there are no patches to fit the codes to")
    norms = points.square().sum(dim=1)

    def distances_from(row: int) -> torch.Tensor:
        """Squared, by one product; what rounding leaves between equal points counts as none."""
        distances = norms + norms[row] - 2 * (points @ points[row])
        return torch.where(distances > SAME_POINT * (norms + norms[row]), distances, 0)

    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    distances = distances_from(chosen[0])
    while len(chosen) < count:
        if not distances.max() > 0:
            raise ValueError(
                f"the images hold only {len(chosen)} different patches, fewer than the {count} codes: choose a smaller "
                "vocab_size, or fit on more images"
            )
        # By the cumulated distances: torch.multinomial takes no more than 2**24 categories.
        cumulated = distances.double().cumsum(0)
        draw = torch.rand(1, generator=generator, dtype=torch.float64) * cumulated[-1]
        chosen.append(int(torch.searchsorted(cumulated, draw, right=True).clamp(max=len(points) - 1)))
        distances = torch.minimum(distances, distances_from(chosen[-1]))
    return points[chosen].clone()


__all__ = ["PatchCodeFit", "PatchVisualTokenizer", "kmeans", "nearest_codes"]
