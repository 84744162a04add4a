"""The figures of an evaluation that a reader wants first, beside those of chance."""

from collections.abc import Mapping


# The figure that says what a metric is without looking.
CHANCE = {
    "r1_i2t": "chance_r1_i2t",
    "r1_t2i": "chance_r1_t2i",
    "accuracy": "majority_accuracy",
    "accuracy_itm": "accuracy_random_proposal",
    "accuracy_itc": "accuracy_random_proposal",
}
# Figures that depend on the data alone and so never change in a run.
CONSTANT = ("chance_", "num_", "majority_", "accuracy_random_", "accuracy_best_", "pointing_random_")
# How it was evaluated, which is neither reached nor known by the data.
SETTINGS = ("vqa_rules", "rerank_similarity_weight")


def first_figures(metrics: Mapping[str, object], primary: str) -> list[tuple[str, float, float | None]]:
    """
    Name, value and chance of the primary metric and of those that have a chance; None where there is no chance.

    Args:
        metrics: of an evaluation.
        primary: the metric that chooses the best model.
    """
    names = dict.fromkeys(name for name in (primary, *CHANCE) if isinstance(metrics.get(name), int | float))
    return [(name, float(metrics[name]), _number(metrics.get(CHANCE.get(name, "")))) for name in names]


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
        if isinstance(value, int | float) and not name.startswith((*CONSTANT, *SETTINGS))
    }


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
