"""A batch in parts whose contrasts see the whole: losses, gradients, teacher and queue are those of one forward pass."""

from contextlib import nullcontext
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from head_checks import tiny_head
from real_processes import run_in_processes
from simla_models import SimlaForPreTraining, SimlaForRetrieval, simla_batch, simla_model
from tiny_models import (
    NUM_PATCHES,
    assert_same,
    fill_queue,
    gradients,
    predict_positions,
    tiny_batch,
    tiny_pretraining_model,
    tiny_retrieval_model,
)
from torch.nn.parallel import DistributedDataParallel

from vicha_hf.models.pair_step import cache_contrast
from vicha_hf.models.random_draws import draw_kept_patches
from vicha_hf.training.gradient_caching import require_cacheable


BATCH, STEPS, WORLD_SIZE = 8, 2, 2
ALBEF = {"use_concepts": False, "hierarchical_itc_weight": 0, "mim_weight": 0}
# An image in two parts and on two processes (2), twice in one part of four (1), and in the queue (1003).
IMAGE_IDS = (1, 2, 1, 5, 1003, 7, 2, 8)
# Each part has a hierarchical contrast of its own: it is no part of what must equal the whole.
VICHA = {"hierarchical_itc_weight": 0}
BUILDERS = {
    "vicha": lambda **fields: tiny_pretraining_model(**VICHA | fields),
    "vicha, half of the patches": lambda **fields: tiny_pretraining_model(patch_dropout=0.5, **VICHA, **fields),
    "vicha, queue wraps": lambda **fields: tiny_pretraining_model(queue_size=6, **VICHA, **fields),
    "vicha, the process's own columns": lambda **fields: tiny_pretraining_model(
        reference_quirks=["itc_local_columns"], **VICHA, **fields
    ),
    "albef": lambda **fields: tiny_pretraining_model(**ALBEF, **fields),
    "simla": lambda **fields: simla_model(SimlaForPreTraining, **fields),
    "retrieval": lambda **fields: tiny_retrieval_model(**fields),
    "simla retrieval": lambda **fields: simla_model(SimlaForRetrieval, **fields),
}


def build(name, **fields):
    model = BUILDERS[name](momentum=0.5, **fields).train()
    model.add_training_state()
    fill_queue(model, 5)
    return model


def whole_batch(name, step):
    """What the objectives besides the contrast read is the same in parts of two: neighbours are each other's negatives."""
    concepts = name.startswith(("vicha", "retrieval"))
    batch = tiny_batch(BATCH, seed=10 * step, concepts=concepts) if "simla" not in name else simla_batch(BATCH, step)
    batch["image_ids"] = torch.tensor(IMAGE_IDS)
    other = torch.arange(BATCH) ^ 1
    batch |= {"negative_image_indices": other, "negative_text_indices": other}
    generator = torch.Generator().manual_seed(step)
    if "retrieval" not in name:
        batch |= predict_positions(batch, [[1, 2]] * BATCH)
    else:
        batch.pop("visual_token_ids", None)
    if name.startswith("vicha"):
        batch["mim_noise"] = torch.rand(BATCH, NUM_PATCHES, generator=generator)
    if "half" in name:
        torch.manual_seed(step)
        batch["patch_indices"] = draw_kept_patches(BATCH, NUM_PATCHES, 0.5, torch.device("cpu"))
    if name == "simla":
        batch["bool_masked_pos"] = (torch.arange(NUM_PATCHES) % 3 == 0).expand(BATCH, -1)
    return batch


def parts_of(batch, num_parts):
    size = len(batch["pixel_values"]) // num_parts
    for start in range(0, num_parts * size, size):
        part = {name: value[start : start + size] for name, value in batch.items()}
        for name in ("negative_image_indices", "negative_text_indices"):
            if name in part:
                part[name] = part[name] - part[name].min()
        # Each part is padded to its own longest row.
        for prefix, others in (
            ("", ("input_ids", "mlm_input_ids", "mlm_labels")),
            ("concept_", ("concept_input_ids",)),
        ):
            mask = f"{prefix}attention_mask"
            if mask in part:
                longest = max(int(part[mask].sum(dim=1).max()), 1)
                part |= {key: part[key][:, :longest] for key in (mask, *others) if key in part}
        yield part


def accumulate(model, module, batches, contrast_parts):
    """Losses as means over the batches; gradients stay in the model."""
    losses = {}
    for index, (batch, part) in enumerate(zip(batches, contrast_parts, strict=True)):
        waits = module.no_sync() if index + 1 < len(batches) and module is not model else nullcontext()
        with waits:
            output = module(**batch, distillation_alpha=0.4, update_teacher=False, contrast_part=part)
            (output.loss / len(batches)).backward()
        for name, value in output.items():
            if name.endswith("loss"):
                losses[name] = losses.get(name, 0.0) + value.detach() / len(batches)
    return losses


def train(model, module, steps):
    """Steps of plain gradient descent, each a list of parts; all that they leave behind."""
    record = {}
    for number, batches in enumerate(steps):
        module.zero_grad()
        model.update_teacher()
        cached = cache_contrast(model, batches) if len(batches) > 1 else [None]
        losses = accumulate(model, module, batches, cached)
        record |= {f"{number}.{name}": value for name, value in losses.items()}
        record |= {f"{number}.gradient.{name}": value for name, value in gradients(model).items()}
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.01 * parameter.grad
    return record | {f"after.{name}": value.clone() for name, value in model.state_dict().items()}


