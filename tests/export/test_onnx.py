"""ONNX files against the model: other sizes than those that were exported, padding of every kind, both families."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from simla_models import SIMLA_HEADS, SimlaForRetrieval, simla_model
from tiny_model_folder import tiny_processor, write_gallery, write_model_folder
from tiny_models import tiny_retrieval_model

from vicha_hf import ViChaForRetrieval
from vicha_hf.cli import main
from vicha_hf.export.exporting import export_model
from vicha_hf.export.parts import ExportError


onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder of a model and the folder of what `vicha-hf export` made of it."""
    root = tmp_path_factory.mktemp("export")
    write_model_folder(root / "model")
    assert main(["export", str(root / "model"), str(root / "onnx"), "--format", "onnx"]) == 0
    return root / "model", root / "onnx"


def run(path, **inputs):
    session = onnxruntime.InferenceSession(path)
    assert {entry.name for entry in session.get_inputs()} == set(inputs)
    found = session.run(None, {name: np.asarray(value) for name, value in inputs.items()})
    return dict(zip((entry.name for entry in session.get_outputs()), map(torch.from_numpy, found), strict=True))


@torch.no_grad()
def test_retrieval_through_the_files_is_the_models(exported, tmp_path):
    folder, onnx = exported
    model = ViChaForRetrieval.from_pretrained(folder).eval()
    processor = tiny_processor(tmp_path)
    write_gallery(tmp_path)
    texts = ["a red ball on the grass", "a man", "two dogs running in the snow", "birds"]
    concepts = [["ball", "grass"], ["dog", "snow", "white"], [], ["boat"]]
    inputs = processor(
        images=[str(tmp_path / f"{number}.png") for number in range(4)],
        text=texts,
        concepts=concepts,
        return_tensors="pt",
    )
    names = ("pixel_values", "concept_input_ids", "concept_attention_mask")
    image_encoding = model.encode_images(*(inputs[name] for name in names))
    text_encoding = model.encode_texts(inputs.input_ids, inputs.attention_mask)
    images = run(onnx / "image_encoder.onnx", **{name: inputs[name] for name in names})
    encoded = run(onnx / "text_encoder.onnx", input_ids=inputs.input_ids, attention_mask=inputs.attention_mask)
    torch.testing.assert_close(images["image_embeds"], image_encoding.embeds, atol=1e-4, rtol=0)
    torch.testing.assert_close(encoded["text_embeds"], text_encoding.embeds, atol=1e-4, rtol=0)
    order = torch.tensor([2, 0, 3, 1])
    scores = run(
        onnx / "pair_scorer.onnx",
        image_hidden_states=images["image_hidden_states"],
        image_attention_mask=images["image_attention_mask"],
        text_hidden_states=encoded["text_hidden_states"][order],
        attention_mask=inputs.attention_mask[order],
    )["match_logits"]
    wanted = model.score_pairs(image_encoding, text_encoding, torch.arange(4), order)
    torch.testing.assert_close(scores, wanted, atol=1e-4, rtol=0)
    assert wanted.std() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 6])
def test_batches_and_lengths_are_free(exported, rows):
    folder, onnx = exported
    model = ViChaForRetrieval.from_pretrained(folder).eval()
    ids, mask = torch.full((rows, 2 + rows), 7), torch.ones(rows, 2 + rows, dtype=torch.int64)
    # A text without any token.
    mask[-1] = 0
    found = run(onnx / "text_encoder.onnx", input_ids=ids, attention_mask=mask)["text_embeds"]
    torch.testing.assert_close(found, model.encode_texts(ids, mask).embeds, atol=1e-4, rtol=0)
    pixels = torch.randn(rows, 3, 32, 32)
    nothing = torch.zeros(rows, 1, dtype=torch.int64)
    found = run(
        onnx / "image_encoder.onnx", pixel_values=pixels, concept_input_ids=nothing, concept_attention_mask=nothing
    )
    # No concepts are the same as concepts of padding.
    torch.testing.assert_close(found["image_embeds"], model.encode_images(pixels).embeds, atol=1e-4, rtol=0)


def test_single_stream_models_are_exported(tmp_path):
    differences = export_model(simla_model(SimlaForRetrieval), tmp_path)
    assert set(differences) == {"image_encoder", "text_encoder", "pair_scorer"} and max(differences.values()) < 1e-4


def test_int8_is_smaller_and_close(exported, tmp_path):
    folder, onnx = exported
    cosines = export_model(ViChaForRetrieval.from_pretrained(folder), tmp_path, int8=True, parts=["text_encoder"])
    assert cosines["text_encoder"] > 0.99
    assert {path.name for path in tmp_path.iterdir()} == {"text_encoder.onnx", "export.json"}
    small, full = (place / "text_encoder.onnx" for place in (tmp_path, onnx))
    assert small.stat().st_size < full.stat().st_size / 2


def test_a_file_that_differs_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("vicha_hf.export.exporting.TOLERANCE", -1.0)
    with pytest.raises(ExportError, match=r"text_encoder\.onnx differs from the model"):
        export_model(tiny_retrieval_model(), tmp_path, parts=["text_encoder"])
    assert not list(tmp_path.iterdir())


def test_only_an_earlier_export_is_replaced(tmp_path):
    model, folder = tiny_retrieval_model(), tmp_path / "out"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(
        ExportError, match=r"not empty and no earlier export \(notes.txt is there\): choose a new folder"
    ):
        export_model(model, folder, "torch_export", parts=["text_encoder"])
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    (folder / "notes.txt").unlink()
    export_model(model, folder, "torch_export", parts=["text_encoder"])
    (folder / "notes.txt").write_text("mine")
    export_model(model, folder, parts=["text_encoder"])
    assert {path.name for path in folder.iterdir()} == {"text_encoder.onnx", "export.json", "notes.txt"}


def test_models_without_the_parts_are_refused(tmp_path):
    with pytest.raises(ExportError, match="SimlaForVisualEntailment has no projections and no answer decoder"):
        export_model(simla_model(SIMLA_HEADS["entailment"]), tmp_path)


def test_without_the_extra_the_message_names_it(exported, tmp_path):
    script = (
        "import sys; sys.modules['onnxruntime'] = None; from vicha_hf.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "export", str(exported[0]), str(tmp_path / "out")]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 1 and 'pip install "vicha_hf[onnx]"' in process.stderr.splitlines()[-1]
