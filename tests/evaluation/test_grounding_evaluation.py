"""Pointing, chance and splits of the grounding evaluation, by hand."""

import pytest
import torch

from vicha_hf.evaluation.grounding import choose_grounding_method, grounding_metrics, hottest_points, points_into


def test_the_hottest_pixel_is_found_in_the_image_and_no_heat_points_nowhere():
    heatmaps = torch.zeros(3, 4, 4)
    heatmaps[0, 1, 2] = 1.0
    heatmaps[1, 3, 0] = 1.0
    points = hottest_points(heatmaps, [(40, 80), (40, 40), (40, 40)])
    # The middle of the patch of row 1, column 2, each 10 x 20 pixels.
    assert abs(points[0][0] - 50) <= 1 and abs(points[0][1] - 15) <= 1
    assert points[1][0] < 10 and points[1][1] >= 30
    assert points[2] is None


@pytest.mark.parametrize(
    ("point", "hit"), [((4, 4), True), ((23, 13), True), ((24, 13), False), ((3, 4), False), (None, False)]
)
def test_a_point_lies_in_a_box_or_not(point, hit):
    assert points_into(point, (4, 4, 20, 10)) is hit


def test_metrics_by_split_with_what_chance_would_do():
    def entry(split, iou, pointing, random_proposal):
        chances = {"random_proposal": random_proposal, "best_iou": 0.9, "random_pixel": 0.25}
        return {"split": split, "itm": {"iou": iou, "pointing": pointing}} | chances

    entries = [entry("val", 0.5, True, 0.5), entry("val", 0.49, True, 0.0), entry("testA", 0.9, False, 0.25)]
    metrics = grounding_metrics(entries, ["itm"])
    assert metrics["accuracy_itm"] == metrics["pointing_itm"] == pytest.approx(200 / 3)
    assert metrics["accuracy_random_proposal"] == 25.0 and metrics["accuracy_best_proposal"] == 100.0
    assert (metrics["accuracy_itm_val"], metrics["accuracy_itm_testA"]) == (50.0, 100.0)
    assert (metrics["pointing_itm_val"], metrics["pointing_itm_testA"]) == (100.0, 0.0)
    assert metrics["num_expressions_val"] == 2
    assert "accuracy_itm_val" not in grounding_metrics(entries[:2], ["itm"])


def test_the_better_method_is_chosen():
    def metrics(itm, itc, pointing_itm=0.0, pointing_itc=0.0):
        return {"accuracy_itm": itm, "accuracy_itc": itc, "pointing_itm": pointing_itm, "pointing_itc": pointing_itc}

    assert choose_grounding_method(metrics(30.0, 40.0)) == "itc"
    assert choose_grounding_method(metrics(40.0, 30.0, 0.0, 90.0)) == "itm"
    assert choose_grounding_method(metrics(40.0, 40.0, 10.0, 20.0)) == "itc"
    assert choose_grounding_method(metrics(40.0, 40.0)) == "itm"
