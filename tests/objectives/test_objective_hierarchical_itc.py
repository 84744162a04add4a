"""Hierarchical contrast against a loop over levels and pairs."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from vicha_hf.models.objective_hierarchical_itc import HierarchicalContrast


LEVELS, BATCH, VISION, TEXT, WIDTH, TEMPERATURE = 3, 5, 8, 6, 4, 0.2


def build(level_weights=None):
    torch.manual_seed(0)
    objective = HierarchicalContrast(VISION, TEXT, WIDTH, LEVELS, level_weights)
    images = [torch.randn(BATCH, VISION, requires_grad=True) for _ in range(LEVELS)]
    texts = [torch.randn(BATCH, TEXT, requires_grad=True) for _ in range(LEVELS)]
    return objective, images, texts


def loop_level(rows, columns, ids):
    total = 0.0
    for row in range(BATCH):
        candidates = [column for column in range(BATCH) if column == row or ids is None or ids[row] != ids[column]]
        logits = {column: float(rows[row] @ columns[column]) / TEMPERATURE for column in candidates}
        total += math.log(sum(math.exp(logit) for logit in logits.values())) - logits[row]
    return total / BATCH


@pytest.mark.parametrize("level_weights", [None, [0.2, 0.0, 3.0]])
@pytest.mark.parametrize("ids", [None, [1, 2, 1, 3, 2], [4] * BATCH], ids=["no ids", "same images", "one image"])
def test_every_level_equals_a_loop(ids, level_weights):
    objective, images, texts = build(level_weights)
    observed = objective(images, texts, torch.tensor([TEMPERATURE]), None if ids is None else torch.tensor(ids))
    expected = []
    for level in range(LEVELS):
        image_embeds = normalize(objective.vision_projections[level](images[level]), dim=-1).detach()
        text_embeds = normalize(objective.text_projections[level](texts[level]), dim=-1).detach()
        expected.append((loop_level(image_embeds, text_embeds, ids) + loop_level(text_embeds, image_embeds, ids)) / 2)
    assert [loss.item() for loss in observed.level_losses] == pytest.approx(expected, abs=1e-5)
    weights = level_weights or [1.0] * LEVELS
    assert observed.loss.item() == pytest.approx(
        sum(weight * loss for weight, loss in zip(weights, expected, strict=True)), abs=1e-5
    )


def test_gradient_flows_through_both_sides():
    objective, images, texts = build()
    output = objective(images, texts, torch.tensor(TEMPERATURE))
    # Row 0 of the image-to-text direction alone: its keys are the texts, and all of them must hear of it.
    (-output.sim_i2t[0][0].log_softmax(dim=0)[0]).backward()
    assert (texts[0].grad.abs().sum(dim=1) > 0).all()
    assert images[0].grad[0].abs().sum() > 0 and (images[0].grad[1:] == 0).all()
    assert texts[1].grad is None


def test_each_level_has_projections_of_its_own():
    objective, images, texts = build([0.0, 1.0, 0.0])
    objective(images, texts, torch.tensor(TEMPERATURE)).loss.backward()
    moved = [layer.weight.grad.abs().sum().item() > 0 for layer in objective.vision_projections]
    assert moved == [False, True, False]
