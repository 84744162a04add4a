"""Calls of every head of both families: unknown arguments, recorded outputs, draws in evaluation mode, rows of padding."""

import json

import pytest
import torch
from head_checks import HEADS, head_config, step_inputs
from simla_models import SIMLA_HEADS, SimlaForPreTraining, SimlaForRetrieval, SimlaModel, simla_batch, simla_model
from tiny_models import spread_weights, tiny_batch, tiny_config, tiny_model

from vicha_hf import ViChaForPreTraining, ViChaForRetrieval, ViChaModel


VICHA = HEADS | {"pretraining": ViChaForPreTraining, "retrieval": ViChaForRetrieval}
SIMLA = SIMLA_HEADS | {"pretraining": SimlaForPreTraining, "retrieval": SimlaForRetrieval}
CALLS = [*(("vicha", name) for name in VICHA), *(("simla", name) for name in SIMLA)]
FUSION_LAYERS = {"vicha": (4, 2), "simla": (4, 4)}


def build(family, name, attn_implementation="sdpa"):
    if family == "simla":
        return simla_model(SIMLA[name], attn_implementation=attn_implementation)
    torch.manual_seed(0)
    config = tiny_config() if name in ("pretraining", "retrieval") else head_config()
    config._attn_implementation = attn_implementation
    model = VICHA[name](config)
    spread_weights(model)
    return model.eval()


def inputs_of(family, name, batch_size=4):
    concepts = family == "vicha"
    if name == "pretraining":
        return tiny_batch(batch_size) if concepts else simla_batch(batch_size)
    if name == "retrieval":
        return tiny_batch(batch_size, concepts=concepts)
    inputs = step_inputs(name, batch_size, concepts=concepts)
    return {key: value for key, value in inputs.items() if key not in ("labels", "pair_indices")}


@pytest.mark.parametrize(("family", "name"), CALLS)
def test_unknown_arguments_are_named(family, name):
    model, inputs = build(family, name), inputs_of(family, name)
    for wrong, near in (("bananas", "`"), ("image_id", "`image_ids`"), ("concept_ids", "`")):
        if near == "`image_ids`" and name not in ("pretraining", "retrieval", "grounding", "text-assignment"):
            near = "`"
        with pytest.raises(
            TypeError, match=rf"{type(model).__name__}'s forward takes no `{wrong}`.*did you mean {near}"
        ):
            model(**inputs, **{wrong: 1})
    with torch.no_grad():
        model(**inputs, num_items_in_batch=3, return_dict=True, output_attentions=False, output_hidden_states=None)


@pytest.mark.parametrize("name", SIMLA)
def test_concepts_are_refused_by_models_without_them(name):
    inputs = inputs_of("simla", name)
    ids = torch.full((4, 2, 3) if name == "reasoning" else (4, 3), 7)
    with pytest.raises(TypeError, match="concept_input_ids"):
        build("simla", name)(**inputs, concept_input_ids=ids)


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(("family", "name"), CALLS)
def test_states_and_attentions_on_request(family, name, attn_implementation):
    model, inputs = build(family, name, attn_implementation), inputs_of(family, name)
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True, output_attentions=True)
        plain = model(**inputs)
        values = model(**inputs, return_dict=False)
    assert plain.hidden_states is None and plain.attentions is None and plain.cross_attentions is None
    layers, cross_layers = FUSION_LAYERS[family]
    if name in ("reasoning", "text-assignment"):
        # From the second half on every layer has a twin.
        layers, cross_layers = 6, {"vicha": 4, "simla": 6}[family]
    assert len(output.hidden_states) == layers + 1
    assert len(output.attentions) == layers and len(output.cross_attentions) == cross_layers
    for weights in (*output.attentions, *output.cross_attentions):
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones_like(weights[..., 0]))
    if plain.get("logits") is not None:
        torch.testing.assert_close(output.logits, plain.logits, atol=1e-5, rtol=1e-4)
    assert isinstance(values, tuple) and len(values) == len(plain.to_tuple())


@pytest.mark.parametrize("builder", [lambda: tiny_model(), lambda: simla_model(SimlaModel)])
def test_the_bare_model_records_under_sdpa(builder):
    model = builder()
    batch = tiny_batch(2, concepts=model.config.use_concepts)
    texts = {name: batch.pop(name) for name in ("input_ids", "attention_mask")}
    record = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        both = model(**batch, **texts, **record)
        images, words = model.get_image_features(**batch, **record), model.get_text_features(**texts, **record)
        plain = model(**batch, **texts)
    assert len(both.attentions) > 0 and len(both.cross_attentions) > 0
    assert len(images.attentions) == 3 and len(images.hidden_states) == 4
    assert len(words.attentions) == model.config.text_config.num_text_layers == len(words.hidden_states) - 1
    torch.testing.assert_close(both.last_hidden_state, plain.last_hidden_state, atol=1e-5, rtol=1e-4)
    assert plain.attentions is None
    with pytest.raises(TypeError, match="takes no `bananas`"):
        model.get_text_features(**texts, bananas=1)


