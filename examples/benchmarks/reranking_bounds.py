"""Bounds of re-ranking: R@1 by similarity, by matching, by both, and of a judge who always picks the right one.

    python examples/benchmarks/reranking_bounds.py MODEL test.json test_compositional.json --json reranking_bounds.json

The judge's figure is the share of queries that similarity or matching answers rightly. Where it is close to similarity's, the
two make the same mistakes, and no weight of the one beside the other can gain more than that distance.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

from measuring import add_json_option, print_table

from vicha_hf.command_parser import CommandParser
from vicha_hf.data.annotations import read_image_text_records
from vicha_hf.data.datasets_retrieval import RetrievalDataset
from vicha_hf.data.transforms import EvaluationTransform
from vicha_hf.evaluation.recall import best_ranks
from vicha_hf.evaluation.retrieval import RetrievalScores, score_retrieval
from vicha_hf.families import find_model_folder, load_finetuned, load_processor
from vicha_hf.mistakes import run_script


@dataclass(frozen=True)
class Recalls:
    """R@1 in %, the mean of both ways. `either` counts a query that similarity or matching answers rightly."""

    similarity: float
    match: float
    combined: float
    either: float


def main(argv: Sequence[str] | None = None) -> dict:
    parser = CommandParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of a model or of a run, or a Hub id")
    parser.add_argument("data", type=Path, nargs="+", metavar="FILE", help="annotations")
    parser.add_argument("--k", type=int, default=128, help="candidates that are matched (default: %(default)s)")
    parser.add_argument("--no-use-concepts", action="store_true", help="show the images without their visual concepts")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    add_json_option(parser, "reranking_bounds")
    arguments = parser.parse_args(argv)
    if arguments.k < 1:
        parser.error("--k must be at least 1")
    folder = find_model_folder(arguments.model)
    model, processor = load_finetuned("retrieval", folder).to(arguments.device), load_processor(folder)
    with_concepts = getattr(model.config, "use_concepts", False) and not arguments.no_use_concepts
    transform = EvaluationTransform.from_image_processor(processor.image_processor)
    figures = {}
    for file in arguments.data:
        annotations = read_image_text_records(str(file), for_evaluation=True)
        dataset = RetrievalDataset(annotations, transform, use_concepts=with_concepts)
        scores = score_retrieval(model, processor, dataset, k=arguments.k, with_concepts=with_concepts)
        figures[str(file)] = asdict(recalls(scores, dataset.captions_of_image, dataset.image_of_caption))
    print_table(
        ["R@1, %", "similarity", "match", "combined", "either", "combined gains", "possible gain"],
        [[Path(file).stem, *map("{:.1f}".format, _columns(row))] for file, row in figures.items()],
    )
    arguments.json.write(figures)
    return figures


def _columns(row: dict[str, float]) -> list[float]:
    return [*row.values(), row["combined"] - row["similarity"], row["either"] - row["similarity"]]


def recalls(
    scores: RetrievalScores, captions_of_image: Sequence[Sequence[int]], image_of_caption: Sequence[int]
) -> Recalls:
    """
    Args:
        scores: of a gallery of N images and M captions.
        captions_of_image: for each of the N images the indices of its captions.
        image_of_caption: for each of the M captions the index of its image.
    """
    match = scores.reweighted(0.0)
    images_of_caption = [[image] for image in image_of_caption]
    ways = (
        (scores.similarity, match.rerank_i2t, scores.rerank_i2t, captions_of_image),
        (scores.similarity.T, match.rerank_t2i, scores.rerank_t2i, images_of_caption),
    )
    found = []
    for *rankings, truth in ways:
        similar, matched, combined = (best_ranks(ranking, truth) == 0 for ranking in rankings)
        found.append([100 * right.double().mean().item() for right in (similar, matched, combined, similar | matched)])
    return Recalls(*map(mean, zip(*found, strict=True)))


if __name__ == "__main__":
    sys.exit(run_script(main))
