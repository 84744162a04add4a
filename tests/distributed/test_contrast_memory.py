"""Contrast over two processes holds the own rows only: nothing of the size of the whole batch squared is ever made."""

import pytest
import torch
from real_processes import run_in_processes
from torch.utils._python_dispatch import TorchDispatchMode

from vicha_hf.models.feature_queue import FeatureQueue
from vicha_hf.models.objective_hierarchical_itc import HierarchicalContrast
from vicha_hf.models.objective_itc import ImageTextContrast


# No two of these products are equal, so that a shape tells what it is.
WORLD_SIZE, BATCH, WIDTH, QUEUE = 2, 6, 8, 11
PER_RANK = BATCH // WORLD_SIZE


class Shapes(TorchDispatchMode):
    """The shapes of everything that is computed, backward passes included."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, torch.Tensor):
                self.seen.add(tuple(value.shape))
        return result


def unit_rows(seed, rows=BATCH):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, WIDTH, generator=generator), dim=-1)


def contrast(rows):
    """Both contrasts of some rows of the batch: similarities, losses, gradients, and the shapes that came up."""
    images, texts = (unit_rows(seed)[rows].requires_grad_() for seed in (0, 1))
    queue = FeatureQueue(QUEUE, WIDTH)
    queue.image_features.copy_(unit_rows(5, QUEUE))
    queue.text_features.copy_(unit_rows(6, QUEUE))
    queue.num_filled.fill_(QUEUE)
    torch.manual_seed(0)
    hierarchical = HierarchicalContrast(WIDTH, WIDTH, WIDTH, num_levels=2)
    temperature = torch.full((1,), 0.1)
    with Shapes() as shapes:
        top = ImageTextContrast()(
            images, texts, unit_rows(2)[rows], unit_rows(3)[rows], temperature, 0.4, queue, torch.arange(BATCH)[rows]
        )
        levels = hierarchical([images, images], [texts, texts], temperature, torch.arange(BATCH)[rows])
        (top.loss + levels.loss).backward()
    return {
        "sim_i2t": top.sim_i2t.detach(),
        "level_sim_t2i": levels.sim_t2i[1].detach(),
        "loss": torch.stack([top.loss, levels.loss]).detach(),
        "images.grad": images.grad,
        "texts.grad": texts.grad,
        "shapes": sorted(shapes.seen),
    }


def contrast_of_part(rank):
    return contrast(slice(rank * PER_RANK, (rank + 1) * PER_RANK))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return run_in_processes(contrast_of_part, tmp_path_factory.mktemp("ranks"), WORLD_SIZE)


def test_each_process_holds_its_rows_of_the_matrix(ranks):
    whole = contrast(slice(0, BATCH))
    assert (BATCH, BATCH) in whole["shapes"]
    for record in ranks:
        assert record["sim_i2t"].shape == (PER_RANK, BATCH + QUEUE)
        assert record["level_sim_t2i"].shape == (PER_RANK, BATCH)
        assert (BATCH, BATCH) not in record["shapes"] and (BATCH, BATCH + QUEUE) not in record["shapes"]
    for name in ("sim_i2t", "level_sim_t2i"):
        torch.testing.assert_close(torch.cat([record[name] for record in ranks]), whole[name])


def test_losses_and_gradients_are_those_of_the_whole_matrix(ranks):
    whole = contrast(slice(0, BATCH))
    torch.testing.assert_close(sum(record["loss"] for record in ranks) / WORLD_SIZE, whole["loss"])
    for name in ("images.grad", "texts.grad"):
        # The mean over processes is the loss: each process's gradient counts half.
        torch.testing.assert_close(torch.cat([record[name] for record in ranks]) / WORLD_SIZE, whole[name])
