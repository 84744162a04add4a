"""Two processes with half of the batch each do exactly what one process does with the whole batch."""

from dataclasses import dataclass, field

import pytest
import torch
from real_processes import run_in_processes
from tiny_models import (
    NUM_PATCHES,
    PAD,
    TEXT,
    VISION,
    assert_same,
    fill_queue,
    gradients,
    predict_positions,
    spread_weights,
    tiny_batch,
    tiny_pretraining_model,
    tiny_retrieval_model,
)
from torch.nn.parallel import DistributedDataParallel

from vicha_hf import SimlaConfig, SimlaForPreTraining
from vicha_hf.models.random_draws import draw_kept_patches


WORLD_SIZE, BATCH, STEPS = 2, 6, 2
PER_RANK = BATCH // WORLD_SIZE
MASKED = {
    "attention_mask": ("input_ids", "mlm_input_ids", "mlm_labels"),
    "concept_attention_mask": ("concept_input_ids",),
}
# Rows of the other process, of the own one, and one that several ask for.
EVERYWHERE = {"fields": {"cross_process_negatives": True}, "negative_images": (4, 4, 1, 0, 4, 2)}


@dataclass
class Scenario:
    """Given negatives lie within each process's half unless they may come from everywhere."""

    head: str = "pretraining"
    fields: dict = field(default_factory=dict)
    # The same image on both processes (2), twice on one (7), and in the queue (1003).
    image_ids: tuple | None = (1, 2, 3, 2, 1003, 7)
    predicted: tuple = ((1, 2, 3), (1,), (2,), (1,), (), (3,))
    without_concepts: tuple = ()
    queued: int = 5
    # Drawn by each process instead of given; one process is then given what they drew.
    draws: bool = False
    negative_images: tuple = (1, 2, 0, 5, 3, 4)
    negative_texts: tuple = (2, 0, 1, 4, 5, 3)
    use_teacher: bool = True


SCENARIOS = {
    "pretraining, both reconstructions": Scenario(fields={"mim_mode": "both"}),
    "pretraining, no ids, no queue": Scenario(fields={"queue_size": 0}, image_ids=None, queued=0),
    "pretraining, queue wraps": Scenario(fields={"queue_size": 8}, queued=7),
    "pretraining, second process predicts nothing": Scenario(predicted=((1, 2), (1,), (), (), (), ())),
    "pretraining, second process without concepts": Scenario(without_concepts=(3, 4, 5)),
    "pretraining, no process with concepts": Scenario(without_concepts=(0, 1, 2, 3, 4, 5)),
    "pretraining, half of the patches": Scenario(fields={"patch_dropout": 0.5}),
    "pretraining, without teacher": Scenario(use_teacher=False),
    "pretraining, without teacher, no ids": Scenario(use_teacher=False, image_ids=None),
    "pretraining, without matching": Scenario(fields={"itm_weight": 0}),
    "pretraining, nothing fuses": Scenario(fields={"itm_weight": 0, "mlm_weight": 0}),
    "pretraining, negatives from everywhere": Scenario(**EVERYWHERE, negative_texts=(5, 0, 3, 4, 2, 0)),
    "pretraining, negatives from everywhere, drawn": Scenario(**EVERYWHERE, draws=True),
    "pretraining, negatives from one process": Scenario(
        fields={"cross_process_negatives": True}, negative_images=(1, 2, 0, 0, 1, 2), negative_texts=(1, 0, 0, 0, 1, 1)
    ),
    "retrieval, negatives from everywhere": Scenario(
        head="retrieval", **EVERYWHERE, negative_texts=(5, 0, 3, 4, 2, 0)
    ),
    "single stream": Scenario(head="simla"),
    "single stream, queue wraps": Scenario(head="simla", fields={"queue_size": 8}, queued=7),
    "single stream, negatives from everywhere": Scenario(
        head="simla", **EVERYWHERE, negative_texts=(5, 0, 3, 4, 2, 0)
    ),
    "pretraining, without contrast": Scenario(fields={"itc_weight": 0}),
    "retrieval": Scenario(head="retrieval", image_ids=(1, 2, 3, 2, 1003, 1)),
    "retrieval, second process without concepts": Scenario(head="retrieval", without_concepts=(3, 4, 5)),
}


def build(scenario):
    builders = {
        "pretraining": tiny_pretraining_model,
        "retrieval": tiny_retrieval_model,
        "simla": tiny_single_stream_model,
    }
    model = builders[scenario.head](momentum=0.5, **scenario.fields).train()
    model.add_training_state()
    if scenario.queued:
        fill_queue(model, scenario.queued)
    return model


def tiny_single_stream_model(**fields):
    torch.manual_seed(0)
    text = {name: value for name, value in TEXT.items() if name != "fusion_layer"}
    config = SimlaConfig(
        vision_config=VISION,
        text_config=text | {"unk_token_id": 1},
        projection_dim=16,
        visual_vocab_size=11,
        mim_max_masked_patches=8,
        mim_min_block_patches=2,
        **({"queue_size": 10} | fields),
    )
    model = SimlaForPreTraining(config)
    spread_weights(model)
    return model.eval()


