"""Metrics of a run's evaluations over its steps, as a section of a page."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..evaluation.beside_chance import first_figures
from .line_chart import line_chart


def evaluation_curves_html(log: Sequence[Mapping[str, Any]], primary: str) -> str:
    """
    A chart for each of the first figures, chance as a dashed line; "" with fewer than two evaluations.

    Args:
        log: of the run.
        primary: metric that chose the best model.
    """
    evaluations = [(record["step"], record["evaluation"]) for record in log if record.get("evaluation")]
    if len(evaluations) < 2:
        return ""
    charts = []
    for name, _, chance in first_figures(evaluations[-1][1], primary):
        points = [(step, metrics[name]) for step, metrics in evaluations if name in metrics]
        if len(points) < 2:
            continue
        steps, values = zip(*points, strict=True)
        chart = line_chart(
            steps,
            values,
            x_label="step",
            description=f"{name} over the training steps",
            reference=chance,
            reference_label="chance",
        )
        charts.append(
            f"<figure><figcaption>{escape(name)}<span>{values[0]:.1f} &rarr; {values[-1]:.1f}</span></figcaption>"
            f"{chart}</figure>"
        )
    return f'<h2>Evaluations</h2><p class=note>In %.</p><div class="charts">{"".join(charts)}</div>'
