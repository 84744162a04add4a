"""One training step of each head: what moves, what stays, what is returned, and that a seed decides everything."""

import pytest
import torch
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


LOSSES = ("itc", "hierarchical_itc", "itm", "mlm", "mim")


def given(batch):
    """Everything that a step would draw."""
    count = len(batch["input_ids"])
    return {
        "mim_noise": torch.rand(count, NUM_PATCHES, generator=torch.Generator().manual_seed(3)),
        "negative_image_indices": torch.arange(1, count + 1) % count,
        "negative_text_indices": torch.arange(count + 1, 1, -1) % count,
        **predict_positions(batch, [[1, 2]] * count),
    }


def trainable(model):
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


@pytest.mark.parametrize("mim_mode", ["unimodal", "crossmodal", "both"])
@pytest.mark.parametrize("concept_layers", [0, 1])
def test_every_parameter_of_pretraining_moves(mim_mode, concept_layers):
    model = tiny_pretraining_model(spread=False, mim_mode=mim_mode, num_concept_layers=concept_layers).train()
    model.add_training_state()
    _assert_every_parameter_moves(model)


def test_every_parameter_of_retrieval_moves():
    model = tiny_retrieval_model(spread=False).train()
    model.add_training_state()
    _assert_every_parameter_moves(model)


def _assert_every_parameter_moves(model):
    before = {name: value.detach().clone() for name, value in trainable(model).items()}
    optimizer = torch.optim.SGD(trainable(model).values(), lr=1.0)
    model(**tiny_batch(4)).loss.backward()
    assert not [name for name, value in trainable(model).items() if value.grad is None]
    optimizer.step()
    still = {name for name, value in trainable(model).items() if torch.equal(value, before[name])}
    # Softmax ignores what is added to all scores of a query; rounding alone may move a key bias, or not.
    assert {name for name in still if not name.endswith(("key.bias", "k_proj.bias"))} == set()
    assert not any(name.startswith("training_state") for name in trainable(model))


