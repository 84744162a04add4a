"""Two processes with half of the batch each do exactly what one process does with the whole batch."""

import datetime
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from tiny_models import (
    NUM_PATCHES,
    PAD,
    assert_same,
    fill_queue,
    gradients,
    predict_positions,
    tiny_batch,
    tiny_pretraining_model,
    tiny_retrieval_model,
)
from torch.nn.parallel import DistributedDataParallel


WORLD_SIZE, BATCH, STEPS = 2, 6, 2
PER_RANK = BATCH // WORLD_SIZE
# Within each process's half, so that one process can use the same ones.
NEGATIVE_IMAGES, NEGATIVE_TEXTS = [1, 2, 0, 5, 3, 4], [2, 0, 1, 4, 5, 3]


@dataclass
class Scenario:
    head: str = "pretraining"
    fields: dict = field(default_factory=dict)
    # The same image on both processes (2), twice on one (7), and in the queue (1003).
    image_ids: tuple | None = (1, 2, 3, 2, 1003, 7)
    predicted: tuple = ((1, 2, 3), (1,), (2,), (1,), (), (3,))
    without_concepts: tuple = ()
    queued: int = 5


SCENARIOS = {
    "pretraining, both reconstructions": Scenario(fields={"mim_mode": "both"}),
    "pretraining, no ids, no queue": Scenario(fields={"queue_size": 0}, image_ids=None, queued=0),
    "pretraining, queue wraps": Scenario(fields={"queue_size": 8}, queued=7),
    "pretraining, second process predicts nothing": Scenario(predicted=((1, 2), (1,), (), (), (), ())),
    "pretraining, second process without concepts": Scenario(without_concepts=(3, 4, 5)),
    "pretraining, no process with concepts": Scenario(without_concepts=(0, 1, 2, 3, 4, 5)),
    "pretraining, without matching": Scenario(fields={"itm_weight": 0}),
    "pretraining, without contrast": Scenario(fields={"itc_weight": 0}),
    "retrieval": Scenario(head="retrieval", image_ids=(1, 2, 3, 2, 1003, 1)),
    "retrieval, second process without concepts": Scenario(head="retrieval", without_concepts=(3, 4, 5)),
}


def build(scenario):
    builder = tiny_pretraining_model if scenario.head == "pretraining" else tiny_retrieval_model
    model = builder(momentum=0.5, **scenario.fields).train()
    model.add_training_state()
    if scenario.queued:
        fill_queue(model, scenario.queued)
    return model


def whole_batch(scenario, step):
    batch = tiny_batch(BATCH, seed=10 * step)
    rows = list(scenario.without_concepts)
    batch["concept_input_ids"][rows] = PAD
    batch["concept_attention_mask"][rows] = 0
    if scenario.image_ids is not None:
        batch["image_ids"] = torch.tensor(scenario.image_ids)
    batch["negative_image_indices"] = torch.tensor(NEGATIVE_IMAGES)
    batch["negative_text_indices"] = torch.tensor(NEGATIVE_TEXTS)
    if scenario.head == "pretraining":
        batch |= predict_positions(batch, scenario.predicted)
        batch["mim_noise"] = torch.rand(BATCH, NUM_PATCHES, generator=torch.Generator().manual_seed(step))
    return batch


def part_of(batch, rank):
    rows = slice(rank * PER_RANK, (rank + 1) * PER_RANK)
    part = {name: value[rows] for name, value in batch.items()}
    for name in ("negative_image_indices", "negative_text_indices"):
        part[name] = part[name] - rank * PER_RANK
    if not part["concept_attention_mask"].any():
        del part["concept_input_ids"], part["concept_attention_mask"]
    return part


def train(model, module, batches):
    """Two steps of plain gradient descent; all that the steps leave behind."""
    record = {}
    for step, batch in enumerate(batches):
        module.zero_grad()
        output = module(**batch, distillation_alpha=0.4)
        output.loss.backward()
        losses = {name: value.detach() for name, value in output.items() if name.endswith("loss")}
        record |= {f"{step}.{name}": value for name, value in losses.items()}
        record |= {f"{step}.gradient.{name}": value for name, value in gradients(model).items()}
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.01 * parameter.grad
    return record | {f"after.{name}": value.clone() for name, value in model.state_dict().items()}


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(f"{folder}/store", WORLD_SIZE),
        rank=rank,
        world_size=WORLD_SIZE,
        timeout=datetime.timedelta(seconds=60),
    )
    record = {"world_size": dist.get_world_size()}
    for name, scenario in SCENARIOS.items():
        model = build(scenario)
        module = DistributedDataParallel(model, broadcast_buffers=False)
        batches = [part_of(whole_batch(scenario, step), rank) for step in range(STEPS)]
        try:
            record[name] = train(model, module, batches)
        except RuntimeError as error:
            # The other process cannot go on alone; the scenarios before this one are still worth comparing.
            record[name] = f"{type(error).__name__}: {error}"
            break
    torch.save(record, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(worker, (str(folder),), nprocs=WORLD_SIZE)
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(WORLD_SIZE)]


def losses_of(record):
    return {name: value for name, value in record.items() if name.endswith("loss")}


def rest_of(record):
    return {name: value for name, value in record.items() if not name.endswith("loss")}


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_equal_one(two_processes, name):
    assert [record["world_size"] for record in two_processes] == [WORLD_SIZE] * WORLD_SIZE
    ranks = [record.get(name, "not reached") for record in two_processes]
    assert all(isinstance(rank, dict) for rank in ranks), ranks
    scenario = SCENARIOS[name]
    model = build(scenario)
    expected = train(model, model, [whole_batch(scenario, step) for step in range(STEPS)])

    first, second = map(losses_of, ranks)
    assert first.keys() == losses_of(expected).keys() and len(first) >= 2 * 3
    assert_same({loss: (first[loss] + second[loss]) / 2 for loss in first}, losses_of(expected))
    # Gradients of both steps, then weights, teacher and queue: the same on both processes and as in one.
    assert_same(rest_of(ranks[0]), rest_of(expected), tolerance=2e-5)
    assert_same(rest_of(ranks[1]), rest_of(ranks[0]), tolerance=0)


def test_the_comparison_covers_every_kind_of_state(two_processes):
    """Gradients that vanish, a queue that stays empty or a teacher that stays put would compare equal to anything."""
    record = two_processes[0]["pretraining, both reconstructions"]
    silent = [
        name
        for name, value in record.items()
        # A key bias shifts all scores of a query alike, which softmax ignores.
        if ".gradient." in name and value.abs().max() < 1e-7 and not name.endswith(("key.bias", "k_proj.bias"))
    ]
    # The decoder's fixed positions have no gradient; everything that has one heard of the loss.
    assert silent == []
    assert record["after.training_state.queue.num_filled"].item() == 10
    weight = "vicha.text_projection.weight"
    assert not torch.equal(record[f"after.training_state.teacher.{weight}"], record[f"after.{weight}"])
