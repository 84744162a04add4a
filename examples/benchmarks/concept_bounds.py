"""Savings that exact pruning could bring to the search for concepts: the products that two bounds leave, and the seconds.

    python examples/benchmarks/concept_bounds.py --size base --json bounds.json

Embeddings of one's own, each a float matrix in a file of NumPy, take the place of made-up ones:

    python examples/benchmarks/concept_bounds.py --embeddings words.npy captions.npy

Both bounds are given the k-th best score of each image, which a real search would have to find. Their figures are therefore
the best that pruning can reach. Candidates are what a bound on the rounding of the products leaves, with bfloat16 and with
eight bits and a scale for each row.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from measuring import add_json_option, matmul_gflops, print_table, timed

from vicha_hf.command_parser import CommandParser
from vicha_hf.mistakes import run_script
from vicha_hf.models.concept_ranking import ConceptRanking, fastest_product_dtype


K = 15
ROWS_AT_A_TIME = 256
ROUNDS = 3
# Above this share of products, scoring pairs one by one costs many times the whole product; it is not timed.
MOST_LEFT = 0.05
# How fast the variances fall along the main directions, and how wide a group of related concepts is.
STRUCTURES = {"noise": None, "mild": (0.3, 0.8), "middle": (0.6, 0.6), "steep": (1.0, 0.4)}


@dataclass(frozen=True)
class Size:
    """Sizes of what is measured; `groups` is of related concepts and of clusters."""

    images: int
    concepts: int
    width: int
    groups: int


SIZES = {"tiny": Size(64, 600, 32, 20), "base": Size(1024, 20_000, 512, 400)}


def main(argv: Sequence[str] | None = None) -> dict:
    parser = CommandParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="base", help="default: %(default)s")
    parser.add_argument(
        "--embeddings", nargs=2, type=Path, metavar=("CONCEPTS.npy", "IMAGES.npy"), help="of your own, unit rows"
    )
    add_json_option(parser, "concept_bounds")
    arguments = parser.parse_args(argv)
    size, figures = SIZES[arguments.size], {}
    if arguments.embeddings:
        concepts, images = (np.load(path).astype(np.float32) for path in arguments.embeddings)
        size = replace(size, images=len(images), concepts=len(concepts), width=images.shape[1])
        figures["given"] = measure(size, concepts, images)
    else:
        for name, structure in STRUCTURES.items():
            figures[name] = measure(size, *make_embeddings(np.random.default_rng(0), size, structure))
    names = list(next(iter(figures.values())))
    print_table(["figure", *figures], [[name, *(_shown(row[name]) for row in figures.values())] for name in names])
    figures["matmul_gflops"] = matmul_gflops()
    arguments.json.write(figures)
    return figures


def _shown(figure: float | None) -> str:
    return "not timed" if figure is None else f"{figure:.3f}"


def measure(size: Size, concepts: np.ndarray, images: np.ndarray) -> dict[str, float | None]:
    """Shares of the products that are left, and seconds over those of the search of this package; `None` is not timed."""
    rng = np.random.default_rng(0)
    concepts, images = torch.from_numpy(concepts), torch.from_numpy(images)
    scores = images @ concepts.T
    lowest = scores.topk(K).values[:, -1:]
    shares = {
        "candidates_bfloat16": candidates(concepts, images, scores, lowest, lambda rows: rows.bfloat16().float()),
        "candidates_int8": candidates(concepts, images, scores, lowest, _rounded_to_int8),
        "clusters_left": share_by_clusters(rng, size, concepts, images, lowest),
    }
    centred = concepts - concepts.mean(0)
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)
    for share in (8, 4, 2):
        bound = _Projection(concepts, images, directions[:, : size.width // share])
        shares[f"projection_{size.width // share}_left"] = (bound(slice(None)) >= lowest).float().mean().item()
    blocks = [slice(start, start + ROWS_AT_A_TIME) for start in range(0, len(images), ROWS_AT_A_TIME)]
    for dtype in sorted({torch.float32, fastest_product_dtype()}, key=str):
        ranking = ConceptRanking(concepts, K, "cpu", dtype)
        whole, _ = timed(lambda ranking=ranking: [ranking.rank(images[block]) for block in blocks], ROUNDS)
        for share in (4, 2):
            width = size.width // share
            ratio = None
            if shares[f"projection_{width}_left"] <= MOST_LEFT:
                bound = _Projection(concepts, images, directions[:, :width], dtype)
                pruned, _ = timed(
                    lambda bound=bound: [pruned_scores(bound, block, concepts, images, lowest) for block in blocks],
                    ROUNDS,
                )
                ratio = pruned / whole
            name = str(dtype).removeprefix("torch.")
            shares[f"seconds_projection_{width}_over_{name}_search"] = ratio
    return shares


def make_embeddings(
    rng: np.random.Generator, size: Size, structure: tuple[float, float] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows of concepts [V, D] and of images [N, D]; with structure, an image is near a mixture of three concepts."""

    def draw(number: int) -> np.ndarray:
        return rng.standard_normal((number, size.width), dtype=np.float32)

    if structure is None:
        return _unit(draw(size.concepts)), _unit(draw(size.images))
    decay, width_of_group = structure
    spectrum = np.arange(1, size.width + 1, dtype=np.float32) ** -decay
    groups = _unit(draw(size.groups) * spectrum)
    concepts = _unit(
        groups[rng.integers(size.groups, size=size.concepts)] + width_of_group * _unit(draw(size.concepts) * spectrum)
    )
    mixtures = _unit(sum(share * concepts[rng.integers(len(concepts), size=size.images)] for share in (0.6, 0.4, 0.3)))
    # Texts share one direction and images another, as CLIP's do.
    of_texts, of_images = _unit(draw(2))
    return _unit(concepts + 1.2 * of_texts), _unit(
        0.5 * mixtures + 0.8 * of_images + 0.4 * _unit(draw(size.images) * spectrum)
    )


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def candidates(concepts, images, scores, lowest, rounded: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """Concepts per image whose score may be one of the best after rounding the rows, by Cauchy and Schwarz."""
    error = (images - rounded(images)).norm(dim=1, keepdim=True) + (concepts - rounded(concepts)).norm(dim=1).max()
    return (scores >= lowest - 2 * error).sum(1).float().mean().item()


def _rounded_to_int8(rows: torch.Tensor) -> torch.Tensor:
    scale = rows.abs().amax(dim=1, keepdim=True) / 127
    return (rows / scale).round() * scale


def share_by_clusters(rng: np.random.Generator, size: Size, concepts, images, lowest) -> float:
    """The share of products whose cluster may hold one of the best: its centre's angle less its widest member's."""
    centres = concepts[torch.from_numpy(rng.choice(len(concepts), size.groups, replace=False))]
    for _ in range(4):
        nearest = (concepts @ centres.T).argmax(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, concepts)
        centres = torch.nn.functional.normalize(sums, dim=1)
    towards = concepts @ centres.T
    nearest, members = towards.argmax(1), towards.amax(1).clamp(-1, 1).acos()
    radius = torch.zeros(size.groups).scatter_reduce_(0, nearest, members, "amax")
    angles = (images @ centres.T).clamp(-1, 1).acos()
    left = (angles - radius).clamp_min(0).cos() >= lowest
    return (left.float() @ nearest.bincount(minlength=size.groups).float()).mean().item() / len(concepts)


class _Projection:
    """<x, c> is at most the product of the projections and of the lengths of what they leave (Cauchy and Schwarz)."""

    def __init__(self, concepts, images, directions, dtype: torch.dtype = torch.float32):
        centre = concepts.mean(0)
        near, far = (concepts - centre) @ directions, images @ directions
        self._concepts, self._images, self._shift = near.to(dtype).T.contiguous(), far.to(dtype), images @ centre
        self._concept_rest = ((concepts - centre).square().sum(1) - near.square().sum(1)).clamp_min(0).sqrt()
        self._image_rest = (images.square().sum(1) - far.square().sum(1)).clamp_min(0).sqrt()

    def __call__(self, rows: slice) -> torch.Tensor:
        products = (self._images[rows] @ self._concepts).float().add_(self._shift[rows, None])
        return products.addcmul_(self._image_rest[rows, None], self._concept_rest)


def pruned_scores(bound: _Projection, rows: slice, concepts, images, lowest) -> torch.Tensor:
    """Scores of the pairs that the bound leaves, one after another."""
    image, concept = (bound(rows) >= lowest[rows]).nonzero().unbind(1)
    scores = torch.empty(len(image))
    for start in range(0, len(image), 1 << 14):
        part = slice(start, start + (1 << 14))
        scores[part] = (images[rows][image[part]] * concepts[concept[part]]).sum(1)
    return scores


if __name__ == "__main__":
    sys.exit(run_script(main))
