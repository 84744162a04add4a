"""The figures of an evaluation that a reader wants first, beside those of chance."""

import re
from collections.abc import Mapping

from .recall import CUTOFFS, DIRECTIONS


# What a reader wants first, where an evaluation has it.
_FIRST = ("r1_i2t", "r1_t2i", "accuracy", "accuracy_itm", "accuracy_itc")
# Metric -> the figure that says what it is without looking.
_CHANCE = (
    (re.compile(r"(r\d+_(?:i2t|t2i))"), r"chance_\1"),
    (re.compile(r"accuracy"), "majority_accuracy"),
    (re.compile(r"accuracy_(?:itm|itc)(?:_layer_\d+)?(_.+)?"), r"accuracy_random_proposal\1"),
    (re.compile(r"pointing_(?:itm|itc)(?:_layer_\d+)?(_.+)?"), r"pointing_random_pixel\1"),
)
# Means of recalls, of one direction or of both; chance is the mean of the same.
_MEANS = {"r_mean": tuple(DIRECTIONS)} | {f"r_mean_{way}": (way,) for way in DIRECTIONS}
# Figures that depend on the data alone and so never change in a run.
CONSTANT = ("chance_", "num_", "majority_", "accuracy_random_", "accuracy_best_", "pointing_random_")
# How it was evaluated, which is neither reached nor known by the data.
SETTINGS = ("vqa_rules", "rerank_similarity_weight", "layer_itm", "layer_itc")

# What one layer's heat map reaches, where every layer was tried; the best layer's has a name without it.
OF_ONE_LAYER = re.compile(r".+_layer_\d+(_.+)?")


def chance_of(metrics: Mapping[str, object], name: str) -> float | None:
    """The figure of chance beside a metric, by its name; None where there is none."""
    if name in _MEANS:
        by_chance = [_number(metrics.get(f"chance_r{k}_{way}")) for way in _MEANS[name] for k in CUTOFFS]
        return None if None in by_chance else sum(by_chance) / len(by_chance)
    for pattern, chance in _CHANCE:
        if match := pattern.fullmatch(name):
            return _number(metrics.get(match.expand(chance)))
    return None


def first_figures(metrics: Mapping[str, object], primary: str) -> list[tuple[str, float, float | None]]:
    """
    Name, value and chance of the primary metric and of those that have a chance; None where there is no chance.

    Args:
        metrics: of an evaluation.
        primary: the metric that chooses the best model.
    """
    names = dict.fromkeys(name for name in (primary, *_FIRST) if isinstance(metrics.get(name), int | float))
    return [(name, float(metrics[name]), chance_of(metrics, name)) for name in names]


def describe_figures(metrics: Mapping[str, object], primary: str) -> str:
    """`r_mean 34.2, r1_i2t 12.0 (chance 0.5), r1_t2i 11.0 (chance 0.5)`."""
    return ", ".join(
        f"{name} {value:.1f}" + ("" if chance is None else f" (chance {chance:.1f})")
        for name, value, chance in first_figures(metrics, primary)
    )


def changing(metrics: Mapping[str, object]) -> dict[str, float]:
    """The figures that a chart over the steps is for."""
    return {
        name: value
        for name, value in metrics.items()
        if isinstance(value, int | float)
        and not name.startswith((*CONSTANT, *SETTINGS))
        and not OF_ONE_LAYER.fullmatch(name)
    }


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