@cache
def run(name, num_parts):
    model = build(name)
    return train(model, model, [list(parts_of(whole_batch(name, step), num_parts)) for step in range(STEPS)])


@pytest.mark.parametrize(("name", "num_parts"), [*((name, 4) for name in BUILDERS), ("vicha", 2)])
def test_parts_equal_the_whole(name, num_parts):
    assert_same(run(name, num_parts), run(name, 1))


@pytest.mark.parametrize("name", ["vicha", "albef", "simla", "retrieval"])
def test_without_caching_they_differ(name):
    """What is compared above would show it."""
    model = build(name)
    parts = list(parts_of(whole_batch(name, 0), 2))
    losses = accumulate(model, model, parts, [None, None])
    whole = run(name, 1)
    assert (losses["itc_loss"] - whole["0.itc_loss"]).abs() > 1e-3


@pytest.mark.parametrize("name", ["vicha", "albef", "simla"])
def test_images_pass_once_for_the_contrast(name):
    model = build(name, **({} if name == "albef" else {"mim_weight": 0}))
    seen = []
    model.base_model.vision_model.register_forward_hook(lambda *_: seen.append(1))
    drop = ("mim", "bool_masked", "visual_token")
    parts = [
        {key: value for key, value in part.items() if not key.startswith(drop)}
        for part in parts_of(whole_batch(name, 0), 2)
    ]
    accumulate(model, model, parts, cache_contrast(model, parts))
    assert len(seen) == 2


def test_the_hierarchical_contrast_sees_its_part_alone():
    parts = list(parts_of(whole_batch("vicha", 0), 2))
    cached = build("vicha", hierarchical_itc_weight=0.1)
    observed = accumulate(cached, cached, parts, cache_contrast(cached, parts))["hierarchical_itc_loss"]
    plain = build("vicha", hierarchical_itc_weight=0.1)
    expected = accumulate(plain, plain, parts, [None, None])["hierarchical_itc_loss"]
    torch.testing.assert_close(observed, expected)


def train_part(rank):
    record = {}
    rows = BATCH // WORLD_SIZE
    for name in ("vicha", "simla", "retrieval"):
        model = build(name)
        module = DistributedDataParallel(model, broadcast_buffers=False)
        steps = [list(parts_of(whole_batch(name, step), 2 * WORLD_SIZE)) for step in range(STEPS)]
        record[name] = train(model, module, [parts[2 * rank : 2 * rank + 2] for parts in steps])
        assert all(len(part["pixel_values"]) == rows // 2 for parts in steps for part in parts)
    return record


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    return run_in_processes(train_part, tmp_path_factory.mktemp("ranks"), WORLD_SIZE)


@pytest.mark.parametrize("name", ["vicha", "simla", "retrieval"])
def test_two_processes_with_two_parts_each_equal_one_forward_pass(two_processes, name):
    expected = run(name, 1)
    first, second = (record[name] for record in two_processes)
    losses = {key for key in expected if key.endswith("loss")}
    assert_same({key: (first[key] + second[key]) / 2 for key in losses}, {key: expected[key] for key in losses})
    rest = {key: value for key, value in expected.items() if key not in losses}
    assert_same({key: first[key] for key in rest}, rest, tolerance=2e-5)
    assert all(torch.equal(first[key], second[key]) for key in rest)


def accelerator(distributed_type=DistributedType.NO, is_fsdp2=False):
    return SimpleNamespace(distributed_type=distributed_type, is_fsdp2=is_fsdp2)


@pytest.mark.parametrize(
    ("model", "where", "message"),
    [
        (
            tiny_retrieval_model,
            accelerator(DistributedType.DEEPSPEED),
            "DeepSpeed or FSDP2; launch with single_gpu",
        ),
        (
            tiny_retrieval_model,
            accelerator(DistributedType.FSDP, True),
            "DeepSpeed or FSDP2; launch with single_gpu",
        ),
        (lambda: tiny_head("entailment"), accelerator(), "ViChaForVisualEntailment has no contrast"),
        (
            lambda: tiny_retrieval_model(cross_process_negatives=True),
            accelerator(),
            "set model.config.cross_process_negatives=false",
        ),
    ],
)
def test_where_it_would_train_wrongly_it_is_refused(model, where, message):
    with pytest.raises(ValueError, match=rf"gradient_caching=True is not possible: .*{message}"):
        require_cacheable(model(), where)


def test_parts_of_different_sizes_are_refused():
    batch = tiny_batch(3)
    parts = [{name: value[rows] for name, value in batch.items()} for rows in (slice(0, 2), slice(2, 3))]
    with pytest.raises(ValueError, match=r"parts of a batch have \[1, 2\] rows"):
        cache_contrast(tiny_retrieval_model().train(), parts)


def test_negatives_of_other_processes_are_refused():
    with pytest.raises(ValueError, match="negatives come from the own part"):
        cache_contrast(tiny_retrieval_model(cross_process_negatives=True), [tiny_batch(2)] * 2)
