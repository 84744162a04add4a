"""Accuracy as a metric of the `evaluate` library: `evaluate.load(".../metrics/classification_accuracy")`."""

import datasets
import evaluate

from vicha_hf.evaluation.classification import classification_accuracy


_DESCRIPTION = """
Accuracy of visual entailment or reasoning, in %, beside that of always giving the most frequent answer. Unlike the
library's own `accuracy` it needs no download.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: class indices.
    references: the right ones.
    class_names: optional, names of the classes.
Returns:
    accuracy, majority_accuracy, num_samples, and accuracy_NAME of the samples of each class where names are given.
Examples:
    >>> metric = evaluate.load("path/to/metrics/classification_accuracy")
    >>> metric.compute(predictions=[0, 1, 1], references=[0, 1, 0])["majority_accuracy"]
    66.66666666666667
"""


class ClassificationAccuracy(evaluate.Metric):
    """The maths is [`vicha_hf.evaluation.classification.classification_accuracy`]."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references, class_names=()) -> dict[str, float]:
        return classification_accuracy(list(predictions), list(references), class_names)
