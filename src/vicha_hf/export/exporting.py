"""Export of a model: every part is written, run on other inputs, and compared with the model before it is kept."""

import copy
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..folder_lock import LOCK_FILE, locked_folder
from ..models.modeling_vision_text import VisionTextPreTrainedModel
from ..onnx_backend.export_manifest import EXPORT_FILE, ExportManifest
from ..whole_files import explained_writing, require_writable
from .attention import use_plain_attention
from .onnx_files import quantize, require_libraries, run_onnx, write_onnx
from .part_inputs import example_inputs
from .parts import PARTS, ExportError, parts_of
from .torch_export_files import run_torch_export, write_torch_export


TOLERANCE = 1e-4
# Of embeddings by int8 weights.
LEAST_COSINE = 0.95
Run = Callable[[Path, Mapping[str, Tensor]], list[Tensor]]
# Format -> ending of its files, what writes one, what runs one.
FORMATS: dict[str, tuple[str, Callable, Run]] = {
    "onnx": (".onnx", write_onnx, run_onnx),
    "torch_export": (".pt2", write_torch_export, run_torch_export),
}


def export_model(
    model: VisionTextPreTrainedModel,
    folder: str | Path,
    format: str = "onnx",
    int8: bool = False,
    parts: Sequence[str] | None = None,
    companions: Callable[[Path], None] | None = None,
) -> dict[str, float]:
    """
    Writes the parts of a model as files with free batch and lengths. They are `image_encoder`, `text_encoder` and, with a
    matching head, `pair_scorer`. A model for question answering has `question_encoder` and `answer_decoder`.

    Every file is run on other sizes than it was exported with, rows without a token included, and compared with the
    model.

    Args:
        model: with projections, or with an answer decoder.
        folder: where the files go; a new or empty one, or an earlier export, which is replaced.
        format: "onnx" (`.onnx`), or "torch_export" (`.pt2`).
        int8: keep the weights of the linear layers in 8 bits, one scale per output channel; activations are scaled as
            they come.
        parts: which of the model's; all by default.
        companions: writes what belongs beside the parts (configuration, processor) into a folder.

    Returns:
        For each part the largest difference from the model; with `int8` the smallest cosine between its outputs and the
        model's.

    Raises:
        ImportError: the libraries of the extra `onnx` are not installed.
        ExportError: a model without parts, a folder that holds something else, or a file that differs.
    """
    if format not in FORMATS:
        raise ExportError(f"format={format!r} is not known; choose one of {', '.join(FORMATS)}.")
    if int8 and format != "onnx":
        raise ExportError("8 bits are for the format onnx: leave int8 out, or choose that format.")
    if format == "onnx":
        require_libraries()
    task, own_parts = parts_of(model)
    parts = own_parts if parts is None else list(parts)
    folder = Path(folder).expanduser()
    require_writable(folder, "output")
    with locked_folder(folder, option="output"), explained_writing(folder):
        return _write_export(model, folder, format, parts, task, int8, companions)


def _write_export(
    model: nn.Module,
    folder: Path,
    format: str,
    parts: Sequence[str],
    task: str,
    int8: bool,
    companions: Callable[[Path], None] | None,
) -> dict[str, float]:
    earlier = _require_own_folder(folder)
    reference = copy.deepcopy(model).cpu().float().eval()
    exported = copy.deepcopy(reference)
    for encoder in (reference, exported):
        # Boolean masks, whatever backend the model was loaded with.
        encoder.set_attn_implementation("sdpa")
    if format == "onnx":
        use_plain_attention(exported)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unfinished-") as unfinished:
        finished = Path(unfinished) / "finished"
        finished.mkdir()
        found = {name: _export_part(name, reference, exported, finished, format, int8) for name in parts}
        if companions is not None:
            companions(finished)
        temperature = getattr(model.base_model, "temperature", None)
        files = sorted(path.name for path in finished.iterdir())
        manifest = ExportManifest(
            format=format,
            task=task,
            parts=parts,
            int8=int8,
            temperature=None if temperature is None else temperature.item(),
            files=files,
        )
        for name in [] if earlier is None else [EXPORT_FILE, *earlier.files]:
            _delete(folder / name)
        for name in files:
            (finished / name).replace(folder / name)
        # The last one: only with it the folder is an export.
        manifest.write(folder)
    return found


def _require_own_folder(folder: Path) -> ExportManifest | None:
    """The manifest of an earlier export in a folder that may be written to."""
    earlier = ExportManifest.of(folder)
    # What a killed export left.
    for left in folder.glob(".unfinished-*"):
        _delete(left)
    others = sorted(path.name for path in folder.iterdir() if earlier is None and path.name != LOCK_FILE)
    if others:
        raise ExportError(f"{folder} is not empty and no earlier export ({others[0]} is there): choose a new folder.")
    return earlier


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _export_part(name: str, reference: nn.Module, exported: nn.Module, folder: Path, format: str, int8: bool) -> float:
    """Writes a part into a folder; returns how it compares with the model."""
    ending, write, run = FORMATS[format]
    part, wanted = PARTS[name](exported).eval(), PARTS[name](reference).eval()
    inputs = example_inputs(reference, part, batch_size=5, length=9, seed=1)
    path = folder / f"{name}{ending}"
    write(part, example_inputs(reference, part, batch_size=3, length=7), path)
    difference = max((a - b).abs().max().item() for a, b in _both(wanted, run, path, inputs))
    if not difference <= TOLERANCE:
        raise ExportError(f"{path.name} differs from the model by {difference:.1e}; it was not kept.")
    if not int8:
        return difference
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        quantize(path, Path(scratch)).replace(path)
    cosine = _cosine(*_both(wanted, run, path, inputs)[0])
    if name.endswith("_encoder") and cosine < LEAST_COSINE:
        raise ExportError(f"{path.name} by int8 has a cosine of {cosine:.3f} only; it was not kept.")
    return cosine


@torch.no_grad()
def _both(part: nn.Module, run: Run, path: Path, inputs: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Each output of a file with that of the model's part."""
    wanted = part(*inputs.values())
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    return [(a.float(), b.float()) for a, b in zip(run(path, inputs), wanted, strict=True)]


def _cosine(found: Tensor, wanted: Tensor) -> float:
    """Smallest cosine of the rows; of scores, which are one number each, that of all together."""
    if found.dim() == 1:
        found, wanted = found[None], wanted[None]
    return torch.cosine_similarity(found, wanted, dim=-1).min().item()
