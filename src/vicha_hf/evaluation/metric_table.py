"""The metrics of an evaluation as a card shows them: chance and other stages beside each one, sizes below."""

import re
from collections.abc import Mapping

from .beside_chance import CONSTANT, OF_ONE_LAYER, SETTINGS, chance_of
from .recall import DIRECTIONS


TEXTS_ALONE = "text_only_"
_VALUE = "value"
# Ending of a name -> its column.
_STAGES = {"_match_only": "matching alone", "_itc_only": "similarity alone"}
_RECALL = re.compile(rf"r(\d+|_mean)_({'|'.join(DIRECTIONS)})")


def metric_table(metrics: Mapping[str, object]) -> str:
    """
    A Markdown table with a row for each metric, and a line with the sizes and settings.

    Args:
        metrics: of an evaluation, shares in %.
    """
    rows: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        if (
            isinstance(value, float)
            and not name.startswith((*CONSTANT, *SETTINGS))
            and not OF_ONE_LAYER.fullmatch(name)
        ):
            row, column = _place(name)
            if not row.startswith(CONSTANT):
                rows.setdefault(row, {})[column] = value
    for name, row in rows.items():
        chance = chance_of(metrics, name)
        if chance is not None:
            row["chance"] = chance
    if not rows:
        return _facts(metrics)
    columns = [
        column
        for column in (_VALUE, *_STAGES.values(), "texts alone", "chance")
        if any(column in row for row in rows.values())
    ]
    lines = [f"| metric | {' | '.join(columns)} |", f"|---{'|---:' * len(columns)}|"]
    for name, row in rows.items():
        cells = (f"{row[column]:.2f}" if column in row else "" for column in columns)
        lines.append(f"| {_title(name)} | {' | '.join(cells)} |")
    return "\n".join([*lines, *(["", facts] if (facts := _facts(metrics)) else [])])


def _place(name: str) -> tuple[str, str]:
    """Row and column of a metric."""
    if name.startswith(TEXTS_ALONE):
        return name.removeprefix(TEXTS_ALONE), "texts alone"
    for ending, column in _STAGES.items():
        if name.endswith(ending):
            return name.removesuffix(ending), column
    return name, _VALUE


def _title(name: str) -> str:
    if name == "r_mean":
        return "mean of all R@K"
    recall = _RECALL.fullmatch(name)
    if recall is None:
        return name.replace("_", " ")
    return f"{'mean of R@K' if recall[1] == '_mean' else f'R@{recall[1]}'}, {DIRECTIONS[recall[2]]}"


def _facts(metrics: Mapping[str, object]) -> str:
    sizes = [f"{value:,} {name[4:].replace('_', ' ')}" for name, value in metrics.items() if name.startswith("num_")]
    best = [
        f"best {name.removeprefix('accuracy_best_').replace('_', ' ')} {value:.2f}"
        for name, value in metrics.items()
        if name.startswith("accuracy_best_")
    ]
    settings = [f"{name.replace('_', ' ')} {value}" for name, value in metrics.items() if name in SETTINGS]
    listed = ", ".join([*sizes, *best, *settings])
    said = [f"Evaluated: {listed}."] if listed else []
    if "majority_accuracy" in metrics:
        said.append("Chance is the accuracy of the most frequent answer.")
    return " ".join(said)
