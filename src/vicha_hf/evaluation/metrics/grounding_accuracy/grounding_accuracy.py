"""Grounding accuracy as a metric of the `evaluate` library: `evaluate.load(".../metrics/grounding_accuracy")`."""

import datasets
import evaluate

from vicha_hf.evaluation.grounding import grounding_accuracy


_DESCRIPTION = """
Share of the expressions, in %, whose chosen box overlaps the reference by at least 0.5 (intersection over union, boxes that
include their last pixel as in RefCOCO's own tool).
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: a box [x, y, width, height] in pixels per expression; [] where none was chosen, which is wrong.
    references: what the expressions name, alike.
    splits: optional, each expression's split.
Returns:
    accuracy, and accuracy_SPLIT where the splits are given.
Examples:
    >>> metric = evaluate.load("path/to/metrics/grounding_accuracy")
    >>> metric.compute(predictions=[[10, 12, 40, 30], []], references=[[12, 10, 40, 30], [0, 0, 9, 9]])
    {'accuracy': 50.0}
"""


class GroundingAccuracy(evaluate.Metric):
    """The maths is [`vicha_hf.evaluation.grounding.grounding_accuracy`]."""

    def _info(self) -> evaluate.MetricInfo:
        box = datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": box, "references": box}),
        )

    def _compute(self, predictions, references, splits=None) -> dict[str, float]:
        chosen = [box or None for box in predictions]
        everything = grounding_accuracy(chosen, references, ["all"] * len(references))
        by_split = {} if splits is None else grounding_accuracy(chosen, references, splits)
        return {
            "accuracy": 100 * everything["all"],
            **{f"accuracy_{split}": 100 * share for split, share in by_split.items()},
        }
