"""`--verify` reads a converted folder back and finds what differs."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vicha_hf.cli import main
from vicha_hf.conversion import convert_checkpoint
from vicha_hf.conversion.verification import VerificationError, golden_inputs, verify_folder


GOLDEN = Path(__file__).parents[1] / "golden" / "data"


@pytest.fixture(scope="module", params=["vicha_ve", "simla_ve"])
def converted(request, tmp_path_factory):
    model = convert_checkpoint(GOLDEN / request.param / "original.pth")
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return model, folder


def test_a_folder_that_is_right(converted):
    assert verify_folder(*converted) == 0


def test_a_weight_that_changed_is_named(converted, tmp_path):
    model, folder = converted
    model.save_pretrained(tmp_path)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("q_proj.weight"))
    save_file(weights | {name: weights[name] + 1e-3}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VerificationError, match=name):
        verify_folder(model, tmp_path)


def test_outputs_of_the_published_code(converted, tmp_path):
    model, folder = converted
    inputs = golden_inputs(model)
    with torch.no_grad():
        base = getattr(model, model.config.model_type)
        texts = base.encode_texts(inputs["input_ids"], inputs["attention_mask"])
        images = base.encode_images(inputs["pixel_values"])
        expected = base.fuse(images, texts).last_hidden_state
    save_file(inputs | {"last_hidden_state": expected.contiguous()}, tmp_path / "right.safetensors")
    save_file(inputs | {"last_hidden_state": expected + 0.01}, tmp_path / "wrong.safetensors")
    save_file(inputs, tmp_path / "nothing.safetensors")
    save_file({"last_hidden_state": expected.contiguous()}, tmp_path / "no_inputs.safetensors")
    assert verify_folder(model, folder, tmp_path / "right.safetensors") < 1e-6
    for name, message in (
        ("wrong", "off by 0.01"),
        ("nothing", "none of the outputs"),
        ("no_inputs", "no pixel_values"),
    ):
        with pytest.raises(VerificationError, match=message):
            verify_folder(model, folder, tmp_path / f"{name}.safetensors")


def test_the_command_says_what_it_found(tmp_path, capsys):
    command = ["convert", str(GOLDEN / "albef_pretrain/original.pth"), str(tmp_path / "out"), "--verify"]
    assert main(command) == 0
    assert "outputs differ by 0.0e+00 at most" in capsys.readouterr().out
    assert "li2021albef" in (tmp_path / "out/README.md").read_text()
    assert main([*command, str(tmp_path / "missing.safetensors"), "--overwrite"]) == 1
    assert "missing.safetensors" in capsys.readouterr().err
