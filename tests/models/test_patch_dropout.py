"""Patch dropout: which patches stay, that everything else follows from them, and that nothing is dropped where it must not be."""

from unittest import mock

import pytest
import torch
from simla_models import SimlaForPreTraining, simla_batch, simla_model
from tiny_models import NUM_PATCHES, assert_same, gradients, predict_positions, tiny_batch, tiny_pretraining_model

from vicha_hf.models.encoder_vision import VisionEncoder, VisionOutput
from vicha_hf.models.random_draws import draw_kept_patches, num_kept_patches


BATCH = 4
FAMILIES = ["vicha", "simla"]


def build(family, **fields):
    model = tiny_pretraining_model(**fields) if family == "vicha" else simla_model(SimlaForPreTraining, **fields)
    model.add_training_state()
    return model.train()


def given_batch(family):
    """Everything that a step would draw, except the patches."""
    batch = tiny_batch(BATCH) if family == "vicha" else simla_batch(BATCH)
    batch |= predict_positions(batch, [[1, 2], [1], [2], [1]])
    order = torch.arange(BATCH)
    batch |= {"negative_image_indices": order.roll(1), "negative_text_indices": order.roll(-1)}
    if family == "vicha":
        batch["mim_noise"] = torch.rand(BATCH, NUM_PATCHES, generator=torch.Generator().manual_seed(0))
    else:
        batch["bool_masked_pos"] = torch.arange(BATCH * NUM_PATCHES).reshape(BATCH, NUM_PATCHES) % 3 == 0
    return batch


def step(model, batch, seed=0, **given):
    """Losses, gradients and the state afterwards; the queue and the teacher are those of a first step."""
    torch.manual_seed(seed)
    output = model(**batch, **given)
    output.loss.backward()
    losses = {name: value.detach() for name, value in output.items() if name.endswith("loss")}
    return losses | gradients(model) | {f"after.{name}": value.clone() for name, value in model.state_dict().items()}


def seen_patches(model):
    """`patch_indices` of every pass of the vision encoders from now on: of the model's, and of the teacher's."""
    seen = {"model": [], "teacher": []}
    encoders = {"model": model.base_model, "teacher": model.training_state.teacher[model.base_model_prefix]}
    for name, encoder in encoders.items():
        encoder.vision_model.register_forward_pre_hook(
            lambda module, args, kwargs, passes=seen[name]: passes.append(kwargs.get("patch_indices")),
            with_kwargs=True,
        )
    return seen


@pytest.mark.parametrize(
    ("num_patches", "dropout", "kept"),
    [(256, 0.5, 128), (256, 0.75, 64), (196, 0.5, 98), (10, 0.9, 1), (100, 0.9, 10), (16, 0.0, 16), (9, 0.6, 4)],
)
def test_how_many_patches_stay(num_patches, dropout, kept):
    assert num_kept_patches(num_patches, dropout) == kept
    drawn = draw_kept_patches(3, num_patches, dropout, torch.device("cpu"))
    assert drawn.shape == (3, kept)
    assert all(row == sorted(set(row)) and row[0] >= 0 and row[-1] < num_patches for row in drawn.tolist())


def test_every_patch_has_the_same_chance():
    torch.manual_seed(0)
    drawn = draw_kept_patches(4000, 8, 0.75, torch.device("cpu"))
    shares = torch.bincount(drawn.flatten(), minlength=8) / 4000
    # Five standard deviations of a share of 1/4 in 4000 draws.
    assert (shares - 0.25).abs().max() < 5 * (0.25 * 0.75 / 4000) ** 0.5


