"""The chart's arithmetic and its SVG."""

import xml.etree.ElementTree as ElementTree

import pytest

from vicha_hf.reporting.line_chart import line_chart, nice_ticks, running_mean


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 2.5, 5, 7.5, 10]), (0.13, 0.87, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (3, 3, [2.5, 2.75, 3, 3.25, 3.5])],
)
def test_ticks_are_round_and_enclose_the_values(low, high, expected):
    assert nice_ticks(low, high, 4) == pytest.approx(expected)


def test_ticks_inside():
    assert nice_ticks(7, 1194, 4, inside=True) == [500, 1000]


def test_running_mean_is_shorter_at_the_ends():
    assert running_mean([0, 3, 6, 9], 1) == [1.5, 3, 6, 7.5]
    assert running_mean([5, 7], 0) == [5, 7]


def test_the_curve_goes_where_the_values_go():
    svg = line_chart([1, 2, 3], [4.0, 2.0, 3.0], x_label="step", description='loss & "more"')
    root = ElementTree.fromstring(svg)
    assert root.attrib["aria-label"] == 'loss & "more"'
    raw = next(line for line in root.iter("polyline") if line.attrib["class"] == "raw")
    points = [tuple(map(float, point.split(","))) for point in raw.attrib["points"].split()]
    assert points[0][0] < points[1][0] < points[2][0]
    assert points[0][1] < points[2][1] < points[1][1]  # y points down: the largest value is the highest point


@pytest.mark.parametrize("chance", [0.5, 33.0, 90.0])
def test_chance_is_drawn_wherever_it_lies(chance):
    svg = line_chart(
        [1, 2], [30.0, 36.0], x_label="step", description="recall", reference=chance, reference_label="chance"
    )
    root = ElementTree.fromstring(svg)
    height = float(next(line for line in root.iter("line") if line.attrib["class"] == "reference").attrib["y1"])
    (raw,) = (line for line in root.iter("polyline") if line.attrib["class"] == "raw")
    first, last = (float(point.split(",")[1]) for point in raw.attrib["points"].split())
    # y points down.
    assert (height > first, height < last) == (chance < 30, chance > 36)


@pytest.mark.parametrize(("x", "y"), [([], []), ([1, 2], [1.0]), ([1], [float("nan")])])
def test_what_is_no_line_is_an_error(x, y):
    with pytest.raises(ValueError, match="the loss"):
        line_chart(x, y, x_label="step", description="the loss")
