"""A line chart as inline SVG; its colours are the page's CSS variables, so it follows the theme."""

import math
from collections.abc import Sequence
from html import escape


WIDTH, HEIGHT = 340, 200
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 26


def line_chart(
    x: Sequence[float],
    y: Sequence[float],
    *,
    x_label: str,
    description: str,
    reference: float | None = None,
    reference_label: str = "",
) -> str:
    """One series: the values faint, their running mean strong.

    Args:
        x: positions, increasing.
        y: finite values, one for each position.
        x_label: what the horizontal axis counts.
        description: what the chart shows, for readers who do not see it.
        reference: a value marked by a dashed line, such as chance.
        reference_label: what that line is.

    Returns:
        An `<svg>` element.

    Raises:
        ValueError: no points, unequal lengths, or a value that is not finite.
    """
    if not x or len(x) != len(y):
        raise ValueError(f"{description}: {len(x)} positions and {len(y)} values do not make a line")
    if not all(map(math.isfinite, y)):
        raise ValueError(f"{description}: a value is not finite")
    shown = y if reference is None else (*y, reference)
    ticks = nice_ticks(min(shown), max(shown), 4)
    x_ticks = nice_ticks(x[0], x[-1], 4, inside=True)
    x_scale = _scale(x[0], x[-1], LEFT, WIDTH - RIGHT)
    y_scale = _scale(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP)

    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(description, quote=True)}">'
    ]
    for tick in ticks:
        at = y_scale(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{at + 3.5:.1f}" text-anchor="end">{_short(tick)}</text>')
    for tick in x_ticks:
        parts.append(
            f'<text class="tick" x="{x_scale(tick):.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">'
            f"{_short(tick)}</text>"
        )
    parts.append(f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 1}" text-anchor="end">{escape(x_label)}</text>')
    if reference is not None:
        at = y_scale(reference)
        parts.append(f'<line class="reference" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{WIDTH - RIGHT}" y="{at - 4:.1f}" text-anchor="end">'
            f"{escape(reference_label)}</text>"
        )
    smooth = running_mean(y, len(y) // 20)
    for css_class, values in (("raw", y), ("line", smooth)):
        points = " ".join(f"{x_scale(a):.1f},{y_scale(b):.1f}" for a, b in zip(x, values, strict=True))
        parts.append(f'<polyline class="{css_class}" points="{points}"/>')
    parts.append(f'<circle class="end" cx="{x_scale(x[-1]):.1f}" cy="{y_scale(smooth[-1]):.1f}" r="3"/>')
    return "".join([*parts, "</svg>"])


def running_mean(values: Sequence[float], reach: int) -> list[float]:
    """Mean over each value and its `reach` neighbours on either side (fewer at the ends)."""
    means = []
    for index in range(len(values)):
        window = values[max(0, index - reach) : index + reach + 1]
        means.append(sum(window) / len(window))
    return means


def nice_ticks(low: float, high: float, about: int, inside: bool = False) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten) that enclose [low, high], or lie `inside` it."""
    if high <= low:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    if inside:
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    else:
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def _scale(low: float, high: float, start: float, end: float):
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _short(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.5g}"
