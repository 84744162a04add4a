"""Checkpoints of base size in the published layout: converted by the command, verified, and loaded by another process."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from published_layout import Published
from tiny_tokenizer import build_tiny_tokenizer

from vicha_hf import ViChaForVQA


GOLDEN = Path(__file__).parents[1] / "golden" / "data"
TASKS = {"pretrain": "pretraining", "ve": "entailment", "nlvr": "reasoning", "nlvr_pretrain": "text-assignment"}
GOLDEN_SIZES = {
    "patches": 4,
    "vision_width": 24,
    "text_width": 32,
    "feed_forward": 48,
    "vocabulary": 200,
    "positions": 64,
    "projection": 16,
    "queue": 16,
    "mim_width": 16,
    "visual_codes": 50,
}


def golden_layout(case: str, tensors: dict) -> Published:
    """The layout that a golden case should have, of its name and of the sizes that the golden cases share."""
    family, _, task = case.partition("_")
    head = TASKS.get(task, task)
    sizes = dict(GOLDEN_SIZES)
    if family == "simla":
        sizes["text_width"] = 24
    elif head == "vqa":
        sizes["vision_width"] = 32
    if head in ("vqa", "reasoning", "text-assignment"):
        sizes |= {"text_layers": 8, "first_fused": 4}
    blocks = (re.match(r"visual_encoder\.blocks\.(\d+)\.", name) for name in tensors)
    sizes["vision_layers"] = 1 + max(int(block.group(1)) for block in blocks if block)
    return Published(family, head, **sizes)


def test_the_layout_is_that_of_the_published_code():
    cases = [path for path in sorted(GOLDEN.glob("*/original.pth")) if not path.parent.name.endswith("world2")]
    assert {path.parent.name.partition("_")[0] for path in cases} == {"vicha", "albef", "simla"}
    for path in cases:
        tensors = torch.load(path, weights_only=True)["model"]
        expected = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        assert golden_layout(path.parent.name, tensors).shapes() == expected, path.parent.name


# Side of the image in the published configurations: pretraining at 256, fine-tuning at 384 (ALBEF, SIMLA), ViCHA at 380,
# and at 384 its questions and pairs of four million images.
_SIDES = [
    *(("vicha", head, 380) for head in ("retrieval", "grounding", "vqa", "entailment", "reasoning")),
    *(("vicha", head, 384) for head in ("vqa", "reasoning")),
    *(
        (family, head, 384)
        for family in ("albef", "simla")
        for head in ("retrieval", "grounding", "vqa", "entailment", "reasoning")
    ),
    *((family, head, 256) for family in ("vicha", "albef", "simla") for head in ("pretraining", "text-assignment")),
]
_CLASSES = {
    "pretraining": "ForPreTraining",
    "retrieval": "ForRetrieval",
    "grounding": "ForGrounding",
    "vqa": "ForVQA",
    "entailment": "ForVisualEntailment",
    "reasoning": "ForVisualReasoning",
    "text-assignment": "ForTextAssignment",
}
_CONVERT = """
import resource, sys
from vicha_hf.cli import main
status = main(sys.argv[1:])
print("peak GiB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
sys.exit(status)
"""
_LOAD = """
import json, sys
sys.modules["vicha_hf"] = None
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoModelForVisualQuestionAnswering, AutoProcessor
folder = sys.argv[1]
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
auto = AutoModelForVisualQuestionAnswering if config.architectures[0].endswith("VQA") else AutoModel
model, report = auto.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
inputs = processor(images=Image.new("RGB", (500, 333), "red"), text="a red car", return_tensors="pt")
found = {"architecture": config.architectures[0], "missing": sorted(report["missing_keys"]), "size": inputs["pixel_values"].shape[-1]}
with torch.no_grad():
    if auto is AutoModel:
        base = model.get_image_features if "vision_projection" in dir(model) and model.vision_projection is not None else model.vision_model
        found["finite"] = bool(torch.isfinite(base(inputs["pixel_values"])[0]).all())
    else:
        written = model.generate(**inputs)
        found |= {"finite": True, "written": written.shape[1], "longest": model.generation_config.max_new_tokens}
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("family", "head", "side"), _SIDES)
def test_base_size_converts_and_loads(family, head, side, tmp_path):
    build_tiny_tokenizer(tmp_path).save_pretrained(tmp_path / "tokenizer")
    checkpoint, folder = tmp_path / "published.pth", tmp_path / "converted"
    options = {"image_res": side, "vision_width": 768, "embed_dim": 256, "alpha": 0.4, "queue_size": 65536}
    tensors = Published(family, head, patches=side // 16).tensors()
    torch.save({"model": tensors, "config": options, "epoch": 7, "optimizer": {"state": {}}}, checkpoint)
    del tensors
    command = [sys.executable, "-c", _CONVERT, "convert", checkpoint, folder, "--head", head, "--verify"]
    converted = _run(*command, "--tokenizer", tmp_path / "tokenizer")
    assert "Verified: weights are equal" in converted.stdout
    peak = float(converted.stdout.split("peak GiB")[1])
    difference = float(re.search(r"outputs differ by (\S+) at most", converted.stdout)[1])
    print(
        f"{family} {head} {side}: {checkpoint.stat().st_size / 2**30:.2f} GiB, peak memory {peak:.2f} GiB, "
        f"outputs differ by {difference:.1e} at most"
    )
    checkpoint.unlink()
    found = json.loads(_run(sys.executable, "-c", _LOAD, folder).stdout.splitlines()[-1])
    prefix = "Simla" if family == "simla" else ViChaForVQA.__name__.removesuffix("ForVQA")
    assert found["architecture"] == prefix + _CLASSES[head]
    assert found["finite"] and found["size"] == side
    config = json.loads((folder / "config.json").read_text())
    assert config["text_config"]["num_attention_heads"] == config["vision_config"]["num_attention_heads"] == 12
    if head == "vqa":
        assert found["longest"] == 10 and 1 <= found["written"] <= 10
        settings = json.loads((folder / "generation_config.json").read_text())
        assert (settings["bos_token_id"], settings["eos_token_id"], settings["pad_token_id"]) == (101, 102, 0)
    # What the pretraining heads do not have, the bare model does not ask for; heads for a task have no projections.
    projections = {
        "vision_projection.weight",
        "vision_projection.bias",
        "text_projection.weight",
        "text_projection.bias",
    }
    assert set(found["missing"]) <= projections | {"temperature"}


def _run(*command) -> subprocess.CompletedProcess:
    process = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=1200)
    assert process.returncode == 0, process.stderr[-3000:]
    return process