@pytest.mark.parametrize(
    ("family", "name"), [call for call in CALLS if call[1] in ("pretraining", "retrieval", "text-assignment")]
)
def test_the_same_batch_gives_the_same_loss_in_evaluation_mode(family, name):
    model, losses = build(family, name), []
    model.eval()
    with torch.no_grad():
        for seed in (0, 1):
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            losses.append(model(**inputs_of(family, name)).loss)
            assert torch.equal(torch.get_rng_state(), before)
        other = inputs_of(family, name)
        other["pixel_values"] = other["pixel_values"] + 1e-3
        changed = model(**other).loss
        model.train()
        torch.manual_seed(0)
        trained = [model(**inputs_of(family, name)).loss for _ in range(2)]
    assert torch.equal(*losses)
    assert not torch.equal(losses[0], changed) and not torch.equal(*trained)


@pytest.mark.parametrize(("family", "name"), CALLS)
def test_a_row_of_padding_is_the_same_in_every_backend_and_batch(family, name):
    """It is read as its first token alone."""
    results = []
    for attn_implementation in ("sdpa", "eager"):
        model = build(family, name, attn_implementation)
        for columns in (0, 3):
            inputs = inputs_of(family, name)
            for key in ("input_ids", "attention_mask"):
                padding = inputs[key].new_zeros(4, columns)
                inputs[key] = torch.cat([inputs[key], padding], dim=1)
            inputs["attention_mask"][1] = 0
            if name == "pretraining":
                inputs |= {
                    "mlm_input_ids": inputs["input_ids"],
                    "mlm_labels": torch.full_like(inputs["input_ids"], -100),
                }
                inputs["mlm_labels"][0, 1] = 5
            torch.manual_seed(0)
            with torch.no_grad():
                output = model(**inputs)
            value = output.get("heatmaps") if name == "grounding" else output.loss
            results.append(output.logits if value is None else value)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], atol=1e-4, rtol=1e-4)


def test_a_row_of_padding_only_is_its_first_token():
    model, batch = tiny_model(), tiny_batch(2, concepts=False)
    mask = batch["attention_mask"].clone()
    mask[0] = 0
    with torch.no_grad():
        texts = model.encode_texts(batch["input_ids"], mask)
        first = model.encode_texts(batch["input_ids"][:1, :1])
    torch.testing.assert_close(texts.embeds[0], first.embeds[0])
    with pytest.raises(ValueError, match=r"`input_ids` has shape \(2, 0\)"):
        model.encode_texts(batch["input_ids"][:, :0])


@pytest.mark.parametrize("family", ["vicha", "simla"])
def test_retrieval_compares_as_the_bare_model(family):
    model = build(family, "retrieval")
    batch = inputs_of(family, "retrieval")
    image = {name: value[:1] for name, value in batch.items() if name.startswith(("pixel", "concept"))}
    texts = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        output, bare = model(**image, **texts), model.base_model(**image, **texts)
        types = model(**image, **texts, token_type_ids=torch.zeros_like(texts["input_ids"]))
        pairs = model(**batch)
    assert output.loss is None and torch.equal(output.logits_per_image, bare.logits_per_image)
    assert torch.equal(types.logits_per_image, bare.logits_per_image)
    assert pairs.loss.isfinite() and pairs.logits_per_image.shape == (4, 4)
    with pytest.raises(ValueError, match="rows"):
        model.train()(**image, **texts)


@pytest.mark.parametrize(
    ("family", "name"), [call for call in CALLS if call[1] in ("entailment", "reasoning", "text-assignment")]
)
def test_classes_stand_in_the_configuration(family, name, tmp_path):
    model = build(family, name)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert list(saved["id2label"].values()) == list(model.CLASSES)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.config.id2label == dict(enumerate(model.CLASSES))
    assert loaded.config.label2id[model.CLASSES[-1]] == len(model.CLASSES) - 1


def test_what_any_head_adds_is_left_aside_by_the_others():
    modules = {name for head in (*VICHA.values(), *SIMLA.values()) for name in head.head_modules}
    for family, heads in (("vicha", VICHA), ("simla", SIMLA)):
        for name, head in heads.items():
            model = build(family, name)
            own = {child for child, module in model.named_children() if any(True for _ in module.parameters())}
            assert own - {model.base_model_prefix} == set(head.head_modules)
            assert {rf"^{module}\." for module in modules} <= model._keys_to_ignore_on_load_unexpected


def test_flex_attention():
    config = tiny_config()
    with pytest.raises(ValueError, match="flex"):
        ViChaModel._from_config(config, attn_implementation="flex_attention")
