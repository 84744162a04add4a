"""Block-wise masks: equal to the obvious version for equal draws, and with the properties that the paper asks for."""

import pytest
import torch
from block_mask_obvious import RecordedDraws, obvious_block_mask

from vicha_hf.models.random_draws import check_block_mask, draw_block_masks


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("grid", "options"),
    [
        ((16, 16), {}),
        ((16, 16), {"min_aspect": 0.5}),
        ((7, 12), {"max_masked": 30, "min_block": 5}),
        ((6, 6), {"max_masked": 11, "min_block": 4}),
    ],
)
def test_equals_the_obvious_version_for_equal_draws(grid, options, monkeypatch):
    turns, rand = [], torch.rand

    def recorded(*size, **kwargs):
        turns.append(rand(*size, **kwargs))
        return turns[-1]

    monkeypatch.setattr(torch, "rand", recorded)
    masks = draw_block_masks(40, grid, **options)
    options = {"max_masked": 75, "min_block": 16, "min_aspect": 0.3, **options}
    for image, mask in enumerate(masks):
        draws = RecordedDraws(turn[image].tolist() for turn in turns)
        expected = obvious_block_mask(draws, *grid, **options)
        assert mask.reshape(grid).int().tolist() == expected


def test_counts_on_the_papers_grid():
    masks = draw_block_masks(4000, 16)
    assert masks.shape == (4000, 256)
    assert masks.dtype == torch.bool
    counts = masks.sum(dim=1)
    assert counts.max() == 75
    assert counts.min() > 55
    assert abs(counts.float().mean() - 74.35) < 0.1
    assert abs((counts == 75).float().mean() - 0.628) < 0.04


def test_a_single_block_has_the_area_and_the_shape_that_were_asked_for():
    # The second block finds no room: one patch is missing at most, and blocks have 16 patches or more.
    masks = draw_block_masks(500, 16, max_masked=40, min_block=40).reshape(500, 16, 16)
    areas, aspects = [], []
    for mask in masks:
        rows, columns = mask.any(dim=1), mask.any(dim=0)
        height, width = int(rows.sum()), int(columns.sum())
        if int(mask.sum()) == height * width:
            areas.append(height * width)
            aspects.append(height / width)
    assert len(areas) > 200
    # Rounding of both sides to whole patches moves area and shape a little.
    assert min(areas) > 32 and max(areas) <= 40
    assert min(aspects) < 0.5 and max(aspects) > 2
    assert min(aspects) > 0.2 and max(aspects) < 5


def test_every_patch_is_hidden_sometimes_and_the_middle_not_always():
    share = draw_block_masks(2000, 16).float().mean(dim=0).reshape(16, 16)
    assert share.min() > 0.01
    assert share.max() < 0.7
    # No direction is preferred.
    assert (share - share.flip(0)).abs().max() < 0.08
    assert (share - share.flip(1)).abs().max() < 0.08
    assert (share - share.T).abs().max() < 0.08


def test_draws_come_from_the_global_generator():
    first = draw_block_masks(8, 16)
    second = draw_block_masks(8, 16)
    torch.manual_seed(0)
    assert torch.equal(first, draw_block_masks(8, 16))
    assert not torch.equal(first, second)
    assert not (first[0] == first[1:]).all(dim=1).any()


def test_an_empty_batch():
    assert draw_block_masks(0, 16).shape == (0, 256)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"grid_size": 1}, "`grid_size=1`: a grid of 1 x 1"),
        ({"max_masked": 256}, "`max_masked=256` must be at least 1 and leave some of the 16 x 16"),
        ({"max_masked": 0}, "`max_masked=0`"),
        ({"min_block": 76}, "`min_block=76` must lie between 1 and `max_masked=75`"),
        ({"min_block": 0}, "`min_block=0`"),
        ({"min_aspect": 0.0}, "`min_aspect=0.0` is the smaller side over the larger"),
        ({"min_aspect": 2.0}, "`min_aspect=2.0` is the smaller side over the larger"),
        ({"grid_size": 4, "max_masked": 14, "min_block": 14}, "`min_block=14`: no rectangle"),
        ({"grid_size": (2, 12), "max_masked": 10, "min_block": 8}, "`min_block=8`: no rectangle"),
    ],
)
def test_impossible_values_are_named(options, words):
    options = {"grid_size": 16, "max_masked": 75, "min_block": 16, **options}
    with pytest.raises(ValueError, match=words):
        check_block_mask(**options)
    with pytest.raises(ValueError, match=words):
        draw_block_masks(2, options.pop("grid_size"), **options)


def test_a_negative_batch_is_an_error():
    with pytest.raises(ValueError, match="batch_size=-1"):
        draw_block_masks(-1, 16)