@pytest.mark.parametrize("builder", [tiny_pretraining_model, tiny_retrieval_model])
def test_a_training_step_updates_teacher_first_then_the_queue(builder):
    model = builder(momentum=0.8).train()
    model.add_training_state()
    with torch.no_grad():
        for value in trainable(model).values():
            value.mul_(1.1)
    teacher = model.training_state.teacher
    name = "vicha.vision_model.layers.0.mlp.fc1.weight"
    start, online = teacher.get_parameter(name).clone(), model.get_parameter(name).detach().clone()
    batch = tiny_batch(3)
    model(**batch, image_ids=torch.tensor([7, 8, 7]))
    torch.testing.assert_close(teacher.get_parameter(name), 0.8 * start + 0.2 * online)
    queue = model.training_state.queue
    assert int(queue.num_filled) == int(queue.pointer) == 3 and queue.image_ids[:3].tolist() == [7, 8, 7]
    images = {key: value for key, value in batch.items() if key not in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = teacher["vicha"].encode_images(**images).embeds
    torch.testing.assert_close(queue.image_features[:3], expected)
    expected = teacher["vicha"].encode_texts(batch["input_ids"], batch["attention_mask"]).embeds
    torch.testing.assert_close(queue.text_features[:3], expected)


def test_a_step_without_teacher_contrasts_the_batch_with_itself():
    model, ids = tiny_pretraining_model(momentum=0.8).train(), [7, 8, 7, 9]
    model.add_training_state()
    fill_queue(model, 4)
    before = {name: value.clone() for name, value in model.training_state.named_buffers()}
    teacher = model.training_state.teacher
    teacher["vicha"].vision_model.forward = teacher["vicha"].text_model.forward = None  # whoever calls them fails
    with torch.no_grad():
        teacher["mlm_head"].decoder.bias.add_(1.0)
        moved = model.get_parameter("mlm_head.decoder.bias") - teacher["mlm_head"].decoder.bias
    batch = tiny_batch(4)
    output = model(**batch, **given(batch), image_ids=torch.tensor(ids), distillation_alpha=0.4, use_teacher=False)
    assert output.distillation_alpha == 0.0
    assert all(torch.equal(value, before[name]) for name, value in model.training_state.named_buffers())
    # The teacher follows all the same.
    after = model.get_parameter("mlm_head.decoder.bias") - teacher["mlm_head"].decoder.bias
    torch.testing.assert_close(after, 0.8 * moved)

    images = {key: value for key, value in batch.items() if key not in ("input_ids", "attention_mask")}
    image_embeds = model.vicha.encode_images(**images).embeds
    text_embeds = model.vicha.encode_texts(batch["input_ids"], batch["attention_mask"]).embeds
    similarity, losses = image_embeds @ text_embeds.T / model.vicha.temperature, []
    for logits in (similarity, similarity.T):
        for row in range(4):
            others = [column for column in range(4) if column == row or ids[column] != ids[row]]
            losses.append(logits[row, others].logsumexp(dim=0) - logits[row, row])
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(output.itc_loss, expected)
    weight = model.vicha.vision_projection.weight
    (observed,), (wanted,) = (torch.autograd.grad(loss, weight) for loss in (output.itc_loss, expected))
    torch.testing.assert_close(observed, wanted)


@pytest.mark.parametrize("builder", [tiny_pretraining_model, tiny_retrieval_model])
def test_evaluation_mode_changes_nothing_and_works_without_training_state(builder):
    model = builder()
    with torch.no_grad():
        assert model(**tiny_batch(3)).loss.isfinite()
    assert model.training_state is None
    model.add_training_state()
    fill_queue(model, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model(**tiny_batch(3))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_later_micro_batches_leave_the_teacher_alone():
    model = tiny_pretraining_model(momentum=0.5).train()
    model.add_training_state()
    with torch.no_grad():
        for value in trainable(model).values():
            value.add_(0.1)
    before = {name: value.clone() for name, value in model.training_state.teacher.state_dict().items()}
    model(**tiny_batch(3), update_teacher=False)
    after = model.training_state.teacher.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert int(model.training_state.queue.num_filled) == 3


def test_the_loss_is_the_weighted_sum():
    weights = {"itc": 0.5, "hierarchical_itc": 0.3, "itm": 2.0, "mlm": 0.7, "mim": 1.5}
    model, batch = (
        tiny_pretraining_model(**{f"{name}_weight": value for name, value in weights.items()}),
        tiny_batch(4),
    )
    with torch.no_grad():
        output = model(**batch, **given(batch))
        plain = tiny_pretraining_model()(**batch, **given(batch))
    total = sum(weights[name] * output[f"{name}_loss"] for name in LOSSES)
    torch.testing.assert_close(output.loss, total)
    for name in LOSSES:
        torch.testing.assert_close(output[f"{name}_loss"], plain[f"{name}_loss"])
    torch.testing.assert_close(
        plain.loss, sum(plain[f"{name}_loss"] for name in LOSSES) - 0.9 * plain.hierarchical_itc_loss
    )


@pytest.mark.parametrize("off", LOSSES)
def test_an_objective_that_is_off_has_no_loss_and_no_parameters(off):
    model, batch = tiny_pretraining_model(**{f"{off}_weight": 0}).train(), tiny_batch(4)
    output = model(**batch)
    output.loss.backward()
    for name in LOSSES:
        assert (getattr(output, f"{name}_loss") is None) == (name == off)
    own_module = {"hierarchical_itc": "hierarchical_itc", "itm": "itm_head", "mlm": "mlm_head", "mim": "mim"}.get(off)
    if own_module is not None:
        assert not any(name.startswith(own_module) for name, _ in model.named_parameters())
        assert not any(f".{own_module}." in name for name, _ in model.training_state.named_parameters())
    assert not [name for name, value in trainable(model).items() if value.grad is None]


def test_albef_is_the_model_without_concepts_hierarchy_and_image_modelling():
    model = tiny_pretraining_model(use_concepts=False, hierarchical_itc_weight=0, mim_weight=0).train()
    output = model(**tiny_batch(4, concepts=False))
    output.loss.backward()
    assert [name for name in LOSSES if getattr(output, f"{name}_loss") is not None] == ["itc", "itm", "mlm"]
    assert not any("concept" in name for name, _ in model.named_parameters())
    with pytest.raises(TypeError, match=r"concept_input_ids.*use_concepts=False"):
        model(**tiny_batch(4))


def test_negatives_are_what_the_indices_say():
    model, batch = tiny_pretraining_model(), tiny_batch(4)
    draws = given(batch)
    with torch.no_grad():
        logits = model(**batch, **draws).itm_logits
        images = model.encode_images(
            batch["pixel_values"], batch["concept_input_ids"], batch["concept_attention_mask"]
        )
        texts = model.encode_texts(batch["input_ids"], batch["attention_mask"])
        own = torch.arange(4)
        pairs = [(own, own), (draws["negative_image_indices"], own), (own, draws["negative_text_indices"])]
        expected = torch.cat([model.score_pairs(images, texts, *pair) for pair in pairs])
    torch.testing.assert_close(logits[:, 1], expected)


def test_distillation_alpha_of_the_call_wins_over_the_configuration():
    batch = tiny_batch(4)
    draws = given(batch)
    low, high = tiny_pretraining_model(distillation_alpha=0.0), tiny_pretraining_model(distillation_alpha=0.9)
    with torch.no_grad():
        called, configured = high(**batch, **draws, distillation_alpha=0.0), low(**batch, **draws)
        soft = high(**batch, **draws)
    for name in LOSSES:
        torch.testing.assert_close(called[f"{name}_loss"], configured[f"{name}_loss"])
    assert (called.distillation_alpha, soft.distillation_alpha) == (0.0, 0.9)
    for name in ("itc", "mlm"):
        assert (soft[f"{name}_loss"] - configured[f"{name}_loss"]).abs() > 1e-3


@pytest.mark.parametrize(("value", "expected"), [(0.9, 0.5), (1e-6, 0.001), (0.2, 0.2)])
@pytest.mark.parametrize("builder", [tiny_pretraining_model, tiny_retrieval_model])
def test_the_temperature_stays_in_its_range(builder, value, expected):
    model = builder().train()
    with torch.no_grad():
        model.vicha.temperature.fill_(value)
    model(**tiny_batch(2))
    assert model.vicha.temperature.item() == pytest.approx(expected)


def test_the_published_retrieval_head_does_not_clamp():
    model = tiny_retrieval_model(reference_quirks=["temperature_unclamped"]).train()
    with torch.no_grad():
        model.vicha.temperature.fill_(0.9)
    model(**tiny_batch(2))
    assert model.vicha.temperature.item() == pytest.approx(0.9)


def test_a_seed_decides_every_draw():
    def two_steps(seed):
        torch.manual_seed(seed)
        dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
        model = tiny_pretraining_model(text_config=dropout, mim_mode="both").train()
        torch.manual_seed(seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for step in range(2):
            optimizer.zero_grad()
            output = model(**tiny_batch(3, seed=step))
            output.loss.backward()
            optimizer.step()
        return {**gradients(model), **model.state_dict(), "loss": output.loss.detach()}

    first, again, other = two_steps(0), two_steps(0), two_steps(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["loss"], other["loss"])


def test_dropout_acts_on_the_student_but_never_on_the_teacher():
    model = tiny_pretraining_model(text_config={"hidden_dropout_prob": 0.5}, momentum=1.0).train()
    model.add_training_state()
    batch = tiny_batch(3)
    draws = given(batch)
    losses, features = [], []
    for _ in range(2):
        losses.append(model(**batch, **draws).itm_loss.item())
        queue = model.training_state.queue
        features.append(queue.text_features[(int(queue.pointer) - 3) % queue.size :][:3].clone())
    assert losses[0] != losses[1]
    assert torch.equal(features[0], features[1])


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("reentrant", [None, True, False])
def test_gradient_checkpointing_changes_nothing(reentrant):
    batch = tiny_batch(4)
    observed = []
    for checkpointed in (False, True):
        model = tiny_pretraining_model(mim_mode="both").train()
        if checkpointed:
            model.activation_checkpointing_enable(*([] if reentrant is None else [{"use_reentrant": reentrant}]))
            assert model.is_activation_checkpointing
        output = model(**batch, **given(batch))
        output.loss.backward()
        losses = {name: value.detach() for name, value in output.items() if name.endswith("loss")}
        observed.append(losses | gradients(model))
    assert_same(observed[1], observed[0], tolerance=1e-6)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_gradient_checkpointing_runs_the_layers_again():
    model, batch, calls = tiny_pretraining_model().train(), tiny_batch(2), []
    model.add_training_state()
    layer = model.vicha.text_model.encoder.layer[2].crossattention.self.query
    layer.register_forward_hook(lambda *_: calls.append(1))
    model.activation_checkpointing_enable()
    output = model(**batch, **given(batch))
    forward_calls = len(calls)
    output.loss.backward()
    assert len(calls) == 2 * forward_calls


@pytest.mark.parametrize("builder", [tiny_pretraining_model, tiny_retrieval_model])
def test_arguments_that_do_not_belong_together_are_named(builder):
    model, batch = builder().train(), tiny_batch(3)
    with pytest.raises(ValueError, match=r"`input_ids` has 2 rows and `pixel_values` 3"):
        model(**batch | {"input_ids": batch["input_ids"][:2], "attention_mask": batch["attention_mask"][:2]})
    with pytest.raises(ValueError, match=r"`image_ids` has 4 rows and `pixel_values` 3"):
        model(**batch, image_ids=torch.arange(4))
    with pytest.raises(ValueError, match=r"`concept_input_ids` has 1 rows and `pixel_values` 3"):
        model(**batch | {"concept_input_ids": batch["concept_input_ids"][:1]})
    with pytest.raises(ValueError, match=r"`concept_attention_mask` was given without `concept_input_ids`"):
        model(**batch | {"concept_input_ids": None})


@pytest.mark.parametrize(("given_name", "missing"), [("mlm_input_ids", "mlm_labels"), ("mlm_labels", "mlm_input_ids")])
def test_masked_ids_and_labels_go_together(given_name, missing):
    batch = tiny_batch(3)
    with pytest.raises(ValueError, match=rf"`{given_name}` was given without `{missing}`"):
        tiny_pretraining_model()(**batch, **{given_name: batch["input_ids"]})
