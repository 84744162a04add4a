"""Published checkpoints become models, or an error that names what is in the way. Their numbers are in tests/golden."""

import argparse
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vicha_hf import ViChaForPreTraining, ViChaForRetrieval, ViChaModel
from vicha_hf.cli import main as vicha_hf_command
from vicha_hf.conversion import convert_checkpoint
from vicha_hf.conversion.convert import CheckpointError
from vicha_hf.models.configuration_vicha import ALBEF_REFERENCE_QUIRKS, VICHA_REFERENCE_QUIRKS


GOLDEN = Path(__file__).parents[1] / "golden" / "data"
HEADS = {"vision_config": {"num_attention_heads": 4}, "text_config": {"num_attention_heads": 4}}
DECODER = {"mim_decoder_heads": 4}


def published(name):
    return torch.load(GOLDEN / name / "original.pth", weights_only=True)


def convert(checkpoint, tmp_path, head=None, **options):
    path = tmp_path / "checkpoint.pth"
    torch.save(checkpoint, path)
    return convert_checkpoint(path, head=head, **HEADS, **DECODER, **options)


def test_everything_is_inferred_from_the_checkpoint():
    model = convert_checkpoint(GOLDEN / "vicha_pretrain" / "original.pth", **HEADS, **DECODER)
    config, vision, text = model.config, model.config.vision_config, model.config.text_config
    assert type(model) is ViChaForPreTraining and not model.training and model.training_state is None
    assert (vision.hidden_size, vision.num_hidden_layers, vision.intermediate_size) == (24, 12, 96)
    assert (vision.image_size, vision.patch_size) == (64, 16)
    assert (text.vocab_size, text.hidden_size, text.num_hidden_layers, text.fusion_layer) == (200, 32, 12, 6)
    assert (text.intermediate_size, text.max_position_embeddings, text.encoder_hidden_size) == (48, 64, 24)
    assert (config.projection_dim, config.queue_size, config.momentum, config.distillation_alpha) == (
        16,
        16,
        0.995,
        0.4,
    )
    assert (config.use_concepts, config.num_concept_layers, config.mlm_probability) == (True, 2, 0.3)
    assert (config.hierarchical_itc_levels, config.hierarchical_itc_weight) == (5, 0.1)
    assert list(config.hierarchical_itc_level_weights) == [1] * 5
    assert (config.mim_mode, config.mim_mask_ratio, config.mim_decoder_hidden_size, config.mim_decoder_layers) == (
        "unimodal",
        0.75,
        16,
        2,
    )
    assert set(config.reference_quirks) == set(VICHA_REFERENCE_QUIRKS)


def test_albef_is_recognised():
    config = convert_checkpoint(GOLDEN / "albef_pretrain" / "original.pth", **HEADS).config
    assert not config.use_concepts and config.hierarchical_itc_weight == 0 and config.mim_weight == 0
    assert set(config.reference_quirks) == set(ALBEF_REFERENCE_QUIRKS)


def test_attention_heads_default_to_the_published_width(tmp_path):
    """64 channels each; narrower models have one head."""
    config = convert_checkpoint(GOLDEN / "albef_pretrain" / "original.pth").config
    assert config.vision_config.num_attention_heads == config.text_config.num_attention_heads == 1


def test_overrides_win_over_the_checkpoint_and_merge_into_the_parts(tmp_path):
    checkpoint = published("vicha_pretrain")
    checkpoint["config"]["momentum"] = 0.5
    assert convert(checkpoint, tmp_path).config.momentum == 0.5
    model = convert(
        checkpoint, tmp_path, momentum=0.9, distillation_alpha=0.1, reference_quirks=[], mim_mask_ratio=0.5
    )
    config = model.config
    assert (config.momentum, config.distillation_alpha, config.mim_mask_ratio) == (0.9, 0.1, 0.5)
    assert list(config.reference_quirks) == []
    assert config.vision_config.num_attention_heads == 4 and config.vision_config.hidden_size == 24


def test_options_may_be_absent(tmp_path):
    checkpoint = published("vicha_pretrain")
    bare = convert(checkpoint["model"], tmp_path)
    config = bare.config
    assert (config.vision_config.image_size, config.momentum, config.mlm_probability) == (64, 0.995, 0.15)
    assert config.projection_dim == 16 and config.hierarchical_itc_levels == 5


