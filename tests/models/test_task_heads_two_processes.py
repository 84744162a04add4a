"""Fine-tuning in two processes with half of the batch each gives the loss and the gradients of the whole batch."""

import pytest
import torch
from head_checks import step_inputs, tiny_head
from real_processes import run_in_processes
from tiny_models import assert_same, gradients
from torch.nn.parallel import DistributedDataParallel


WORLD_SIZE, BATCH = 2, 4
HEADS = ("entailment", "reasoning", "text-assignment", "vqa")


def whole_batch(name):
    batch = step_inputs(name, batch_size=BATCH)
    if name == "text-assignment":
        batch["pair_indices"] = torch.tensor([[0, 1], [0, 1], [3, 2], [2, 3]])
        batch["labels"] = torch.tensor([0, 1, 1, 2])
    if name == "vqa":
        batch["answer_counts"] = torch.tensor([1, 1, 1, 3])
    return batch


def part_of(name, batch, rank):
    rows = slice(rank * BATCH // WORLD_SIZE, (rank + 1) * BATCH // WORLD_SIZE)
    answers = slice(0, 2) if rank == 0 else slice(2, 6)
    part = {}
    for key, value in batch.items():
        chosen = answers if key in ("answer_input_ids", "answer_attention_mask") else rows
        part[key] = tuple(half[chosen] for half in value) if isinstance(value, tuple) else value[chosen]
    if name == "text-assignment":
        part["pair_indices"] = part["pair_indices"] - rows.start
    return part


def step(model, inputs):
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach()


def build(name):
    model = tiny_head(name).train()
    model.add_training_state()
    return model


def steps_of_all_heads(rank):
    results = {}
    for name in HEADS:
        model = DistributedDataParallel(build(name))
        loss = step(model, part_of(name, whole_batch(name), rank))
        results[name] = {"loss": loss, "gradients": gradients(model.module)}
    return results


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return run_in_processes(steps_of_all_heads, tmp_path_factory.mktemp("ranks"), WORLD_SIZE)


@pytest.mark.parametrize("name", HEADS)
def test_two_processes_equal_one(name, ranks):
    model = build(name)
    loss = step(model, whole_batch(name))
    torch.testing.assert_close(sum(result[name]["loss"] for result in ranks) / WORLD_SIZE, loss)
    for result in ranks:
        assert_same(result[name]["gradients"], gradients(model))
