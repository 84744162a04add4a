"""One evaluated gallery, as reports and model cards show it."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass
class Result:
    """Metrics of one gallery under one condition.

    Args:
        name: identifier of gallery and condition, such as "test_without_concepts".
        title: the gallery, such as "Held-out images".
        remark: what is particular about the condition, such as "with visual concepts".
        metrics: as [`~vicha_hf.evaluation.retrieval.evaluate_retrieval`] returns them.
    """

    name: str
    title: str
    remark: str
    metrics: Mapping[str, float]
