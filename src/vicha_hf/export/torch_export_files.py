"""Files of `torch.export` of a model's parts: graphs that torch loads without this package, and compiles ahead of time."""

import io
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..whole_files import write_whole_file
from .part_inputs import dynamic_shapes


def write_torch_export(part: nn.Module, inputs: Mapping[str, Tensor], path: Path) -> None:
    """Writes a part with free batch and lengths; it takes its inputs by position, in the order of `part.inputs`."""
    with torch.no_grad():
        program = torch.export.export(part, tuple(inputs.values()), dynamic_shapes=dynamic_shapes(part))
    # Not into the file itself: where the disk is full, torch's archive writer ends the whole process.
    content = io.BytesIO()
    torch.export.save(program, content)
    write_whole_file(path, content.getvalue())


@torch.no_grad()
def run_torch_export(path: Path, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """Outputs of a file."""
    found = torch.export.load(path).module()(*inputs.values())
    return list(found) if isinstance(found, tuple) else [found]
