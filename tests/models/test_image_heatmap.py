"""Heat maps on images."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model_folder import tiny_processor

from vicha_hf.models.image_heatmap import overlay_heatmap


IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8))


def test_the_hot_corner_is_coloured_and_the_cold_one_untouched(tmp_path):
    heatmap = torch.zeros(4, 4)
    heatmap[0, 3] = 2.0
    shown = tiny_processor(tmp_path).overlay_heatmap(IMAGE, heatmap, opacity=1.0)
    assert shown.size == IMAGE.size and shown.mode == "RGB"
    before, after = np.asarray(IMAGE), np.asarray(shown)
    assert np.array_equal(before[-6:, :10], after[-6:, :10])
    assert np.abs(after[1, -2].astype(int) - (255, 255, 160)).max() < 60
    changed = (before != after).any(axis=-1)
    assert changed[:6, -10:].mean() > 0.9


@pytest.mark.parametrize("heatmap", [np.zeros((3, 3)), -np.ones((2, 5)), torch.ones(3, 3)])
def test_no_heat_and_no_opacity_change_nothing(heatmap):
    opacity = 0.0 if float(heatmap.max()) > 0 else 0.9
    assert np.array_equal(np.asarray(overlay_heatmap(IMAGE, heatmap, opacity)), np.asarray(IMAGE))


def test_any_mode_of_image():
    assert overlay_heatmap(IMAGE.convert("L"), torch.rand(2, 2)).mode == "RGB"


@pytest.mark.parametrize(
    ("heatmap", "opacity", "message"),
    [
        (torch.zeros(1, 4, 4), 0.5, r"\[h, w\]"),
        (torch.full((2, 2), float("nan")), 0.5, "finite"),
        (torch.zeros(2, 2), 1.5, "opacity"),
    ],
)
def test_what_cannot_be_shown(heatmap, opacity, message):
    with pytest.raises(ValueError, match=message):
        overlay_heatmap(IMAGE, heatmap, opacity)
