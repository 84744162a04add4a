"""Starting from an image encoder and a text encoder that were pretrained apart, in Hugging Face format."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import CLS, MASK, SEP, VOCAB_SIZE, tiny_batch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    DeiTConfig,
    DeiTModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)
from transformers.utils import logging

from vicha_hf import ViChaForPreTraining
from vicha_hf.models.encoder_vision import interpolate_positions


TOKENS = {"cls_token_id": CLS, "sep_token_id": SEP, "mask_token_id": MASK}
FIELDS = {
    "projection_dim": 16,
    "num_concept_layers": 1,
    "hierarchical_itc_levels": 1,
    "mim_decoder_hidden_size": 16,
    "mim_decoder_heads": 4,
    "queue_size": 4,
}
SIZES = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 3}
VISION = {**SIZES, "num_hidden_layers": 3, "image_size": 32, "patch_size": 8}
TEXT = {**SIZES, "num_hidden_layers": 4, "vocab_size": VOCAB_SIZE, "max_position_embeddings": 20}


def save(model, folder):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    return str(folder), model


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoders")
    return {
        "vit": save(ViTModel(ViTConfig(**VISION)), folder / "vit"),
        "classifier": save(ViTForImageClassification(ViTConfig(**VISION)), folder / "classifier"),
        "deit": save(DeiTModel(DeiTConfig(**VISION)), folder / "deit"),
        "bert": save(BertForMaskedLM(BertConfig(**TEXT)), folder / "bert"),
        "headless": save(BertModel(BertConfig(**TEXT)), folder / "headless"),
        "clip": save(CLIPVisionModel(CLIPVisionConfig(**VISION)), folder / "clip"),
    }


def start(encoders, vision="vit", text="bert", vision_config=None, text_config=None, **fields):
    return ViChaForPreTraining.from_vision_text_pretrained(
        encoders[vision][0],
        encoders[text][0],
        vision_config=vision_config or {},
        text_config=TOKENS | (text_config or {}),
        **FIELDS | fields,
    ).eval()


def test_configurations_are_read_and_single_fields_overridden(encoders):
    model = start(encoders, vision_config={"image_size": 48}, text_config={"fusion_layer": 3})
    vision, text = model.config.vision_config, model.config.text_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads, vision.patch_size) == (
        24,
        3,
        3,
        8,
    )
    assert (text.vocab_size, text.num_hidden_layers, text.max_position_embeddings) == (VOCAB_SIZE, 4, 20)
    assert vision.image_size == 48 and text.fusion_layer == 3
    assert (text.cls_token_id, text.mask_token_id) == (CLS, MASK)
    assert start(encoders).config.text_config.fusion_layer == 2


@pytest.mark.parametrize("name", ["vit", "classifier"])
def test_vision_encoder_equals_the_vit(encoders, name):
    source = encoders[name][1]
    source = getattr(source, "vit", source).eval()
    model, images = start(encoders, vision=name), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        observed, expected = (encoder(images).last_hidden_state for encoder in (model.vicha.vision_model, source))
    assert source.config.layer_norm_eps == model.config.vision_config.layer_norm_eps
    torch.testing.assert_close(observed, expected, atol=1e-5, rtol=1e-5)


def test_positions_are_interpolated_to_another_image_size(encoders):
    model = start(encoders, vision_config={"image_size": 48})
    expected = interpolate_positions(encoders["vit"][1].embeddings.position_embeddings, (6, 6))
    assert torch.equal(model.vicha.vision_model.embeddings.position_embeddings, expected)


def test_deit_gives_its_weights_and_drops_its_distillation_token(encoders):
    source = encoders["deit"][1]
    embeddings = start(encoders, vision="deit").vicha.vision_model.embeddings
    positions = source.embeddings.position_embeddings
    assert positions.shape[1] == 18
    assert torch.equal(embeddings.position_embeddings, torch.cat([positions[:, :1], positions[:, 2:]], dim=1))
    assert torch.equal(embeddings.cls_token, source.embeddings.cls_token)
    assert torch.equal(embeddings.patch_embeddings.weight, source.embeddings.patch_embeddings.projection.weight)


def test_text_only_layers_equal_bert(encoders):
    source, model = encoders["bert"][1].bert.eval(), start(encoders, text_config={"fusion_layer": 2})
    batch = tiny_batch(3)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        expected = source(ids, mask, output_hidden_states=True).hidden_states[2]
        observed = model.encode_texts(ids, mask).hidden_states
        concepts = model.vicha.concept_model(ids, mask).last_hidden_state
        first = source(ids, mask, output_hidden_states=True).hidden_states[1]
    for row in range(3):
        length = int(mask[row].sum())
        torch.testing.assert_close(observed[row, :length], expected[row, :length], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(concepts[row, :length], first[row, :length], atol=1e-5, rtol=1e-5)


def test_every_weight_of_bert_is_taken_over(encoders):
    source, model = encoders["bert"][1], start(encoders)
    weights = dict(source.bert.named_parameters())
    text = dict(model.vicha.text_model.named_parameters())
    for name, value in weights.items():
        assert torch.equal(text[name], value), name
    assert all("crossattention" in name for name in text.keys() - weights.keys())
    concepts = dict(model.vicha.concept_model.named_parameters())
    assert concepts and all(torch.equal(value, weights[name]) for name, value in concepts.items())
    # A start, not a tie: the two encoders go their own ways.
    assert concepts["embeddings.word_embeddings.weight"] is not text["embeddings.word_embeddings.weight"]


def test_masked_language_head_starts_from_berts(encoders):
    source, model = encoders["bert"][1].eval(), start(encoders)
    states = torch.randn(2, 5, 24)
    with torch.no_grad():
        torch.testing.assert_close(model.mlm_head(states), source.cls(states), atol=1e-6, rtol=1e-6)
    assert model.mlm_head.decoder.weight is model.vicha.text_model.embeddings.word_embeddings.weight


def test_a_bert_without_head_leaves_the_head_new(encoders, caplog):
    """It is told in one line; transformers' own table of missing names is not."""
    loggers = [logging.get_logger("vicha_hf.models.pretrained_encoders"), logging.get_logger("transformers")]
    for logger in loggers:
        logger.addHandler(caplog.handler)
    try:
        model = start(encoders, text="headless")
    finally:
        for logger in loggers:
            logger.removeHandler(caplog.handler)
    assert "no masked-language head" in caplog.text and "MISSING" not in caplog.text
    source = encoders["headless"][1]
    assert torch.equal(
        model.vicha.text_model.encoder.layer[3].output.dense.weight, source.encoder.layer[3].output.dense.weight
    )
    assert model.mlm_head.decoder.weight is model.vicha.text_model.embeddings.word_embeddings.weight
    assert torch.equal(model.mlm_head.decoder.weight, source.embeddings.word_embeddings.weight)


