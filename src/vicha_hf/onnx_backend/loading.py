"""Choice of the backend that runs a model, and the models of onnxruntime."""

from pathlib import Path

from transformers import PreTrainedConfig

from .export_manifest import ExportManifest
from .question_answering import OnnxQuestionAnswering
from .retrieval import OnnxRetrieval
from .sessions import OnnxModel


BACKENDS = ("torch", "onnx")
_MODELS: dict[str, type[OnnxModel]] = {"retrieval": OnnxRetrieval, "vqa": OnnxQuestionAnswering}


def choose_backend(folder: str, backend: str | None) -> str:
    """
    The backend that runs a folder: the given one, or the one that the folder is for.

    Raises:
        ValueError: an unknown backend, or one that the folder is not for.
    """
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is not known; choose one of {', '.join(BACKENDS)}.")
    manifest = ExportManifest.of(folder)
    if manifest is None:
        if backend == "onnx":
            raise ValueError(
                f"{folder} holds no export, which backend='onnx' needs: make one with `vicha-hf export {folder} DIR`, and "
                "give DIR."
            )
        return "torch"
    if manifest.format != "onnx":
        raise ValueError(
            f"{folder} is an export in the format {manifest.format}: load its files with torch.export.load, or export "
            "with --format onnx."
        )
    if backend == "torch":
        raise ValueError(f"{folder} is an export, which backend='torch' cannot run: give the folder of the model.")
    return "onnx"


def load_onnx(task: str, folder: str, config: PreTrainedConfig, num_threads: int | None = None) -> OnnxModel:
    """
    A model whose parts onnxruntime runs.

    Args:
        task: "retrieval" or "vqa".
        folder: an export in the format "onnx".
        config: of the model.
        num_threads: of an operator; torch's number by default.

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: an export for another task.
    """
    found = ExportManifest.of(folder).task
    if task != found:
        raise ValueError(
            f"{folder} is an export for {found}, not for {task}"
            + ("." if task in _MODELS else f": there are exports for {' and '.join(_MODELS)}.")
        )
    return _MODELS[task](Path(folder).expanduser(), config, num_threads)
