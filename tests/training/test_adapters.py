"""Frozen parts and low-rank adapters: what trains and what does not, the teacher, and the plain weights that are saved."""

import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from head_checks import HEADS, step_inputs, tiny_head
from safetensors.torch import load_file
from simla_models import SIMLA_HEADS, SimlaForPreTraining, SimlaForRetrieval, simla_batch, simla_model
from tiny_models import assert_same, gradients, tiny_batch, tiny_pretraining_model, tiny_retrieval_model

from vicha_hf import ViChaForPreTraining
from vicha_hf.training.adapters import (
    LoraArguments,
    TrainedPartsArguments,
    choose_trained_parts,
    has_adapters,
    merged_weights,
)
from vicha_hf.training.sharding import prepare_for_gathering


EVERY_LAYER = ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2", "query", "key", "value", "dense"]
TASKS = {
    **{name: (lambda name=name: tiny_head(name), lambda name=name: step_inputs(name, 4)) for name in HEADS},
    "pretraining": (tiny_pretraining_model, lambda: tiny_batch(4)),
    "retrieval": (tiny_retrieval_model, lambda: tiny_batch(4)),
    "simla pretraining": (lambda: simla_model(SimlaForPreTraining), lambda: simla_batch(4)),
    "simla retrieval": (lambda: simla_model(SimlaForRetrieval), lambda: tiny_batch(4, concepts=False)),
    "simla reasoning": (
        lambda: simla_model(SIMLA_HEADS["reasoning"]),
        lambda: step_inputs("reasoning", 4, concepts=False),
    ),
    "simla vqa": (lambda: simla_model(SIMLA_HEADS["vqa"]), lambda: step_inputs("vqa", 4, concepts=False)),
}


def choose(model, freeze=(), **lora):
    choose_trained_parts(
        model, TrainedPartsArguments(freeze=list(freeze), lora=LoraArguments(**lora) if lora else None)
    )
    model.add_training_state()
    return model.train()


def trained(model):
    return {name for name, value in model.named_parameters() if value.requires_grad}


def descend(model, batch, steps=1, rate=0.1):
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()