def slow_forward(self, pixel_values, concept_embeds=None, concept_attention_mask=None, patch_indices=None, **kwargs):
    """One image at a time: all patches are embedded, those that go are cut out, and padded concepts never enter."""
    rows = []
    for index in range(len(pixel_values)):
        kept = range(self.config.num_patches) if patch_indices is None else patch_indices[index].tolist()
        sequence = self.embeddings(
            pixel_values[index : index + 1],
            bool_masked_pos=None if "bool_masked_pos" not in kwargs else kwargs["bool_masked_pos"][index : index + 1],
            mask_token=kwargs.get("mask_token"),
        )[:, [0] + [1 + patch for patch in kept]]
        padding = 0
        if concept_embeds is not None:
            words = int(concept_attention_mask[index].sum())
            sequence = torch.cat([sequence, concept_embeds[index : index + 1, :words]], dim=1)
            padding = concept_embeds.shape[1] - words
        levels = [sequence]
        for layer in self.layers:
            levels.append(layer(levels[-1]))
        rows.append(
            [torch.nn.functional.pad(level, (0, 0, 0, padding)) for level in [*levels, self.layernorm(levels[-1])]]
        )
    *hidden_states, last = (torch.cat(level) for level in zip(*rows, strict=True))
    tokens = last.new_ones(last.shape[:2], dtype=torch.long)
    if concept_embeds is not None:
        tokens[:, -concept_embeds.shape[1] :] = concept_attention_mask
    return VisionOutput(last_hidden_state=last, hidden_states=tuple(hidden_states), attention_mask=tokens)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_equals_the_slow_way(family):
    batch = given_batch(family)
    patches = draw_kept_patches(BATCH, NUM_PATCHES, 0.5, torch.device("cpu"))
    observed = step(build(family, patch_dropout=0.5), batch, patch_indices=patches)
    with mock.patch.object(VisionEncoder, "forward", slow_forward):
        expected = step(build(family, patch_dropout=0.5), batch, patch_indices=patches)
    assert_same(observed, expected)
    whole = step(build(family), batch)
    changed = {"itc_loss", "itm_loss", "mlm_loss", "hierarchical_itc_loss", "psl_loss"} & observed.keys()
    assert len(changed) == 4 and all((observed[name] - whole[name]).abs() > 1e-4 for name in changed)


@pytest.mark.parametrize("family", FAMILIES)
def test_drawn_patches_are_as_good_as_given_ones(family):
    batch = given_batch(family)
    model = build(family, patch_dropout=0.75)
    seen = seen_patches(model)
    drawn = step(model, batch)
    patches = seen["model"][0]
    assert patches.shape == (BATCH, 4)
    assert_same(step(build(family), batch, patch_indices=patches), drawn, tolerance=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_dropout_changes_no_bit(family):
    batch = given_batch(family)
    everything = torch.arange(NUM_PATCHES).expand(BATCH, -1)
    without = step(build(family), batch)
    assert_same(step(build(family, patch_dropout=0.0), batch), without, tolerance=0)
    assert_same(step(build(family), batch, patch_indices=everything), without, tolerance=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_teacher_and_image_modelling_see_what_they_always_see(family):
    model, batch = build(family, patch_dropout=0.5), given_batch(family)
    seen = seen_patches(model)
    step(model, batch)
    of_image_modelling = seen["model"][1]
    assert len(seen["model"]) == 2 and seen["model"][0].shape == (BATCH, 8)
    assert (of_image_modelling is None) if family == "simla" else (of_image_modelling.shape == (BATCH, 4))
    assert seen["teacher"] and all(patches is None for patches in seen["teacher"])


@pytest.mark.parametrize("family", FAMILIES)
def test_evaluation_drops_nothing(family):
    batch = given_batch(family)
    with torch.no_grad():
        dropping, whole = (build(family, patch_dropout=dropout).eval()(**batch) for dropout in (0.5, 0.0))
    assert torch.equal(dropping.loss, whole.loss)


def test_another_image_size_keeps_its_own_share():
    model = build("vicha", patch_dropout=0.5, mim_weight=0)
    seen = seen_patches(model)
    model(**tiny_batch(BATCH, image_size=48))
    assert seen["model"][0].shape == (BATCH, 18)


def test_patches_of_another_batch_are_refused():
    with pytest.raises(ValueError, match=r"`patch_indices` has 1 rows and `pixel_values` 4"):
        build("vicha")(**tiny_batch(BATCH), patch_indices=torch.zeros(1, 2, dtype=torch.long))
