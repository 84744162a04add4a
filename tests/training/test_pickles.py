"""Nothing that could run code is read: pickles only with `weights_only=True`, and weights are safetensors."""

import ast
import os
import pickle
from pathlib import Path

import pytest
from stand_in import stand_in_arguments, stand_in_loop

from vicha_hf.training.checkpoint_manifest import write_manifest
from vicha_hf.training.checkpoints import list_checkpoints


ROOT = Path(__file__).parents[2]
PICKLERS = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
# Who may import one, and which of its names it may use.
ALLOWED = {
    # Names the error of `torch.load(..., weights_only=True)`.
    "src/vicha_hf/conversion/convert.py": {"UnpicklingError"},
    # Reads plain values and refuses every name that a pickle asks for.
    "src/vicha_hf/data/plain_pickles.py": {"Unpickler", "UnpicklingError"},
}


def unsafe_reads(source: str, allowed: set[str] = frozenset()) -> list[str]:
    """What in a Python file could run code from a file that it reads."""
    tree = ast.parse(source)
    loaders = {
        name.asname or name.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in ("torch", "accelerate.utils", "torch.serialization")
        for name in node.names
        if name.name == "load"
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [f"import {name.name}" for name in node.names if name.name in PICKLERS and not allowed]
        elif isinstance(node, ast.ImportFrom) and node.module in PICKLERS:
            found.append(f"from {node.module} import")
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in PICKLERS:
            found += [] if node.attr in allowed else [f"{node.value.id}.{node.attr}"]
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if (called == "torch.load" or called in loaders) and options.get("weights_only") != "True":
                found.append(f"{called} without weights_only=True")
            if options.get("weights_only", "True") != "True" or options.get("allow_pickle", "False") != "False":
                found.append(f"{called} with {options}")
            if options.get("safe_serialization", "True") != "True":
                found.append(f"{called} does not write safetensors")
    return found


def test_no_file_of_the_package_or_the_examples_reads_pickles_unsafely():
    files = [path for folder in ("src", "examples") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 50
    found = {}
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        if unsafe := unsafe_reads(path.read_text(encoding="utf-8"), ALLOWED.get(name, frozenset())):
            found[name] = unsafe
    assert not found


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "from torch import load\nload(path)",
        "from accelerate.utils import load as read\nread(path)",
        "import pickle",
        "from pickle import loads",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "model.save_pretrained(folder, safe_serialization=False)",
    ],
)
def test_the_search_finds(source):
    assert unsafe_reads(source)


def test_the_search_lets_safe_reads_pass():
    assert not unsafe_reads("import json, torch\ntorch.load(path, weights_only=True)\njson.load(file)")


class Payload:
    def __reduce__(self):
        return os.mkdir, (self.folder,)

    def __init__(self, folder):
        self.folder = str(folder)


@pytest.mark.parametrize("name", ["optimizer.bin", "random_states_0.pkl"])
def test_code_in_a_checkpoint_is_not_run(tmp_path, name):
    stand_in_loop(stand_in_arguments(tmp_path / "run", max_steps=1)).run()
    harmed = list_checkpoints(tmp_path / "run")[-1] / name
    harmed.write_bytes(pickle.dumps(Payload(tmp_path / "harm")))
    # Whoever wants to harm can also write the checksums.
    write_manifest(harmed.parent)
    with pytest.raises(pickle.UnpicklingError, match=r"weights_only|Weights only"):
        stand_in_loop(stand_in_arguments(tmp_path / "run", resume_from_checkpoint="latest")).run()
    assert not (tmp_path / "harm").exists()


def test_weights_of_a_checkpoint_are_safetensors(tmp_path):
    stand_in_loop(stand_in_arguments(tmp_path, max_steps=1)).run()
    names = {path.name for path in list_checkpoints(tmp_path)[-1].iterdir()}
    assert names == {"model.safetensors", "optimizer.bin", "random_states_0.pkl", "progress.json", "manifest.json"}