def test_concept_encoder_of_embeddings_alone_and_models_without_parts(encoders):
    assert len(start(encoders, num_concept_layers=0).vicha.concept_model.encoder.layer) == 0
    model = start(encoders, use_concepts=False, mlm_weight=0)
    assert model.vicha.concept_model is None and model.mlm_head is None


def test_the_started_model_trains(encoders):
    model = start(encoders).train()
    output = model(**tiny_batch(3))
    output.loss.backward()
    assert output.loss.isfinite()


def test_a_wrong_kind_of_encoder_is_named(encoders):
    with pytest.raises(ValueError, match=r"vision encoder .*clip.* is of type 'clip_vision_model'.*vit"):
        start(encoders, vision="clip")
    with pytest.raises(ValueError, match=r"text encoder .*vit.* is of type 'vit'.*bert"):
        start(encoders, text="vit")
    with pytest.raises(ValueError, match=r"vision encoder .*bert.* is of type 'bert'"):
        start(encoders, vision="bert")


def test_a_depth_that_the_checkpoint_does_not_have_is_named(encoders):
    with pytest.raises(ValueError, match=r"does not fit VisionEncoder: missing \['layers.3"):
        start(encoders, vision_config={"num_hidden_layers": 4})


def broken_copy(source, folder, change):
    """A folder whose weights went through `change`, a function of the dict of tensors."""
    shutil.copytree(source, folder)
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    return str(folder)


