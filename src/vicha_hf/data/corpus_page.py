"""The page about a checked corpus: what is in it, and what is wrong with it."""

from collections.abc import Mapping
from html import escape
from pathlib import Path

from ..whole_files import MADE_BY_TAG, write_whole_file
from .corpus_check import CorpusCheck


_MOST_ROWS = 200
_BARS = 24
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .25rem .6rem; vertical-align: top;
border-bottom: 1px solid #dde3ea; overflow-wrap: anywhere; } td.number { text-align: right; white-space: nowrap; width: 6rem; }
.facts { display: flex; flex-wrap: wrap; gap: 1rem; } .fact { background: #f3f6f9; border-radius: .5rem; padding: .6rem 1rem; }
.fact b { display: block; font-size: 1.4rem; } .bad b { color: #b3261e; }
.bar { background: #2f6fb0; height: .8rem; border-radius: .2rem; min-width: 1px; } td.wide { width: 60%; }
"""


def write_corpus_page(check: CorpusCheck, title: str, path: Path) -> None:
    """Writes one HTML file that needs no other."""
    report = check.report
    facts = [
        ("records", report.num_read, False),
        ("usable", report.num_kept, False),
        ("not usable", report.num_skipped, report.num_skipped > 0),
        ("images", check.num_images, False),
        ("without concepts", check.concepts[0], False),
        ("near-duplicates across splits", len(check.duplicates), bool(check.duplicates)),
    ]
    parts = [
        f"<h1>{escape(title)}</h1>",
        '<div class="facts">',
        *(
            f'<div class="fact{" bad" if bad else ""}"><b>{value:,}</b>{escape(name)}</div>'
            for name, value, bad in facts
        ),
        "</div>",
        _counts("Problems", check.problems),
        _counts("Mended in usable records", report.notes),
        _counts("Fields that nothing reads", report.unknown_fields),
        _counts("Usable records by split", check.splits),
        _bars("Words of a text", check.words),
        _bars("Shorter side of an image, in pixels", check.sides),
        _bars("Concepts of a record", check.concepts),
        _rows(
            "Nearly equal images in different splits",
            ("image", "record", "image", "record"),
            [(one.first, one.first_where, one.second, one.second_where) for one in check.duplicates],
        ),
        _rows(
            "Records that cannot be used",
            ("record", "problem"),
            [(one.record, one.message) for one in report.rejected],
        ),
    ]
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8">{MADE_BY_TAG}<title>{escape(title)}</title>'
    body = "\n".join(part for part in parts if part)
    write_whole_file(path, f"{head}<style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n")


def _counts(title: str, counts: Mapping[str, int]) -> str:
    if not counts:
        return ""
    rows = "".join(
        f'<tr><td class="number">{count:,}</td><td>{escape(str(name))}</td></tr>' for name, count in counts.items()
    )
    return f"<h2>{escape(title)}</h2><table>{rows}</table>"


def _bars(title: str, counts: Mapping[int, int]) -> str:
    """A histogram over equal ranges."""
    if not counts:
        return ""
    lowest, highest = min(counts), max(counts)
    width = max(1, -(-(highest - lowest + 1) // _BARS))
    sums: dict[int, int] = {}
    for value, count in counts.items():
        start = lowest + (value - lowest) // width * width
        sums[start] = sums.get(start, 0) + count
    most = max(sums.values())
    rows = "".join(
        f'<tr><td class="number">{start if width == 1 else f"{start} to {start + width - 1}"}</td>'
        f'<td class="number">{sums[start]:,}</td>'
        f'<td class="wide"><div class="bar" style="width: {100 * sums[start] / most:.1f}%"></div></td></tr>'
        for start in sorted(sums)
    )
    return f"<h2>{escape(title)}</h2><table>{rows}</table>"


def _rows(title: str, names: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows[:_MOST_ROWS])
    more = f"<p>and {len(rows) - _MOST_ROWS:,} more</p>" if len(rows) > _MOST_ROWS else ""
    return f"<h2>{escape(title)}</h2><table><tr>{head}</tr>{body}</table>{more}"