def test_pixels_beyond_the_last_patch_are_kept_from_the_options(tmp_path):
    checkpoint = published("albef_pretrain")
    checkpoint["config"]["image_res"] = 70
    assert convert(checkpoint, tmp_path).config.vision_config.image_size == 70
    checkpoint["config"]["image_res"] = 384
    assert convert(checkpoint, tmp_path).config.vision_config.image_size == 64


def test_names_of_wrapped_models_are_understood(tmp_path):
    checkpoint = published("albef_pretrain")
    plain = convert(checkpoint, tmp_path)
    checkpoint["model"] = {f"module.{name}": value for name, value in checkpoint["model"].items()}
    wrapped = convert(checkpoint, tmp_path).state_dict()
    assert all(torch.equal(wrapped[name], value) for name, value in plain.state_dict().items())


@pytest.mark.parametrize("name", ["vicha_pretrain", "albef_pretrain"])
def test_training_state_is_kept_on_request(name):
    path = GOLDEN / name / "original.pth"
    tensors = published(name)["model"]
    without = convert_checkpoint(path, **HEADS, **DECODER)
    model = convert_checkpoint(path, training_state=True, **HEADS, **DECODER)
    assert without.training_state is None
    teacher, queue = model.training_state.teacher, model.training_state.queue
    assert torch.equal(queue.image_features, tensors["image_queue"].T)
    assert torch.equal(queue.text_features, tensors["text_queue"].T)
    assert int(queue.pointer) == int(tensors["queue_ptr"]) and int(queue.num_filled) == 16
    assert torch.equal(teacher["vicha"].vision_projection.weight, tensors["vision_proj_m.weight"])
    assert torch.equal(model.vicha.vision_projection.weight, tensors["vision_proj.weight"])
    words = teacher["vicha"].text_model.embeddings.word_embeddings.weight
    assert torch.equal(words, tensors["text_encoder_m.bert.embeddings.word_embeddings.weight"])
    assert teacher["mlm_head"].decoder.weight is words
    assert not torch.equal(words, model.vicha.text_model.embeddings.word_embeddings.weight)


@pytest.mark.parametrize(
    ("name", "head"), [("vicha_pretrain", None), ("albef_pretrain", None), ("vicha_retrieval", "retrieval")]
)
def test_a_saved_conversion_gives_the_same_numbers(name, head, tmp_path):
    model = convert_checkpoint(GOLDEN / name / "original.pth", head=head, **HEADS, **DECODER)
    model.save_pretrained(tmp_path)
    inputs = load_file(GOLDEN / name / "inputs.safetensors")
    batch = {"pixel_values": inputs["image"], "input_ids": inputs["text_input_ids"]}
    batch["attention_mask"] = inputs["text_attention_mask"]
    for concept_input in ("concept_input_ids", "concept_attention_mask"):
        if concept_input in inputs:
            batch[concept_input] = inputs[concept_input]
    with torch.no_grad():
        expected = model.vicha(**batch)
        for model_class in (type(model), ViChaModel):
            loaded = model_class.from_pretrained(tmp_path)
            observed = getattr(loaded, "vicha", loaded)(**batch)
            assert torch.equal(observed.logits_per_image, expected.logits_per_image)
            assert torch.equal(observed.last_hidden_state, expected.last_hidden_state)
    assert list(loaded.config.reference_quirks) == list(model.config.reference_quirks)


MISSING = {
    "visual_encoder.blocks.3.attn.qkv.weight": "vicha.vision_model.layers.3.attention.q_proj.weight",
    "visual_encoder.pos_embed": None,
    "text_encoder.bert.encoder.layer.7.crossattention.self.key.weight": (
        "vicha.text_model.encoder.layer.7.crossattention.self.key.weight"
    ),
    "text_encoder.cls.predictions.transform.dense.weight": "mlm_head.transform.dense.weight",
    "kw_encoder.encoder.layer.1.output.dense.bias": "vicha.concept_model.encoder.layer.1.output.dense.bias",
    "kw_proj.bias": "vicha.concept_projection.bias",
    "text_proj.weight": "vicha.text_projection.weight",
    "itm_head.weight": "itm_head.weight",
    "temp": "vicha.temperature",
    "mask_token": "mim.mask_token",
    "decoder_norm.bias": "mim.decoder.layernorm.bias",
    "vision_proj_hidden.2.bias": "hierarchical_itc.vision_projections.2.bias",
}


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_key_is_named(name, tmp_path):
    checkpoint = published("vicha_pretrain")
    del checkpoint["model"][name]
    # Where the shapes themselves are read off the tensor, the published name is all there is.
    with pytest.raises(CheckpointError, match=re.escape(MISSING[name] or name)):
        convert(checkpoint, tmp_path)


