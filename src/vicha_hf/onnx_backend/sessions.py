"""ONNX files as functions of tensors, and what transformers' pipelines ask of any model."""

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from .export_manifest import ExportManifest


class OnnxPart:
    """
    One file: tensors by name in, tensors by name out, on the CPU.

    Args:
        path: of the file.
        num_threads: threads of an operator; torch's number by default.

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: a file that is not there, or that onnxruntime cannot read.
    """

    def __init__(self, path: Path, num_threads: int | None = None):
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError('backend="onnx" needs onnxruntime; pip install "vicha_hf[onnx]".') from error
        if not path.is_file():
            raise ValueError(f"{path} is not there: export the model again, with `vicha-hf export MODEL DIR`.")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads() if num_threads is None else num_threads
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            # onnxruntime has a class of its own for every cause, all of them private.
            raise ValueError(f"{path} cannot be read by onnxruntime ({error}): export the model again.") from error
        self.inputs = tuple(entry.name for entry in self._session.get_inputs())
        self.outputs = tuple(entry.name for entry in self._session.get_outputs())

    def __call__(self, **tensors: Tensor) -> dict[str, Tensor]:
        """Runs the file on the inputs that it has; others are left out."""
        arrays = {name: tensors[name].detach().cpu().numpy() for name in self.inputs}
        found = self._session.run(None, arrays)
        return dict(zip(self.outputs, map(torch.from_numpy, found), strict=True))


class OnnxModel:
    """
    A model whose parts are ONNX files.

    Args:
        folder: an export in the format "onnx".
        config: of the model.
        num_threads: of every part; torch's number by default.
    """

    backend = "onnx"
    input_modalities = ("image", "text")
    training = False
    device: ClassVar[torch.device] = torch.device("cpu")
    dtype: ClassVar[torch.dtype] = torch.float32

    def __init__(self, folder: Path, config: PreTrainedConfig, num_threads: int | None = None):
        self.config, self.name_or_path = config, str(folder)
        self.manifest = ExportManifest.of(folder)
        self.parts = {name: OnnxPart(folder / f"{name}.onnx", num_threads) for name in self.manifest.parts}

    def to(self, *device) -> "OnnxModel":
        """The model itself: it stays on the CPU."""
        return self

    def eval(self) -> "OnnxModel":
        """The model itself: it is for inference alone."""
        return self

    def train(self, mode: bool = True) -> "OnnxModel":
        """The model itself in evaluation mode; raises a ValueError for training mode."""
        if mode:
            raise ValueError(f"{self.name_or_path} is an export, which cannot be trained: train the torch model.")
        return self

    def can_generate(self) -> bool:
        """False: transformers' own generation does not apply."""
        return False

    def save_pretrained(self, save_directory, **options) -> None:
        """Raises a ValueError: an export is copied as a folder."""
        raise ValueError(f"{self.name_or_path} is an export, which nothing changes: copy the folder.")


def concept_inputs(
    part: OnnxPart, num_images: int, concept_input_ids: Tensor | None, concept_attention_mask: Tensor | None
) -> dict[str, Tensor]:
    """
    The concepts [N, C] as a part reads them: without any, one token for each image that nothing attends to.

    Raises:
        TypeError: concepts for a model that reads none.
    """
    if "concept_input_ids" not in part.inputs:
        if concept_input_ids is not None:
            raise TypeError("`concept_input_ids` was given to a model without visual concepts; leave it out.")
        return {}
    if concept_input_ids is None:
        nothing = torch.zeros(num_images, 1, dtype=torch.int64)
        return {"concept_input_ids": nothing, "concept_attention_mask": nothing}
    if concept_attention_mask is None:
        concept_attention_mask = torch.ones_like(concept_input_ids)
    return {"concept_input_ids": concept_input_ids, "concept_attention_mask": concept_attention_mask}
