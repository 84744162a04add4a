"""Files of `torch.export`, loaded where this package is not: other sizes, rows without tokens, both families."""

import subprocess
import sys

import pytest
import torch
from head_checks import tiny_head
from simla_models import SIMLA_HEADS, SimlaForRetrieval, simla_model
from tiny_model_folder import write_model_folder

from vicha_hf import ViChaForRetrieval
from vicha_hf.cli import main
from vicha_hf.export.exporting import export_model
from vicha_hf.export.parts import ExportError
from vicha_hf.folder_lock import FolderInUseError, locked_folder


RUN = """
import sys, torch
parts, inputs = sys.argv[1], torch.load(sys.argv[2])
with torch.no_grad():
    found = {name: torch.export.load(f"{parts}/{name}.pt2").module()(*given) for name, given in inputs.items()}
assert not [name for name in sys.modules if name.split(".")[0] in ("vicha_hf", "transformers")]
torch.save(found, sys.argv[3])
"""


@torch.no_grad()
def test_retrieval_in_another_process(tmp_path):
    write_model_folder(tmp_path / "model")
    command = ["export", str(tmp_path / "model"), str(tmp_path / "out"), "--format", "torch_export"]
    assert main(command) == 0
    model = ViChaForRetrieval.from_pretrained(tmp_path / "model").eval()
    ids, mask = torch.arange(6 * 11).reshape(6, 11) % 40, torch.ones(6, 11, dtype=torch.long)
    mask[2, 4:], mask[5] = 0, 0
    pixels = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images, texts = model.encode_images(pixels, ids[:, :5], mask[:, :5]), model.encode_texts(ids, mask)
    inputs = {
        "image_encoder": (pixels, ids[:, :5], mask[:, :5]),
        "text_encoder": (ids, mask),
        "pair_scorer": (images.hidden_states, images.attention_mask, texts.hidden_states, mask),
    }
    torch.save(inputs, tmp_path / "inputs.pt")
    paths = [str(tmp_path / name) for name in ("out", "inputs.pt", "found.pt")]
    subprocess.run([sys.executable, "-c", RUN, *paths], check=True)
    found = torch.load(tmp_path / "found.pt")
    wanted = {
        "image_encoder": images.embeds,
        "text_encoder": texts.embeds,
        "pair_scorer": model.score_pairs(images, texts),
    }
    for name, expected in wanted.items():
        observed = found[name][0] if isinstance(found[name], tuple) else found[name]
        torch.testing.assert_close(observed, expected, atol=1e-4, rtol=0)


def test_a_full_disk_is_one_line(small_disk, tmp_path, capsys):
    write_model_folder(tmp_path / "model")
    (small_disk / "filled").write_bytes(bytes(950_000))
    command = ["export", str(tmp_path / "model"), str(small_disk / "out"), "--format", "torch_export"]
    # In a process of its own, which torch's archive writer would end.
    process = subprocess.run([sys.executable, "-m", "vicha_hf.cli", *command], capture_output=True, text=True)
    assert process.returncode == 1, process.stderr
    assert "image_encoder.pt2 could not be written" in process.stderr.splitlines()[-1]


def test_a_folder_is_exported_to_by_one_at_a_time(tmp_path):
    model = simla_model(SimlaForRetrieval)
    (tmp_path / "out").mkdir()
    with locked_folder(tmp_path / "out"), pytest.raises(FolderInUseError, match=r"output='.*out' is in use"):
        export_model(model, tmp_path / "out", "torch_export", parts=["text_encoder"])
    export_model(model, tmp_path / "out", "torch_export", parts=["text_encoder"])
    assert (tmp_path / "out/text_encoder.pt2").is_file()


def test_other_families_and_heads(tmp_path):
    models = [
        simla_model(SimlaForRetrieval),
        simla_model(SIMLA_HEADS["vqa"]),
        # ALBEF: no concepts.
        tiny_head("vqa", use_concepts=False),
    ]
    for number, model in enumerate(models):
        differences = export_model(model, tmp_path / str(number), "torch_export")
        assert max(differences.values()) < 1e-4
        assert {path.suffix for path in (tmp_path / str(number)).iterdir()} == {".pt2", ".json"}


def test_what_a_format_cannot_do(tmp_path):
    model = simla_model(SimlaForRetrieval)
    with pytest.raises(ExportError, match="8 bits are for the format onnx"):
        export_model(model, tmp_path, "torch_export", int8=True)
    with pytest.raises(ExportError, match="format='tflite' is not known; choose one of onnx, torch_export"):
        export_model(model, tmp_path, "tflite")
