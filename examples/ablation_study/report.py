"""The report of a study: `ablation.md` with its tables, and `ablation.svg` with its plot."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from vicha_hf.whole_files import write_whole_file

from .summary import SCORE, Row, Verdict
from .variants import VARIANTS


PARTS = {
    "samples": "Equal samples",
    "seconds": "Equal seconds",
    "data": "Data efficiency",
    "filtered": "Best pairs against random pairs",
}
_EXPLANATIONS = {
    "samples": "Every run sees the same number of samples, in the batches of its recipe.",
    "seconds": "Every run takes the steps that fit into the seconds of the baseline's run. The seconds of a step are the "
    "medians of the runs above, as ratios of runs with one seed.",
    "data": "A random part of the training records, as many steps for each. Smaller parts lie within larger ones.",
    "filtered": "The pairs of image and caption with the highest cosine (`vicha-hf concepts filter`), beside as many "
    "random pairs; as many steps for each.",
}


def markdown(
    rows: Sequence[Row], verdicts: Sequence[Verdict], settings: Mapping[str, object], num_missing: int
) -> str:
    """The report as a Markdown page.

    Args:
        rows, verdicts: of the finished runs.
        settings: of the study, {name: value}.
        num_missing: runs that are still to be made.
    """
    lines = ["# Ablation", "", *(f"- {name}: {value}" for name, value in settings.items()), ""]
    if num_missing:
        lines += [f"{num_missing} runs are still to be made; the same command makes them.", ""]
    lines += [
        "R@1 in %, the mean of image to caption and caption to image; the mean over seeds and its 95 % interval "
        "(Student's t). Re-ranked scores are the match logit and the weighted similarity.",
        "",
    ]
    for part, title in PARTS.items():
        of_part = [row for row in rows if row.part == part]
        if not of_part:
            continue
        lines += [f"## {title}", "", _EXPLANATIONS[part], ""]
        for test in of_part[0].recalls:
            lines += [f"### {title}, {test}", "", *_table(of_part, test), ""]
        judged = [verdict for verdict in verdicts if verdict.part == part]
        if judged:
            lines += [f"### The papers' order, {title.lower()}", "", *_verdicts(judged), ""]
    return "\n".join(lines).rstrip() + "\n"


def _table(rows: Sequence[Row], test: str) -> list[str]:
    head = [
        "method",
        "training data",
        "steps",
        "seconds",
        "ms a step",
        "similarity",
        "re-ranked",
        "re-ranked, no concepts",
    ]
    lines = [f"| {' | '.join(head)} |", "|---|---|" + "---:|" * (len(head) - 2)]
    for row in rows:
        best, bare = row.best_fed(test), row.recalls[test]["no concepts"]
        cells = [
            VARIANTS[row.variant].title,
            row.data,
            f"{row.steps:,.0f}",
            f"{row.train_seconds:,.0f}",
            f"{1000 * row.seconds_per_step:,.0f}",
            str(best["similarity"]),
            str(best[SCORE]),
            str(bare[SCORE]) if len(row.recalls[test]) > 1 else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _verdicts(verdicts: Sequence[Verdict]) -> list[str]:
    lines = ["| a paper says | test | difference, points | here |", "|---|---|---:|---|"]
    for verdict in verdicts:
        better, worse = (VARIANTS[name].title for name in (verdict.claim.better, verdict.claim.worse))
        claim = f"{better} is above {worse} ({verdict.claim.source})"
        lines.append(f"| {claim} | {verdict.test} | {verdict.difference} | {verdict.outcome} |")
    return lines


def draw(rows: Sequence[Row], test: str, path: Path) -> None:
    """
    Draws the rows of all parts on one test file, with their intervals.

    Args:
        rows: of the finished runs; a part without rows gets no panel.
        test: stem of the test file.
        path: *.svg.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib
    from matplotlib.figure import Figure

    panels = [panel for panel in (_methods, _shares) if panel(rows, test, None)]
    figure = Figure(figsize=(6.4 * len(panels), 4.2), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        panel(rows, test, axes)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    drawn = io.StringIO()
    # The same figures give the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "ablation", "svg.fonttype": "none"}):
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    write_whole_file(path, drawn.getvalue())


def _methods(rows: Sequence[Row], test: str, axes) -> bool:
    """R@1 of every method at equal samples and at equal seconds; tells whether there is anything to draw."""
    shown = {part: [row for row in rows if row.part == part] for part in ("samples", "seconds")}
    names = [name for name in VARIANTS if any(row.variant == name for part in shown.values() for row in part)]
    if axes is None or not names:
        return bool(names)
    for offset, (part, of_part) in zip((0.12, -0.12), shown.items(), strict=True):
        if of_part:
            places = [len(names) - 1 - names.index(row.variant) + offset for row in of_part]
            estimates = [row.best_fed(test)[SCORE] for row in of_part]
            axes.errorbar(
                [estimate.mean for estimate in estimates],
                places,
                xerr=[estimate.half or 0 for estimate in estimates],
                fmt="o",
                capsize=3,
                label=PARTS[part].lower(),
            )
    axes.set_yticks(range(len(names)), [VARIANTS[name].title for name in reversed(names)])
    axes.set_xlabel(f"R@1 re-ranked, % ({test})")
    return True


def _shares(rows: Sequence[Row], test: str, axes) -> bool:
    """R@1 over the share of the corpus, for each method, with the best pairs beside the random ones."""
    of_parts = [row for row in rows if row.part in ("data", "filtered")]
    if axes is None or not of_parts:
        return bool(of_parts)
    lines: dict[tuple[str, str], list[tuple[float, Row]]] = {}
    for row in of_parts:
        kind, share = share_of(row.data)
        lines.setdefault((row.variant, kind), []).append((share, row))
    for (variant, kind), points in lines.items():
        points = sorted(points, key=lambda point: point[0])
        estimates = [row.best_fed(test)[SCORE] for _, row in points]
        axes.errorbar(
            [share for share, _ in points],
            [estimate.mean for estimate in estimates],
            yerr=[estimate.half or 0 for estimate in estimates],
            fmt="o-" if kind == "records" else "s",
            capsize=3,
            label=_short_title(variant) + ("" if kind == "records" else f", {kind}"),
        )
    axes.set_xlabel("training data, % of the corpus")
    axes.set_ylabel(f"R@1 re-ranked, % ({test})")
    return True


def share_of(data: str) -> tuple[str, float]:
    """`"best pairs 50 %"` -> `("best pairs", 50.0)`; all of the data are 100 % of the records."""
    if data == "all":
        return "records", 100.0
    *words, number, _ = data.split()
    return " ".join(words).removeprefix("random ") if "records" in words else " ".join(words), float(number)


def _short_title(variant: str) -> str:
    return VARIANTS[variant].title.rpartition("= ")[2]
