"""One HTML file about one run: what it was, how the losses went, what the model retrieves."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from ..evaluation.recall import CUTOFFS, DIRECTIONS
from ..whole_files import MADE_BY_TAG, write_whole_file
from .gallery import CaptionQuery, ImageQuery, caption_query_html, image_query_html
from .line_chart import line_chart
from .result import Result


# What a reader sees for the names of the training log, in the order of the charts.
LOSS_TITLES = {
    "loss": "Total",
    "itc_loss": "Image-text contrast (ITC)",
    "hierarchical_itc_loss": "Hierarchical contrast (H-ITC)",
    "itm_loss": "Image-text matching (ITM)",
    "mlm_loss": "Masked words (MLM)",
    "mim_loss": "Masked patches (MIM)",
    "psl_loss": "Pseudo-labelled keywords (PSL)",
}


@dataclass
class RunReport:
    """Everything that the page shows.

    Args:
        title: headline.
        summary: one or two sentences below it.
        tiles: figures that a reader should see first: (figure, what it is).
        results: one block of the table each.
        log: the training log, one mapping per logged step with `step` and the losses.
        caption_queries: shown with their images.
        image_queries: shown with their captions.
        sections: further sections as HTML, such as `keyword_section_html` and `attention_section_html` give.
        first_sections: the same, before the losses.
        facts: tables of facts about the run: {heading: {name: value}}.
        config: the model's configuration, shown folded.
        credits: whose work the images are.
    """

    title: str
    summary: str
    tiles: Sequence[tuple[str, str]]
    results: Sequence[Result]
    log: Sequence[Mapping[str, Any]]
    caption_queries: Sequence[CaptionQuery] = ()
    image_queries: Sequence[ImageQuery] = ()
    sections: Sequence[str] = ()
    first_sections: Sequence[str] = ()
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    credits: str = ""

    def to_html(self) -> str:
        """The page: self-contained, readable in a light and a dark theme, wide or narrow."""
        css = resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")
        body = "".join(
            [
                f"<h1>{escape(self.title)}</h1><p class=soft>{escape(self.summary)}</p>",
                _tiles(self.tiles),
                _results_section(self.results) if self.results else "",
                *self.first_sections,
                _losses_section(self.log),
                _gallery_section(self.caption_queries, self.image_queries),
                *self.sections,
                _facts_section(self.facts, self.config),
                f"<p class=note>{escape(self.credits)}</p>" if self.credits else "",
            ]
        )
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"{MADE_BY_TAG}<title>{escape(self.title)}</title><style>{css}</style></head><body><main>{body}</main></body></html>\n"
        )

    def write(self, path: str | Path) -> Path:
        """Writes the page to `path`, whole or not at all (its folder is made if need be)."""
        path = Path(path)
        write_whole_file(path, self.to_html())
        return path


def _tiles(tiles: Sequence[tuple[str, str]]) -> str:
    cells = "".join(
        f'<div class="tile"><b>{escape(figure)}</b><span>{escape(what)}</span></div>' for figure, what in tiles
    )
    return f'<div class="tiles">{cells}</div>'


def _results_section(results: Sequence[Result]) -> str:
    header = (
        "<thead><tr><th class=row rowspan=2>Gallery</th><th class=row rowspan=2>Stage</th>"
        '<th class="group gap" colspan=3>image &rarr; captions</th>'
        '<th class="group gap" colspan=3>caption &rarr; images</th></tr><tr>'
        + "".join(f"<th{' class=gap' if k == CUTOFFS[0] else ''}>R@{k}</th>" for _ in range(2) for k in CUTOFFS)
        + "</tr></thead>"
    )
    rows = []
    for result in results:
        sizes = f"{result.metrics['num_images']} images, {result.metrics['num_captions']} captions"
        heading = f"{escape(result.title)}<small>{escape(result.remark)}</small><small>{sizes}</small>"
        rows.append(
            f'<tr class="first main"><th class=block rowspan=4>{heading}</th><td class=row>re-ranked</td>'
            f"{_recall_cells(result.metrics, 'r{k}_{way}')}</tr>"
            f"<tr><td class=row>match alone</td>{_recall_cells(result.metrics, 'r{k}_{way}_match_only')}</tr>"
            f"<tr><td class=row>similarity alone</td>{_recall_cells(result.metrics, 'r{k}_{way}_itc_only')}</tr>"
            f"<tr class=chance><td class=row>chance</td>{_recall_cells(result.metrics, 'chance_r{k}_{way}')}</tr>"
        )
    return (
        "<h2>Retrieval</h2><p class=note>Recall at K in %: how often the right one is among the K best. Chance is "
        "the recall of a ranking drawn at random. Re-ranked: match logit plus the weighted similarity.</p>"
        f'<div class="scroll"><table>{header}<tbody>{"".join(rows)}</tbody></table></div>'
    )


def _recall_cells(metrics: Mapping[str, float], pattern: str) -> str:
    return "".join(
        f"<td{' class=gap' if k == CUTOFFS[0] else ''}>{metrics[pattern.format(k=k, way=way)]:.1f}</td>"
        for way in DIRECTIONS
        for k in CUTOFFS
    )


def _losses_section(log: Sequence[Mapping[str, Any]]) -> str:
    figures = []
    for name, title in LOSS_TITLES.items():
        points = [(entry["step"], entry[name]) for entry in log if entry.get(name) is not None]
        if len(points) < 2:
            continue
        steps, values = zip(*points, strict=True)
        chart = line_chart(steps, values, x_label="step", description=f"{title} loss over the training steps")
        figures.append(
            f"<figure><figcaption>{escape(title)}<span>{values[0]:.3g} &rarr; {values[-1]:.3g}</span></figcaption>"
            f"{chart}</figure>"
        )
    if not figures:
        return ""
    return (
        "<h2>Training losses</h2><p class=note>Faint: as logged. Strong: running mean. Each chart has its own "
        f'scale.</p><div class="charts">{"".join(figures)}</div>'
    )


def _gallery_section(caption_queries: Sequence[CaptionQuery], image_queries: Sequence[ImageQuery]) -> str:
    if not caption_queries and not image_queries:
        return ""
    parts = [
        "<h2>What it retrieves</h2><p class=note>Held-out queries at even distances through the gallery, not "
        "picked by hand. The right one is marked.</p>"
    ]
    if caption_queries:
        parts.append("<h3>Captions and the images they find</h3>")
        parts.append(f'<div class="queries pairs">{"".join(map(caption_query_html, caption_queries))}</div>')
    if image_queries:
        parts.append("<h3>Images and the captions they find</h3>")
        parts.append(f'<div class="queries pairs">{"".join(map(image_query_html, image_queries))}</div>')
    return "".join(parts)


def _facts_section(facts: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any] | None) -> str:
    sections = "".join(
        f"<section><h3>{escape(heading)}</h3><dl>"
        + "".join(
            f"<div><dt>{escape(str(name))}</dt><dd>{escape(_plain(value))}</dd></div>" for name, value in table.items()
        )
        + "</dl></section>"
        for heading, table in facts.items()
    )
    folded = ""
    if config is not None:
        text = escape(json.dumps(config, indent=2, default=str))
        folded = f"<details><summary>Model configuration</summary><pre>{text}</pre></details>"
    if not sections and not folded:
        return ""
    return f'<h2>The run</h2><div class="facts">{sections}</div>{folded}'


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return str(value)
