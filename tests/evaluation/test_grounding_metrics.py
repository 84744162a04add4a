"""Accuracy of grounding, on boxes that can be counted by hand."""

import pytest

from vicha_hf.evaluation.grounding import grounding_accuracy, intersection_over_union


@pytest.mark.parametrize(
    ("box", "other", "overlap"),
    [
        ((0, 0, 4, 4), (0, 0, 4, 4), 1.0),
        ((0, 0, 4, 4), (2, 0, 4, 4), 8 / 24),
        ((0, 0, 10, 10), (2, 3, 4, 5), 20 / 100),
        ((0, 0, 4, 4), (3, 0, 4, 4), 0.0),  # one shared column of pixels
        ((0, 0, 4, 4), (10, 10, 4, 4), 0.0),
    ],
)
def test_overlap(box, other, overlap):
    assert intersection_over_union(box, other) == pytest.approx(overlap)
    assert intersection_over_union(other, box) == pytest.approx(overlap)


def test_overlap_against_counted_pixels():
    for x, y, width, height in [(1, 2, 5, 6), (3, 0, 4, 9), (2, 2, 3, 3), (0, 5, 8, 3)]:
        own = {(column, row) for column in range(x, x + width) for row in range(y, y + height)}
        other = {(column, row) for column in range(2, 9) for row in range(3, 8)}
        expected = len(own & other) / len(own | other)
        assert intersection_over_union((x, y, width, height), (2, 3, 7, 5)) == pytest.approx(expected)


def test_accuracy_of_each_split():
    right, half, wrong = (0, 0, 10, 10), (0, 0, 10, 5), (0, 0, 10, 4)
    chosen, splits = [right, half, wrong, None], ["val", "testA", "testA", "testB"]
    assert grounding_accuracy(chosen, [right] * 4, splits) == {"val": 1.0, "testA": 0.5, "testB": 0.0}


def test_one_of_each_per_expression():
    with pytest.raises(ValueError, match="per expression"):
        grounding_accuracy([None], [], ["val"])