def snapshot(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


@pytest.mark.parametrize("name", ["vision_model", "text_model", "concept_model", "text_model.embeddings"])
def test_a_frozen_part_stays_and_everything_else_moves(name):
    model = choose(tiny_pretraining_model(), freeze=[name])
    before = snapshot(model)
    descend(model, tiny_batch(4))
    moved = {key for key, value in snapshot(model).items() if not torch.equal(value, before[key])}
    inside = {key for key in before if key.startswith(f"vicha.{name}.")}
    # The masked-language head's decoder is the word embeddings.
    assert inside and not inside & (moved | trained(model))
    others = {key for key in before if not key.startswith(("training_state", f"vicha.{name}."))}
    assert {key for key in others - moved if not key.endswith(("key.bias", "k_proj.bias"))} == set()


@pytest.mark.parametrize("name", TASKS)
def test_every_weight_that_trains_gets_a_gradient(name):
    """Data-parallel training would wait for one that gets none."""
    build, batch = TASKS[name]
    model = choose(build(), r=2, target_modules=EVERY_LAYER)
    base = model.base_model_prefix
    adapters = {key for key in trained(model) if ".lora_" in key}
    encoders = tuple(f"{base}.{part}." for part in ("vision_model", "text_model", "concept_model"))
    assert adapters and {key for key in trained(model) if key.startswith(encoders)} == adapters
    model(**batch()).loss.backward()
    assert [key for key, value in model.named_parameters() if value.requires_grad and value.grad is None] == []


def test_adapters_of_layers_that_nothing_runs_are_frozen():
    model = choose(tiny_pretraining_model(itm_weight=0, mlm_weight=0), r=2)
    assert not any(key.startswith("vicha.text_model.encoder.layer.3") for key in trained(model))
    model(**tiny_batch(4)).loss.backward()
    assert [key for key, value in model.named_parameters() if value.requires_grad and value.grad is None] == []


def test_frozen_encoders_get_no_adapters():
    model = choose(tiny_pretraining_model(), freeze=["vision_model", "text_model.encoder.layer.0"], r=2)
    adapted = {key.split(".lora_")[0] for key in trained(model) if ".lora_" in key}
    assert {key.split(".")[1] for key in adapted} == {"text_model", "concept_model"}
    assert not any(".encoder.layer.0." in key for key in adapted if key.startswith("vicha.text_model"))


def test_parts_with_adapters_leave_the_others_whole():
    model = choose(
        tiny_pretraining_model(), freeze=["text_model.embeddings"], r=4, parts=["text_model.encoder.layer.0"]
    )
    moving = trained(model)
    inside = {name for name in moving if name.startswith("vicha.text_model.encoder.layer.0.")}
    assert inside and all(".lora_" in name for name in inside)
    assert not any(".lora_" in name for name in moving - inside)
    for part in ("vision_model", "text_model.encoder.layer.1", "concept_model"):
        assert any(name.startswith(f"vicha.{part}.") for name in moving), part
    before = snapshot(model)
    descend(model, tiny_batch(4), steps=2)
    after = snapshot(model)
    # The value's adapter moves from the first step on; the weight under it stays.
    layer = "vicha.text_model.encoder.layer.0.attention.self.value"
    assert torch.equal(after[f"{layer}.base_layer.weight"], before[f"{layer}.base_layer.weight"])
    assert not torch.equal(after[f"{layer}.lora_B.default.weight"], before[f"{layer}.lora_B.default.weight"])


def test_adapters_begin_as_if_they_were_not_there():
    plain, adapted = (
        tiny_pretraining_model().train(),
        choose(tiny_pretraining_model(), r=4, target_modules=EVERY_LAYER),
    )
    plain.add_training_state()
    losses = []
    for model in (plain, adapted):
        torch.manual_seed(1)
        output = model(**tiny_batch(4))
        losses.append({name: value.detach() for name, value in output.items() if name.endswith("loss")})
    assert_same(losses[1], losses[0], tolerance=1e-6)


def by_hand(model, prefix=""):
    """Plain weights: W + alpha / r * B A, from the names alone."""
    state = {name.removeprefix(prefix): value for name, value in model.state_dict().items() if name.startswith(prefix)}
    scale, plain = 8 / 4, {}
    for name, value in state.items():
        if ".lora_" in name or name.startswith("training_state."):
            continue
        stem = name.removesuffix(".base_layer.weight")
        if stem != name:
            value = value + scale * state[f"{stem}.lora_B.default.weight"] @ state[f"{stem}.lora_A.default.weight"]
        plain[name.replace(".base_layer.", ".")] = value
    return plain


def trained_model(**fields):
    model = choose(tiny_pretraining_model(momentum=0.8, **fields), r=4, alpha=8, target_modules=EVERY_LAYER)
    torch.manual_seed(0)
    descend(model, tiny_batch(4), steps=4, rate=0.05)
    return model


def test_the_saved_model_is_plain_and_the_same(tmp_path, monkeypatch):
    model = trained_model()
    model.save_pretrained(tmp_path, state_dict=merged_weights(model, model.state_dict()))
    # Who loads it needs no peft.
    monkeypatch.setitem(sys.modules, "peft", None)
    loaded, info = ViChaForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not has_adapters(loaded)
    plain = tiny_pretraining_model()
    plain.save_pretrained(tmp_path / "plain")
    assert load_file(tmp_path / "model.safetensors").keys() == load_file(tmp_path / "plain/model.safetensors").keys()
    batch = tiny_batch(4)
    images = {name: value for name, value in batch.items() if "input_ids" not in name[:9] and name != "attention_mask"}
    with torch.no_grad():
        embeds = [each.eval().vicha.encode_images(**images).embeds for each in (model, loaded, plain)]
    torch.testing.assert_close(embeds[1], embeds[0], rtol=1e-5, atol=1e-5)
    assert (embeds[2] - embeds[0]).abs().max() > 1e-3
    assert_same(merged_weights(model, model.state_dict()), by_hand(model))


def test_the_teacher_follows_the_weights_that_the_adapters_make():
    model = trained_model()
    teacher = model.training_state.teacher
    assert not has_adapters(teacher)
    before = {name: value.clone() for name, value in teacher.named_parameters()}
    model.update_teacher()
    online = {name: value for name, value in by_hand(model).items() if name in before}
    assert online.keys() == before.keys()
    for name, value in teacher.named_parameters():
        torch.testing.assert_close(value, 0.8 * before[name] + 0.2 * online[name], rtol=1e-5, atol=1e-6)
    moved = {name for name, value in before.items() if not torch.equal(value, dict(teacher.named_parameters())[name])}
    assert {"vicha.vision_model.layers.0.mlp.fc1.weight", "vicha.vision_projection.weight"} <= moved
    assert "vicha.vision_model.layers.0.mlp.fc1.bias" not in moved


def test_a_teacher_made_after_training_began_is_the_model():
    model = trained_model()
    model.training_state = None
    model.add_training_state()
    batch = tiny_batch(3)
    texts = (batch["input_ids"], batch["attention_mask"])
    with torch.no_grad():
        observed = model.training_state.teacher["vicha"].encode_texts(*texts).embeds
        torch.testing.assert_close(observed, model.eval().vicha.encode_texts(*texts).embeds, rtol=1e-5, atol=1e-5)
    assert not any(value.requires_grad for value in model.training_state.parameters())


def test_recomputed_layers_train_the_same_adapters():
    found = []
    for checkpointing in (False, True):
        model = trained_model(mim_weight=0)
        if checkpointing:
            model.activation_checkpointing_enable()
        model.zero_grad()
        torch.manual_seed(3)
        model(**tiny_batch(4)).loss.backward()
        found.append(gradients(model))
    assert_same(found[1], found[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoraArguments(r=0), r"model.lora.r=0 .*at least 1"),
        (lambda: LoraArguments(alpha=0), r"model.lora.alpha=0 .*above 0"),
        (lambda: LoraArguments(dropout=1.0), r"model.lora.dropout=1.0 .*\[0, 1\)"),
        (lambda: LoraArguments(parts=[]), r"model.lora.parts=\[\] .*at least one part"),
        (
            lambda: choose(tiny_pretraining_model(), r=2, parts=["text"]),
            r"model.lora.parts='text' .*no such part; it has concept_model",
        ),
        (
            lambda: choose(tiny_pretraining_model(), freeze=["text_model"], r=2, parts=["text_model.encoder"]),
            r"model.freeze=.*no part is left for the adapters",
        ),
        (lambda: LoraArguments(target_modules=[]), r"model.lora.target_modules=\[\] .*at least one"),
        (
            lambda: choose(tiny_pretraining_model(), r=2, target_modules=["query", "c_attn"]),
            r"target_modules=.*c_attn is the name of no linear layer .*there are dense, fc1, fc2, k_proj",
        ),
        (
            lambda: choose(tiny_pretraining_model(), freeze=["vision"]),
            r"model.freeze='vision' .*no such part; it has concept_model, .*vision_model",
        ),
        (
            lambda: choose(tiny_pretraining_model(), freeze=["vision_model"], r=2, target_modules=["q_proj"]),
            r"model.freeze=.*no part is left for the adapters",
        ),
        (
            lambda: choose(tiny_pretraining_model(), freeze=["vision_model", "text_model", "concept_model"], r=2),
            r"model.freeze=.*no part is left for the adapters",
        ),
    ],
)
def test_what_is_not_possible_names_field_value_and_remedy(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_after_the_teacher_was_made_it_is_too_late():
    model = tiny_pretraining_model()
    model.add_training_state()
    with pytest.raises(ValueError, match="before `add_training_state`"):
        choose(model, r=2)


def test_without_peft_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr("vicha_hf.training.adapters.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'model.lora=.*pip install "vicha_hf\[peft\]"'):
        LoraArguments()


@pytest.mark.parametrize("kind", [DistributedType.DEEPSPEED, DistributedType.FSDP])
def test_split_weights_are_refused(kind):
    state = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=1))
    accelerator = SimpleNamespace(distributed_type=kind, is_fsdp2=kind == DistributedType.FSDP, state=state)
    prepare_for_gathering(tiny_retrieval_model(), accelerator)
    with pytest.raises(ValueError, match=r"model.lora=True is not possible: .*launch with single_gpu"):
        prepare_for_gathering(choose(tiny_retrieval_model(), r=2), accelerator)
