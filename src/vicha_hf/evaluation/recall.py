"""Recall@K of a ranked retrieval, one direction at a time."""

from collections.abc import Sequence

import torch
from torch import Tensor


CUTOFFS = (1, 5, 10)
DIRECTIONS = {"i2t": "image to captions", "t2i": "caption to images"}
QUERIES_PER_BLOCK = 256


def best_ranks(scores: Tensor, relevant: Sequence[Sequence[int]]) -> Tensor:
    """Rank (0 = first) of the best placed relevant candidate of every query.

    Ties are resolved against the model: an irrelevant candidate with the same score stands before the relevant one.
    The result then depends neither on the order of the candidates nor on the sorting routine. A model that gives one
    score to everything gets no credit. A relevant pair that the second stage never scored (-100 like all the others)
    is not found by luck.

    Args:
        scores: `[num_queries, num_candidates]`, higher = better.
        relevant: for each query the indices of its relevant candidates, at least one.

    Returns:
        `[num_queries]` int64.

    Raises:
        ValueError: a query without relevant candidate, an index out of range, or a NaN among the scores.
    """
    num_queries, num_candidates = scores.shape
    if len(relevant) != num_queries:
        raise ValueError(f"scores have {num_queries} rows, but relevant lists {len(relevant)} queries")
    if scores.isnan().any():
        row = int(scores.isnan().any(dim=1).nonzero()[0])
        raise ValueError(
            f"scores of query {row} hold NaN: nothing can be ranked; look for a NaN in the model's output"
        )
    for query, indices in enumerate(relevant):
        if len(indices) == 0:
            raise ValueError(f"query {query} has no relevant candidate: leave it out or give it one")
        if min(indices) < 0 or max(indices) >= num_candidates:
            raise ValueError(f"query {query}: relevant indices {list(indices)} are not all in [0, {num_candidates})")

    # Duplicates within a row would be counted twice below, and rows are padded with their own first index.
    rows = [sorted(set(indices)) for indices in relevant]
    width = max((len(row) for row in rows), default=1)
    index = torch.tensor([row + row[:1] * (width - len(row)) for row in rows], dtype=torch.long, device=scores.device)
    index = index.view(num_queries, width)
    is_real = torch.tensor([[column < len(row) for column in range(width)] for row in rows], device=scores.device)
    is_real = is_real.view(num_queries, width)

    relevant_scores = scores.gather(1, index)  # [num_queries, width]
    best = relevant_scores.amax(dim=1, keepdim=True)
    # In parts: counting takes eight bytes per score.
    parts = zip(scores.split(QUERIES_PER_BLOCK), best.split(QUERIES_PER_BLOCK), strict=True)
    at_least_as_good = torch.cat([(part >= best_of_part).sum(dim=1) for part, best_of_part in parts])
    of_them_relevant = ((relevant_scores >= best) & is_real).sum(dim=1)
    return at_least_as_good - of_them_relevant


def recall_at_k(scores: Tensor, relevant: Sequence[Sequence[int]], ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Share of the queries, in %, that find a relevant candidate among their K best, and the mean over the Ks.

    Args:
        scores: `[num_queries, num_candidates]`, higher = better.
        relevant: for each query the indices of its relevant candidates.
        ks: the cut-offs.

    Returns:
        `{"r1": ..., "r5": ..., "r10": ..., "r_mean": ...}`; ties as in [`best_ranks`].
    """
    if len(scores) == 0:
        raise ValueError("scores are empty: there is no query to average over")
    ranks = best_ranks(scores, relevant)
    recalls = {f"r{k}": 100.0 * (ranks < k).double().mean().item() for k in ks}
    return {**recalls, "r_mean": sum(recalls.values()) / len(recalls)}


def chance_recall(num_candidates: int, num_relevant: Sequence[int], k: int) -> float:
    """Recall@K, in %, of a ranking drawn at random.

    A query with `n` relevant candidates among `N` misses all of them with probability C(N-n, K) / C(N, K).

    Args:
        num_candidates: N.
        num_relevant: n of every query.
        k: K, clipped to N.
    """
    misses = 0.0
    for n in num_relevant:
        miss = 1.0
        for drawn in range(min(k, num_candidates)):
            miss *= max(num_candidates - n - drawn, 0) / (num_candidates - drawn)
        misses += miss
    return 100.0 * (1.0 - misses / len(num_relevant))