@pytest.mark.parametrize(
    "name", ["visual_encoder.blocks.3.attn.other.weight", "prompt_embeddings", "text_encoder.bert.pooler.dense.weight"]
)
def test_a_left_over_key_is_named(name, tmp_path):
    checkpoint = published("vicha_pretrain")
    checkpoint["model"][name] = torch.zeros(2)
    with pytest.raises(CheckpointError, match=rf"left over \['{name}'\]"):
        convert(checkpoint, tmp_path)


def test_teacher_keys_may_only_be_missing_when_they_are_not_wanted(tmp_path):
    checkpoint = published("vicha_pretrain")
    checkpoint["model"] = {
        name: value
        for name, value in checkpoint["model"].items()
        if "_m." not in name and not name.endswith(("_queue", "queue_ptr"))
    }
    convert(checkpoint, tmp_path)
    with pytest.raises(CheckpointError, match=r"missing .*training_state\.teacher"):
        convert(checkpoint, tmp_path, training_state=True)


def test_a_wrong_shape_is_named(tmp_path):
    checkpoint = published("vicha_pretrain")
    checkpoint["model"]["kw_proj.weight"] = torch.zeros(24, 31)
    with pytest.raises(CheckpointError, match=r"`kw_proj.weight` \(24, 31\) does not fit `.*` \(24, 32\)"):
        convert(checkpoint, tmp_path)


def test_two_keys_for_one_tensor_must_agree(tmp_path):
    checkpoint = published("vicha_pretrain")
    checkpoint["model"]["text_encoder.cls.predictions.bias"] = torch.ones(200)
    with pytest.raises(CheckpointError, match=r"text_encoder\.cls\.predictions\..*bias.*different values"):
        convert(checkpoint, tmp_path)


def test_the_head_must_be_known_told_and_the_checkpoints_own(tmp_path):
    retrieval, pretraining = (GOLDEN / name / "original.pth" for name in ("vicha_retrieval", "vicha_pretrain"))
    with pytest.raises(CheckpointError, match=r"(?s)retrieval.*grounding.*`head`"):
        convert_checkpoint(retrieval, **HEADS)
    assert type(convert_checkpoint(retrieval, head="retrieval", **HEADS)) is ViChaForRetrieval
    # Before the file is looked at.
    for source in (retrieval, "nowhere.pth"):
        with pytest.raises(CheckpointError, match=r"`head='retriever'`.*pretraining.*retrieval"):
            convert_checkpoint(source, head="retriever", **HEADS)
    with pytest.raises(CheckpointError, match=r"for pretraining, not for retrieval.*from_pretrained"):
        convert_checkpoint(pretraining, head="retrieval", **HEADS, **DECODER)
    with pytest.raises(CheckpointError, match=r"retrieval.*not for pretraining"):
        convert_checkpoint(retrieval, head="pretraining", **HEADS)


def test_the_way_to_another_head_that_the_error_describes(tmp_path):
    model = convert_checkpoint(GOLDEN / "vicha_pretrain" / "original.pth", **HEADS, **DECODER)
    model.save_pretrained(tmp_path)
    other = ViChaForRetrieval.from_pretrained(tmp_path, training_state=True)
    assert torch.equal(other.itm_head.weight, model.itm_head.weight)
    weight = "vision_model.layers.0.mlp.fc1.weight"
    assert torch.equal(other.training_state.teacher["vicha"].get_parameter(weight), model.vicha.get_parameter(weight))


