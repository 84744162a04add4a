"""A batch in parts whose contrasts see the whole: losses, gradients, teacher and queue are those of one forward pass."""

import datetime
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from accelerate.utils import DistributedType
from head_checks import tiny_head
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

from vicha_hf.models.block_mask import draw_kept_patches
from vicha_hf.models.contrast_parts import RandomState
from vicha_hf.models.task_contrast_and_match import encoded_inputs
from vicha_hf.training.gradient_caching import require_cacheable


BATCH, STEPS, WORLD_SIZE = 8, 2, 2
ALBEF = {"use_concepts": False, "hierarchical_itc_weight": 0, "mim_weight": 0}
# An image in two parts and on two processes (2), twice in one part of four (1), and in the queue (1003).
IMAGE_IDS = (1, 2, 1, 5, 1003, 7, 2, 8)
BUILDERS = {
    "vicha": lambda **fields: tiny_pretraining_model(**fields),
    "vicha, levels of unequal weight": lambda **fields: tiny_pretraining_model(
        hierarchical_itc_weight=1.0, hierarchical_itc_level_weights=[0.5, 2.0], **fields
    ),
    "vicha, half of the patches": lambda **fields: tiny_pretraining_model(patch_dropout=0.5, **fields),
    "vicha, queue wraps": lambda **fields: tiny_pretraining_model(queue_size=6, **fields),
    "vicha, the process's own columns": lambda **fields: tiny_pretraining_model(
        reference_quirks=["itc_local_columns", "hitc_local_diagonal"], **fields
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
        cached = model.cache_contrast(batches) if len(batches) > 1 else [None]
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
    if name == "vicha":
        assert (losses["hierarchical_itc_loss"] - whole["0.hierarchical_itc_loss"]).abs() > 1e-3


def slow_contrast(model, parts):
    """Every part's encodings with their graph, all at the same time, and one contrast of all of them."""
    image_ids = torch.cat([part["image_ids"] for part in parts])
    with torch.no_grad():
        teacher = [model._teacher_encodings(**encoded_inputs(part)) for part in parts]
    encoded = [model._encode_online(**encoded_inputs(part), output_hidden_states=True) for part in parts]
    images, texts, teacher_images, teacher_texts = (
        torch.cat([each.embeds for each in encodings])
        for encodings in (
            [each[0] for each in encoded],
            [each[2] for each in encoded],
            *zip(*teacher, strict=True),
        )
    )
    temperature = model.vicha.temperature
    queue = model.training_state.queue
    itc = model.itc(images, texts, teacher_images, teacher_texts, temperature, 0.4, queue=queue, image_ids=image_ids)
    levels = [model._levels(each[1], each[3]) for each in encoded]
    image_levels, text_levels = (
        [torch.cat(parts) for parts in zip(*side, strict=True)] for side in zip(*levels, strict=True)
    )
    hierarchical = model.hierarchical_itc(image_levels, text_levels, temperature, image_ids)
    (itc.loss + model.config.hierarchical_itc_weight * hierarchical.loss).backward()
    return {"itc_loss": itc.loss.detach(), "hierarchical_itc_loss": hierarchical.loss.detach()} | gradients(model)


def fast_contrast(model, parts):
    losses = accumulate(model, model, parts, model.cache_contrast(parts))
    return {name: losses[name] for name in ("itc_loss", "hierarchical_itc_loss")} | gradients(model)


def with_dropout(contrast):
    """Of words and of patches; both ways draw the same numbers in the same order."""
    dropped = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}
    only_contrast = {"itm_weight": 0, "mlm_weight": 0, "mim_weight": 0}
    model = build("vicha", text_config=dropped, patch_dropout=0.5, **only_contrast)
    parts = [
        {name: value for name, value in part.items() if not name.startswith(("mlm", "mim", "negative"))}
        for part in parts_of(whole_batch("vicha", 0), 4)
    ]
    # A part that comes without concepts has one that nobody reads, in both passes.
    del parts[1]["concept_input_ids"], parts[1]["concept_attention_mask"]
    torch.manual_seed(5)
    return contrast(model, parts)


def test_dropout_is_the_same_in_both_passes():
    slow = with_dropout(slow_contrast)
    assert_same(with_dropout(fast_contrast), slow)

    @contextmanager
    def forgotten(self):
        yield

    with mock.patch.object(RandomState, "replayed", forgotten), pytest.raises(AssertionError):
        assert_same(with_dropout(fast_contrast), slow)


def test_replayed_numbers_are_not_taken_from_the_others():
    torch.manual_seed(0)
    state = RandomState(torch.device("cpu"))
    first, second = torch.rand(3), torch.rand(3)
    torch.manual_seed(0)
    torch.rand(3)
    with state.replayed():
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.rand(3), second)


@pytest.mark.parametrize(("name", "passes"), [("albef", 2), ("simla", 2), ("vicha", 4)])
def test_images_pass_twice_only_for_the_hierarchical_contrast(name, passes):
    model = build(name, **({} if name == "albef" else {"mim_weight": 0}))
    seen = []
    model.base_model.vision_model.register_forward_hook(lambda *_: seen.append(1))
    drop = ("mim", "bool_masked", "visual_token")
    parts = [
        {key: value for key, value in part.items() if not key.startswith(drop)}
        for part in parts_of(whole_batch(name, 0), 2)
    ]
    accumulate(model, model, parts, model.cache_contrast(parts))
    assert len(seen) == passes


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
    rows = BATCH // WORLD_SIZE
    for name in ("vicha", "simla", "retrieval"):
        model = build(name)
        module = DistributedDataParallel(model, broadcast_buffers=False)
        steps = [list(parts_of(whole_batch(name, step), 2 * WORLD_SIZE)) for step in range(STEPS)]
        record[name] = train(model, module, [parts[2 * rank : 2 * rank + 2] for parts in steps])
        assert all(len(part["pixel_values"]) == rows // 2 for parts in steps for part in parts)
    torch.save(record, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(worker, (str(folder),), nprocs=WORLD_SIZE)
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(WORLD_SIZE)]


@pytest.mark.parametrize("name", ["vicha", "simla", "retrieval"])
def test_two_processes_with_two_parts_each_equal_one_forward_pass(two_processes, name):
    assert [record["world_size"] for record in two_processes] == [WORLD_SIZE] * WORLD_SIZE
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
        tiny_retrieval_model().train().cache_contrast(parts)


def test_negatives_of_other_processes_are_refused():
    with pytest.raises(ValueError, match="negatives come from the own part"):
        tiny_retrieval_model(cross_process_negatives=True).cache_contrast([tiny_batch(2)] * 2)
