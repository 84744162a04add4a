"""Time of a search's first stage: every embedding, FAISS, and what a user waits for in all.

    python examples/benchmarks/search.py --images 100000 --dim 256 --threads 2 --json search.json

Embeddings are drawn around centres, as those of real images lie; the recall of FAISS is measured against the exact way.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from measuring import add_json_option

from vicha_hf.command_parser import CommandParser
from vicha_hf.mistakes import run_script
from vicha_hf.search.approximate import ApproximateSearch
from vicha_hf.search.image_index import nearest_rows


QUERIES, TOP = 50, 32


def main(argv: Sequence[str] | None = None) -> dict:
    parser = CommandParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    add_json_option(parser, "search")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    embeds = clustered(arguments.images, arguments.dim)
    queries = embeds[torch.randperm(len(embeds), generator=torch.Generator().manual_seed(1))[:QUERIES]]
    result = {"images": arguments.images, "dim": arguments.dim, "threads": arguments.threads}
    product = milliseconds(lambda query: embeds @ query, queries)
    result["exact_ms"] = milliseconds(lambda query: nearest_rows(embeds, query, TOP), queries)
    result["exact_over_product"] = result["exact_ms"] / product
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "index.json").write_text("{}")
        approximate = ApproximateSearch(embeds, Path(folder) / "images.faiss")
    result["faiss_ms"] = milliseconds(lambda query: approximate.nearest(query, TOP), queries)
    shared = sum(
        len(set(nearest_rows(embeds, query, TOP)[0]) & set(approximate.nearest(query, TOP)[0])) for query in queries
    )
    result["faiss_recall"] = shared / (TOP * len(queries))
    print(json.dumps(result, indent=2))
    arguments.json.write(result)
    return result


def clustered(number: int, dim: int) -> torch.Tensor:
    """[number, dim], L2-normalised, around a centre for every hundred."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(max(number // 100, 1), dim, generator=generator)
    owner = torch.randint(len(centres), (number,), generator=generator)
    return torch.nn.functional.normalize(centres[owner] + torch.randn(number, dim, generator=generator), dim=1)


def milliseconds(search: Callable, queries: torch.Tensor) -> float:
    """Median time of a query."""
    times = []
    for query in queries:
        started = time.perf_counter()
        search(query)
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


if __name__ == "__main__":
    sys.exit(run_script(main))
