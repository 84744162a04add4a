#!/usr/bin/env bash
# accelerate 1.15.0 with torch 2.13.0 (seen 2026-11-30, Python 3.11, Linux, CPU): `Accelerator.save_state` takes all buffers
# without elements for one shared tensor, of whatever shape and type they are, because none of them has storage. It keeps
# the first in model.safetensors, logs that the others were removed, and the checkpoint cannot be loaded by the model that
# wrote it: `load_state` misses them. With `safe_serialization=False` all are kept. Two models differ in nothing else here
# than in the length of their buffers.
#
# Output seen:
#   three buffers of one row: kept ['ids', 'images', 'texts', 'weight'], loading is silent
#   three buffers of no row: kept ['images', 'weight'], loading raises RuntimeError (Missing key(s): "ids", "texts")
#   three buffers of no row, pickled: loading is silent
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet accelerate==1.15.0 safetensors==0.8.0 numpy==2.4.6

FOLDER="$folder" "$folder/venv/bin/python" - <<'PYTHON'
import os
import re
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import safe_open


class Queue(torch.nn.Module):
    def __init__(self, rows):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.register_buffer("images", torch.zeros(rows, 4))
        self.register_buffer("texts", torch.zeros(rows, 8))
        self.register_buffer("ids", torch.zeros(rows, dtype=torch.long))


def checkpoint(rows, safe):
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(Queue(rows))
    folder = Path(os.environ["FOLDER"]) / f"{rows}_{safe}"
    accelerator.save_state(str(folder), safe_serialization=safe)
    kept = None
    if safe:
        with safe_open(folder / "model.safetensors", "pt") as file:
            kept = sorted(file.keys())
    try:
        accelerator.load_state(str(folder))
    except RuntimeError as error:
        return kept, sorted(re.findall(r'"(\w+)"', str(error)))
    return kept, []


def told(missing):
    if not missing:
        return "loading is silent"
    names = ", ".join(f'"{name}"' for name in missing)
    return f"loading raises RuntimeError (Missing key(s): {names})"


full, empty, pickled = checkpoint(1, True), checkpoint(0, True), checkpoint(0, False)
print(f"three buffers of one row: kept {full[0]}, {told(full[1])}")
print(f"three buffers of no row: kept {empty[0]}, {told(empty[1])}")
print(f"three buffers of no row, pickled: {told(pickled[1])}")
assert full == (["ids", "images", "texts", "weight"], [])
assert empty == (["images", "weight"], ["ids", "texts"])
assert pickled == (None, [])
PYTHON