def test_what_is_no_checkpoint_is_said_to_be_none(tmp_path):
    path = tmp_path / "model.pth"
    with pytest.raises(FileNotFoundError):
        convert_checkpoint(path)
    path.write_text("{}")
    with pytest.raises(CheckpointError, match=r"model\.pth is not a checkpoint"):
        convert_checkpoint(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model\.pth is empty"):
        convert_checkpoint(path)
    torch.save([torch.zeros(2)], path)
    with pytest.raises(CheckpointError, match=r"model\.pth holds a list"):
        convert_checkpoint(path)
    torch.save({"model": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"model\.pth"):
        convert_checkpoint(path)
    torch.save({"model": {"layer.weight": torch.zeros(2)}}, path)
    with pytest.raises(CheckpointError, match=r"visual_encoder\.cls_token"):
        convert_checkpoint(path)


def test_a_checkpoint_cut_short_is_named(tmp_path):
    whole = (GOLDEN / "albef_pretrain" / "original.pth").read_bytes()
    path = tmp_path / "model.pth"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"model\.pth is not a checkpoint"):
        convert_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n", "pointer of Git LFS"),
        (b"\n<!DOCTYPE html><html><body>Not found</body></html>", "a web page, not weights"),
        (b"PK\x03\x04", "cut off or damaged"),
        (b"\x80\x02}q\x00(X", "cut off or damaged"),
    ],
)
def test_what_only_looks_like_weights_is_one_line_with_its_name(content, message, tmp_path, capsys):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    assert vicha_hf_command(["convert", str(path), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(path) in error and message in error
    assert not (tmp_path / "out").exists()


def test_wrappers_of_compilers_and_frameworks_are_taken_off(tmp_path):
    checkpoint = published("albef_pretrain")
    plain = convert(checkpoint, tmp_path).state_dict()
    names = {f"module._orig_mod.{name}": value for name, value in checkpoint["model"].items()}
    for wrapped in ({"state_dict": names}, {"model": {"state_dict": names}}, {"state_dict": {"model": names}}):
        unwrapped = convert(wrapped | {"config": checkpoint["config"]}, tmp_path)
        assert unwrapped.config.momentum == checkpoint["config"]["momentum"]
        assert all(torch.equal(value, plain[name]) for name, value in unwrapped.state_dict().items())
    name = next(iter(checkpoint["model"]))
    checkpoint["model"][f"module.{name}"] = checkpoint["model"][name]
    with pytest.raises(CheckpointError, match=f"`{name}` twice"):
        convert(checkpoint, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.fill_(float("nan")), "NaN or infinite"),
        (lambda value: value.index_fill_(0, torch.tensor([1]), float("inf")), "NaN or infinite"),
        (lambda value: value.to(torch.int64), "torch.int64"),
        (lambda value: value.to_sparse(), "sparse"),
        (lambda value: value.to(torch.complex64), "complex"),
        (lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), "quantized"),
    ],
)
def test_tensors_that_are_no_weights_are_refused_by_name(change, message, tmp_path):
    checkpoint = published("albef_pretrain")
    checkpoint["model"]["text_proj.weight"] = change(checkpoint["model"]["text_proj.weight"].clone())
    with pytest.raises(CheckpointError, match=rf"checkpoint\.pth: `text_proj\.weight` .*{message}"):
        convert(checkpoint, tmp_path)


@pytest.mark.parametrize(
    "config",
    [["a list"], "text", {"queue_size": -3}, {"momentum": "high"}, {"image_res": "big"}, {"mlm_probability": [1]}],
)
def test_a_broken_configuration_names_its_file(config, tmp_path):
    checkpoint = published("albef_pretrain")
    checkpoint["config"] = config
    checkpoint["model"] = {name: value for name, value in checkpoint["model"].items() if "queue" not in name}
    with pytest.raises(CheckpointError, match=r"checkpoint\.pth"):
        convert(checkpoint, tmp_path)


def test_a_bad_tokenizer_is_found_before_anything_is_written(tmp_path, capsys):
    command = ["convert", str(GOLDEN / "vicha_ve" / "original.pth"), str(tmp_path / "out"), "--tokenizer"]
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer/tokenizer.json").write_text("{")
    for folder in (tmp_path / "nowhere", tmp_path / "tokenizer"):
        assert vicha_hf_command([*command, str(folder)]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("vicha-hf convert: ") and str(folder) in error
        assert not (tmp_path / "out").exists()


class Touch:
    """Would create a file if it were unpickled without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    checkpoint, trace = published("albef_pretrain"), tmp_path / "trace"
    checkpoint["config"] = Touch(trace)
    with pytest.raises(CheckpointError, match="read safely"):
        convert(checkpoint, tmp_path)
    assert not trace.exists()
    checkpoint["config"] = argparse.Namespace(momentum=0.9)
    with pytest.raises(CheckpointError, match="read safely"):
        convert(checkpoint, tmp_path)
