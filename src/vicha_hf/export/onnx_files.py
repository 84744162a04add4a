"""ONNX files of a model's parts."""

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..onnx_backend.sessions import OnnxPart
from .part_inputs import dynamic_shapes


OPSET = 18


def require_libraries() -> None:
    """Raises an ImportError that names the extra, where the libraries are not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f'export needs {error.name}; install it with pip install "vicha_hf[onnx]".') from error


def write_onnx(part: nn.Module, inputs: Mapping[str, Tensor], path: Path) -> None:
    """Writes a part with free batch and lengths."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        # Of operators that are not in these models.
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            program = torch.onnx.export(
                part,
                tuple(inputs.values()),
                dynamo=True,
                input_names=list(inputs),
                output_names=list(part.outputs),
                dynamic_shapes=dynamic_shapes(part),
                opset_version=OPSET,
                verbose=False,
            )
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
    program.save(path, external_data=False)


def run_onnx(path: Path, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """Outputs of a file."""
    return list(OnnxPart(path)(**inputs).values())


def quantize(path: Path, folder: Path) -> Path:
    """Writes a file's twin with the weights of linear layers in 8 bits into a folder."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared, small = folder / "prepared.onnx", folder / f"int8_{path.name}"
    quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        quantize_dynamic(
            str(prepared),
            str(small),
            per_channel=True,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"],
        )
    finally:
        root.setLevel(level)
    return small
