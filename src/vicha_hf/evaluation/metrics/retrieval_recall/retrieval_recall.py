"""Recall@K as a metric of the `evaluate` library: `evaluate.load(".../metrics/retrieval_recall")`."""

import datasets
import evaluate
import torch

from vicha_hf.evaluation.recall import recall_at_k


_DESCRIPTION = """
Recall@K of a retrieval in one direction: the share of the queries, in %, with a relevant candidate among the K best.
An irrelevant candidate with the same score as the relevant one stands before it.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: for each query its scores over all candidates, higher = better.
    references: for each query the indices of its relevant candidates.
    ks: the cut-offs, 1, 5 and 10 by default.
Returns:
    r1, r5, r10 (as `ks` says) and their mean r_mean.
Examples:
    >>> metric = evaluate.load("path/to/metrics/retrieval_recall")
    >>> metric.compute(predictions=[[0.9, 0.1], [0.8, 0.2]], references=[[0], [1]], ks=[1])
    {'r1': 50.0, 'r_mean': 50.0}
"""


class RetrievalRecall(evaluate.Metric):
    """One direction of a retrieval; the maths is [`vicha_hf.evaluation.recall.recall_at_k`]."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Sequence(datasets.Value("int64")),
                }
            ),
        )

    def _compute(self, predictions, references, ks=(1, 5, 10)) -> dict[str, float]:
        return recall_at_k(torch.tensor(predictions, dtype=torch.float64), references, ks)