def whole_batch(scenario, step):
    batch = tiny_batch(BATCH, seed=10 * step, concepts=scenario.head != "simla")
    if scenario.head != "simla":
        rows = list(scenario.without_concepts)
        batch["concept_input_ids"][rows] = PAD
        batch["concept_attention_mask"][rows] = 0
    if scenario.image_ids is not None:
        batch["image_ids"] = torch.tensor(scenario.image_ids)
    if not scenario.draws:
        batch["negative_image_indices"] = torch.tensor(scenario.negative_images)
        batch["negative_text_indices"] = torch.tensor(scenario.negative_texts)
    generator = torch.Generator().manual_seed(step)
    if scenario.head != "retrieval":
        batch |= predict_positions(batch, scenario.predicted)
    if scenario.head == "pretraining":
        batch["mim_noise"] = torch.rand(BATCH, NUM_PATCHES, generator=generator)
    if dropout := scenario.fields.get("patch_dropout"):
        torch.manual_seed(step)
        batch["patch_indices"] = draw_kept_patches(BATCH, NUM_PATCHES, dropout, torch.device("cpu"))
    if scenario.head == "simla":
        batch["visual_token_ids"] = torch.randint(11, (BATCH, NUM_PATCHES), generator=generator)
        batch["bool_masked_pos"] = torch.rand(BATCH, NUM_PATCHES, generator=generator) < 0.4
    if not scenario.use_teacher:
        batch["use_teacher"] = False
    return batch


def part_of(scenario, batch, rank):
    rows = slice(rank * PER_RANK, (rank + 1) * PER_RANK)
    part = {name: value[rows] if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    if "negative_image_indices" in part and not scenario.fields.get("cross_process_negatives"):
        for name in ("negative_image_indices", "negative_text_indices"):
            part[name] = part[name] - rank * PER_RANK
    # Each process pads to its own longest text and concepts.
    for mask, others in MASKED.items():
        if mask in part:
            longest = int(part[mask].sum(dim=1).max())
            for name in (mask, *others):
                if name in part:
                    part[name] = part[name][:, :longest]
            if longest == 0:
                del part["concept_input_ids"], part["concept_attention_mask"]
    return part


def train(model, module, batches):
    """Two steps of plain gradient descent; all that the steps leave behind."""
    record = {}
    model.negative_sampler.register_forward_hook(
        lambda module, inputs, output: drawn.append([output.image_indices, output.text_indices])
    )
    for step, batch in enumerate(batches):
        drawn = []
        module.zero_grad()
        output = module(**batch, distillation_alpha=0.4)
        output.loss.backward()
        losses = {name: value.detach() for name, value in output.items() if name.endswith("loss")}
        record |= {f"{step}.{name}": value for name, value in losses.items()}
        record |= {f"{step}.gradient.{name}": value for name, value in gradients(model).items()}
        record |= {f"{step}.drawn": torch.stack(pair) for pair in drawn}
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.01 * parameter.grad
    return record | {f"after.{name}": value.clone() for name, value in model.state_dict().items()}


def train_part(rank):
    record = {}
    for name, scenario in SCENARIOS.items():
        model = build(scenario)
        module = DistributedDataParallel(model, broadcast_buffers=False)
        batches = [part_of(scenario, whole_batch(scenario, step), rank) for step in range(STEPS)]
        torch.manual_seed(rank)
        try:
            record[name] = train(model, module, batches)
        except RuntimeError as error:
            # The other process cannot go on alone; the scenarios before this one are still worth comparing.
            record[name] = f"{type(error).__name__}: {error}"
            break
    record["unequal batches"] = error_of_unequal_batches(rank)
    return record


def error_of_unequal_batches(rank):
    model = tiny_retrieval_model()
    try:
        model(**tiny_batch(3 - rank))
    except ValueError as error:
        return str(error)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    return run_in_processes(train_part, tmp_path_factory.mktemp("ranks"), WORLD_SIZE)


def losses_of(record):
    return {name: value for name, value in record.items() if name.endswith("loss")}


def rest_of(record):
    return {name: value for name, value in record.items() if not name.endswith(("loss", "drawn"))}


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_equal_one(two_processes, name):
    ranks = [record.get(name, "not reached") for record in two_processes]
    assert all(isinstance(rank, dict) for rank in ranks), ranks
    scenario = SCENARIOS[name]
    model = build(scenario)
    batches = [whole_batch(scenario, step) for step in range(STEPS)]
    if scenario.draws:
        for step, batch in enumerate(batches):
            drawn = torch.cat([rank[f"{step}.drawn"] for rank in ranks], dim=1)
            batch["negative_image_indices"], batch["negative_text_indices"] = drawn
    expected = train(model, model, batches)

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


def test_drawn_negatives_come_from_both_processes(two_processes):
    drawn = torch.cat(
        [record["pretraining, negatives from everywhere, drawn"]["0.drawn"] for record in two_processes], 1
    )
    owner = drawn // PER_RANK
    rows = torch.arange(BATCH)
    assert (owner != rows // PER_RANK).any() and (owner == rows // PER_RANK).any()
    ids = torch.tensor(SCENARIOS["pretraining, negatives from everywhere, drawn"].image_ids)
    assert (ids[drawn] != ids).all()


def test_processes_with_batches_of_different_sizes_are_refused(two_processes):
    for rank, record in enumerate(two_processes):
        assert f"batches of 2 to 3 pairs (this one, of rank {rank}, has {3 - rank})" in record["unequal batches"]