def without_layer(weights):
    return {name: value for name, value in weights.items() if "layer.2." not in name}


@pytest.mark.parametrize("role", ["vision", "text"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_removed_with_a_message(encoders, tmp_path, caplog, role, prefix):
    name = {"vision": "vit", "text": "bert"}[role]
    wrapped = broken_copy(
        encoders[name][0],
        tmp_path / "wrapped",
        lambda weights: {prefix + key: value for key, value in weights.items()},
    )
    logger = logging.get_logger("vicha_hf.models.pretrained_encoders")
    logger.addHandler(caplog.handler)
    try:
        torch.manual_seed(0)
        observed = start(encoders | {"wrapped": (wrapped, None)}, **{role: "wrapped"})
    finally:
        logger.removeHandler(caplog.handler)
    assert f"the prefix {prefix!r} was removed" in caplog.text and wrapped in caplog.text
    torch.manual_seed(0)
    for (key, value), other in zip(
        start(encoders).named_parameters(), dict(observed.named_parameters()).values(), strict=True
    ):
        assert torch.equal(value, other), key


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("vit", without_layer, r"does not fit ViTModel: missing .*layers?.2.* and \d+ more"),
        ("bert", without_layer, r"does not fit BertForMaskedLM: missing bert.encoder.layer.2.* and \d+ more"),
        ("vit", lambda weights: {f"net.{key}": value for key, value in weights.items()}, r"missing .*left over net\."),
        (
            "bert",
            lambda weights: {f"net.{key}": value for key, value in weights.items()},
            r"missing .*left over net\.",
        ),
        (
            "bert",
            lambda weights: {k: v for k, v in weights.items() if not k.endswith("transform.dense.bias")},
            r"masked-language head: missing cls.predictions.transform.dense.bias",
        ),
    ],
)
def test_weights_that_do_not_load_are_refused_by_name(encoders, tmp_path, name, change, message):
    broken = broken_copy(encoders[name][0], tmp_path / "broken", change)
    with pytest.raises(ValueError, match=message):
        start(encoders | {"broken": (broken, None)}, **{"vision" if name == "vit" else "text": "broken"})


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_more_layers_than_the_configuration_says_are_refused(encoders, tmp_path, name):
    broken = Path(broken_copy(encoders[name][0], tmp_path / "broken", dict))
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    with pytest.raises(ValueError, match=r"left over .*layers?.2"):
        start(encoders | {"broken": (str(broken), None)}, **{"vision" if name == "vit" else "text": "broken"})


@pytest.mark.parametrize(
    ("part", "name"), [("vision", "hidden_size"), ("vision", "patch_size"), ("text", "intermediate_size")]
)
def test_another_size_than_the_weights_have_is_one_line(encoders, part, name):
    with pytest.raises(
        ValueError, match=rf"^{part}_config\.{name}=4 is not possible: .*--model\.{part}_config {{}}"
    ) as caught:
        start(encoders, **{f"{part}_config": {name: 4}})
    assert "\n" not in str(caught.value)


def test_a_pretrained_vit_has_no_convolutional_stem(encoders):
    with pytest.raises(ValueError, match=r"^vision_config\.stem='convolutional' is not possible: .*vision_config {}"):
        start(encoders, vision_config={"stem": "convolutional"})


def test_one_of_the_two_may_start_at_random(encoders):
    text = {**TEXT, "num_attention_heads": 3, "fusion_layer": 2}
    model = ViChaForPreTraining.from_vision_text_pretrained(
        encoders["vit"][0], None, text_config=TOKENS | text, **FIELDS
    )
    expected = encoders["vit"][1].embeddings.cls_token
    assert torch.equal(model.vicha.vision_model.embeddings.cls_token, expected)
    model = ViChaForPreTraining.from_vision_text_pretrained(
        None, encoders["bert"][0], vision_config=VISION, text_config=TOKENS, **FIELDS
    )
    expected = encoders["bert"][1].bert.embeddings.word_embeddings.weight
    assert torch.equal(model.vicha.text_model.embeddings.word_embeddings.weight, expected)
    assert model.config.vision_config.num_hidden_layers == 3
