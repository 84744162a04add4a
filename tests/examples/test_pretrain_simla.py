"""examples/pretrain.py pretrains SIMLA: visual tokens made in the step or stored, and folders that fine-tuning can use."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_tokenizer import build_tiny_tokenizer
from transformers import AutoModel, AutoModelForPreTraining, AutoProcessor

from vicha_hf import SimlaForPreTraining, SimlaForVQA, SimlaModel, SimlaProcessor
from vicha_hf.cli import main as vicha_hf_command
from vicha_hf.training.run_log import read_log
from vicha_hf.visual_tokens.configuration import PatchVisualTokenizerConfig
from vicha_hf.visual_tokens.patches import PatchVisualTokenizer


ROOT = Path(__file__).parents[2]
LOSSES = {"loss", "itc_loss", "itm_loss", "mlm_loss", "mim_loss", "psl_loss"}
pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Eight plain images with captions, a tokenizer, and a visual tokenizer of 8 x 8 pixels."""
    root, records = tmp_path_factory.mktemp("corpus"), []
    for index in range(8):
        pixels = np.random.default_rng(index).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{index}.png")
        records.append({"image": f"{index}.png", "caption": f"a {['red', 'blue'][index % 2]} dog on the grass"})
    (root / "train.json").write_text(json.dumps(records))
    build_tiny_tokenizer(root).save_pretrained(root / "tokenizer")
    PatchVisualTokenizer(PatchVisualTokenizerConfig(patch_size=8, vocab_size=24)).save_pretrained(root / "codes")
    return root


def options(corpus, output_dir, *overrides):
    return [
        f"--config={ROOT / 'examples/configs/simla/tiny.yaml'}",
        f"--output_dir={output_dir}",
        f"--data.train={corpus / 'train.json'}",
        f"--data.validation={corpus / 'train.json'}",
        f"--data.tokenizer={corpus / 'tokenizer'}",
        f"--data.visual_tokenizer={corpus / 'codes'}",
        "--model.vision_config={hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2, image_size: 32, patch_size: 8}",
        "--model.text_config={hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2}",
        *("--model.config.projection_dim=16", "--model.config.queue_size=8", "--model.config.grounding_layer=1"),
        *("--model.config.mim_max_masked_patches=5", "--model.config.mim_min_block_patches=2"),
        *("--per_device_batch_size=4", "--max_steps=3", "--logging_steps=1", "--evaluation_steps=null"),
        *("--checkpoint_steps=2", "--trackers=[]"),
        *overrides,
    ]


def logged_losses(folder):
    return [{name: record[name] for name in LOSSES} for record in read_log(folder) if "evaluation" not in record]


def test_a_run_its_resumption_and_what_its_folder_is_good_for(corpus, script, tmp_path):
    result = script("pretrain")(options(corpus, tmp_path))
    losses = logged_losses(tmp_path)
    assert result.step == 3 and len(losses) == 3
    assert "r_mean" in json.loads((tmp_path / "metrics.json").read_text())
    final = load_file(tmp_path / "model/model.safetensors")
    assert not any("training_state" in name or "visual_tokenizer" in name for name in final)

    resumed = script("pretrain")(
        options(corpus, tmp_path, f"--resume_from_checkpoint={tmp_path / 'checkpoint-00000002'}")
    )
    assert resumed.metrics == result.metrics and logged_losses(tmp_path) == losses
    again = load_file(tmp_path / "model/model.safetensors")
    assert all(torch.equal(tensor, again[name]) for name, tensor in final.items())

    folder = tmp_path / "model"
    model, processor = AutoModelForPreTraining.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    assert type(model) is SimlaForPreTraining and type(processor) is SimlaProcessor
    assert model.config.visual_vocab_size == 24
    assert type(AutoModel.from_pretrained(folder)) is SimlaModel
    assert len(SimlaForVQA.from_pretrained(folder).answer_decoder.encoder.layer) == 1
    words = model.eval().predict_keywords(
        **processor(images=Image.open(corpus / "0.png"), return_tensors="pt"), top_k=3
    )
    assert all(0 <= probability <= 1 for _, probability in processor.decode_keywords(words)[0])

    # Pretraining goes on from the folder, whose family needs no telling.
    more = [f"--output_dir={tmp_path / 'more'}", f"--model.from_pretrained={folder}", "--max_steps=1"]
    data = [f"--data.train={corpus / 'train.json'}", f"--data.visual_tokenizer={corpus / 'codes'}"]
    script("pretrain")([*more, *data, "--trackers=[]", "--num_workers=0", "--per_device_batch_size=4"])
    assert logged_losses(tmp_path / "more")[0].keys() == LOSSES


def test_stored_tokens_equal_tokens_made_in_the_step(corpus, script, tmp_path):
    stored = tmp_path / "codes.safetensors"
    command = ["visual-tokens", "--tokenizer", str(corpus / "codes"), "--data", str(corpus / "train.json")]
    assert vicha_hf_command([*command, "--output", str(stored), "--image-size", "32"]) == 0
    whole = ["--data.crop_scale=null", "--data.hflip=false", "--data.randaugment=false", "--data.validation=null"]
    script("pretrain")(options(corpus, tmp_path / "made", *whole))
    script("pretrain")(
        options(
            corpus,
            tmp_path / "stored",
            *whole,
            "--data.visual_tokenizer=null",
            f"--data.stored_visual_tokens={stored}",
        )
    )
    assert logged_losses(tmp_path / "stored") == logged_losses(tmp_path / "made")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--data.visual_tokenizer=null"], "data.visual_tokenizer=None .*needs visual tokens"),
        (
            ["--model.vision_config.patch_size=16", "--model.vision_config.image_size=64"],
            r"8 x 8 tokens .* 4 x 4 patches",
        ),
        (["--model.config.visual_vocab_size=25"], "24 codes, but the model predicts 25"),
        (["--model.config.mim_weight=0"], "reconstructs no visual tokens"),
        (["--model.family=blip"], r"model.family='blip'.*\['simla', 'vicha'\]"),
        (["--data.stored_visual_tokens=x"], "give one of the two"),
    ],
)
def test_what_does_not_fit_is_an_error(corpus, script, tmp_path, overrides, message, capsys):
    with pytest.raises((ValueError, SystemExit)) as error:
        script("pretrain")(options(corpus, tmp_path, *overrides))
    said = str(error.value) if isinstance(error.value, ValueError) else capsys.readouterr().err
    assert re.search(message, said), said[-2000:]
