"""Two micro-batches of four against one batch of eight: equal where samples do not look at each other, and only there."""

import pytest
import torch
from head_checks import step_inputs, tiny_head
from tiny_models import NUM_PATCHES, assert_same, gradients, predict_positions, tiny_batch, tiny_pretraining_model


BATCH, HALF = 8, 4
ONLY = {"itc_weight": 0, "itm_weight": 0, "mlm_weight": 0, "mim_weight": 0, "hierarchical_itc_weight": 0}
# Inside the micro-batches.
NEGATIVE_IMAGES, NEGATIVE_TEXTS = [1, 2, 3, 0, 6, 7, 5, 4], [2, 0, 1, 1, 5, 4, 7, 6]


def pretraining_batch(predicted):
    batch = tiny_batch(BATCH)
    batch |= predict_positions(batch, predicted)
    batch["mim_noise"] = torch.rand(BATCH, NUM_PATCHES, generator=torch.Generator().manual_seed(0))
    batch["negative_image_indices"] = torch.tensor(NEGATIVE_IMAGES)
    batch["negative_text_indices"] = torch.tensor(NEGATIVE_TEXTS)
    return batch


def halves(batch):
    for rows in (slice(0, HALF), slice(HALF, BATCH)):
        part = {}
        for name, value in batch.items():
            part[name] = tuple(each[rows] for each in value) if isinstance(value, tuple) else value[rows]
            if name.startswith("negative_") or name == "pair_indices":
                part[name] = part[name] - rows.start
        yield part


def accumulated(model, batches):
    """Mean loss, its gradient, and teacher and queue afterwards."""
    model.train()
    model.add_training_state()
    total = 0.0
    for index, batch in enumerate(batches):
        loss = model(**batch, update_teacher=index == 0).loss / len(batches)
        loss.backward()
        total = total + loss.detach()
    after = {} if model.training_state is None else dict(model.training_state.teacher.named_parameters())
    return {"loss": total} | gradients(model) | {f"teacher.{name}": value for name, value in after.items()}


def compare(build, batch):
    whole = accumulated(build(), [batch])
    return accumulated(build(), list(halves(batch))), whole


@pytest.mark.parametrize("objective", ["itm", "mlm", "mim"])
def test_objectives_without_contrast(objective):
    fields = ONLY | {f"{objective}_weight": 1, "mim_mode": "both"}
    batch = pretraining_batch([[1], [2], [1, 2], [], [1, 2], [3], [], [1]])
    halved, whole = compare(lambda: tiny_pretraining_model(**fields), batch)
    assert_same(halved, whole)


def test_masked_language_needs_equally_many_predictions_in_each_part():
    batch = pretraining_batch([[1], [2], [1], [1], [1, 2], [1, 3], [2], [1]])
    halved, whole = compare(lambda: tiny_pretraining_model(**ONLY | {"mlm_weight": 1}), batch)
    with pytest.raises(AssertionError):
        assert_same(halved, whole)


@pytest.mark.parametrize("objective", ["itc", "hierarchical_itc"])
def test_contrast_sees_only_its_own_part(objective):
    fields = ONLY | {f"{objective}_weight": 1}
    batch = pretraining_batch([[1]] * BATCH)
    halved, whole = compare(lambda: tiny_pretraining_model(**fields), batch)
    with pytest.raises(AssertionError):
        assert_same(halved, whole)


@pytest.mark.parametrize("name", ["entailment", "reasoning", "text-assignment", "vqa"])
def test_task_heads(name):
    batch = step_inputs(name, batch_size=BATCH)
    if name == "text-assignment":
        rows = torch.arange(BATCH)
        batch["pair_indices"] = torch.stack([rows, rows ^ 1], dim=1)
    if name == "vqa":
        batch["answer_counts"] = torch.ones(BATCH, dtype=torch.long)
        for key in ("answer_input_ids", "answer_attention_mask"):
            batch[key] = batch[key][:BATCH]
    halved, whole = compare(lambda: tiny_head(name), batch)
    assert_same(halved, whole)
