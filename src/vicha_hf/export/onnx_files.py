"""ONNX files of a model's parts, checked against the model before they are kept."""

import copy
import logging
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from ..models.modeling_vision_text import VisionTextPreTrainedModel
from .attention import use_plain_attention
from .parts import PARTS


OPSET = 18
TOLERANCE = 1e-4
# Of embeddings by int8 weights.
LEAST_COSINE = 0.95


class ExportError(ValueError):
    """A model that cannot be exported, or a file that does not compute what the model does."""


def export_onnx(
    model: VisionTextPreTrainedModel, folder: str | Path, int8: bool = False, parts: Sequence[str] = tuple(PARTS)
) -> dict[str, float]:
    """
    Writes `image_encoder.onnx`, `text_encoder.onnx` and `pair_scorer.onnx`; batch and lengths are free.

    Every file is run by onnxruntime on other sizes than it was exported with, rows without a token included, and compared
    with the model.

    Args:
        model: with projections and a matching head: for retrieval, pretraining or grounding.
        folder: where the files go; it is made where it is not there.
        int8: keep the weights of the linear layers in 8 bits, one scale per output channel; activations are scaled as
            they come.
        parts: which of `PARTS`.

    Returns:
        For each part the largest difference from the model; with `int8` the smallest cosine between its outputs and the
        model's.

    Raises:
        ImportError: the libraries of the extra `onnx` are not installed.
        ExportError: a model without the parts, or a file that differs.
    """
    _require_libraries()
    if "image_encoder" in parts and model.base_model.vision_projection is None:
        raise ExportError(f"{type(model).__name__} has no projections; export a retrieval or a pretraining model.")
    if "pair_scorer" in parts and not hasattr(model, "itm_head"):
        raise ExportError(f"{type(model).__name__} has no matching head; export a retrieval or a pretraining model.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    reference = copy.deepcopy(model).cpu().float().eval()
    exported = copy.deepcopy(reference)
    for encoder in (reference, exported):
        # Boolean masks, whatever backend the model was loaded with.
        encoder.set_attn_implementation("sdpa")
    use_plain_attention(exported)
    found = {}
    for name in parts:
        part, wanted = PARTS[name](exported).eval(), PARTS[name](reference).eval()
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:
            path = Path(unfinished) / f"{name}.onnx"
            _write(part, example_inputs(reference, part, batch_size=3, length=7), path)
            difference = _difference(wanted, path, example_inputs(reference, part, batch_size=5, length=9, seed=1))
            if difference > TOLERANCE:
                raise ExportError(f"{name}.onnx differs from the model by {difference:.1e}; it was not kept.")
            if int8:
                path = _quantized(path, Path(unfinished))
                difference = _cosine(wanted, path, example_inputs(reference, part, batch_size=5, length=9, seed=1))
                if name != "pair_scorer" and difference < LEAST_COSINE:
                    raise ExportError(f"{name}.onnx by int8 has a cosine of {difference:.3f} only; it was not kept.")
            path.replace(folder / f"{name}.onnx")
        found[name] = difference
    return found


def example_inputs(
    model: VisionTextPreTrainedModel, part: nn.Module, batch_size: int, length: int, seed: int = 0
) -> dict[str, Tensor]:
    """
    Inputs of a part by name, with padding in every way: whole rows, cut rows, and a row without any token.

    Args:
        model: whose sizes they have.
        part: of the model.
        batch_size: rows, at least 3.
        length: tokens of a text; two less are those of the concepts.
        seed: of the values.
    """
    draw = torch.Generator().manual_seed(seed)
    vision, text = model.config.vision_config, model.config.text_config
    length = min(length, text.max_position_embeddings)
    tokens = vision.num_patches + 1

    def padded(width: int) -> Tensor:
        mask = torch.ones(batch_size, width, dtype=torch.int64)
        mask[1, width // 2 :] = 0
        mask[2] = 0
        return mask

    image_mask = torch.ones(batch_size, tokens + 4, dtype=torch.int64)
    image_mask[1, tokens:] = 0
    made = {
        "pixel_values": torch.randn(
            batch_size, vision.num_channels, vision.image_size, vision.image_size, generator=draw
        ),
        "concept_input_ids": torch.randint(text.vocab_size, (batch_size, length - 2), generator=draw),
        "concept_attention_mask": padded(length - 2),
        "input_ids": torch.randint(text.vocab_size, (batch_size, length), generator=draw),
        "attention_mask": padded(length),
        "image_hidden_states": torch.randn(batch_size, tokens + 4, vision.hidden_size, generator=draw),
        "image_attention_mask": image_mask,
        "text_hidden_states": torch.randn(batch_size, length, text.hidden_size, generator=draw),
    }
    return {name: made[name] for name in part.inputs}


def _require_libraries() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f'export needs {error.name}; install it with pip install "vicha_hf[onnx]".') from error


def _write(part: nn.Module, inputs: Mapping[str, Tensor], path: Path) -> None:
    # An image has a fixed number of channels, rows and columns; everything else has a free second dimension.
    free = {name: {0: Dim.DYNAMIC} if name == "pixel_values" else {0: Dim.DYNAMIC, 1: Dim.DYNAMIC} for name in inputs}
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
                dynamic_shapes=tuple(free.values()),
                opset_version=OPSET,
                verbose=False,
            )
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
    program.save(path, external_data=False)


def _run(part: nn.Module, path: Path, inputs: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs of a file and of the model's part."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    with torch.no_grad():
        wanted = part(*inputs.values())
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    return [torch.from_numpy(array).float() for array in found], [tensor.float() for tensor in wanted]


def _difference(part: nn.Module, path: Path, inputs: Mapping[str, Tensor]) -> float:
    found, wanted = _run(part, path, inputs)
    return max((a - b).abs().max().item() for a, b in zip(found, wanted, strict=True))


def _cosine(part: nn.Module, path: Path, inputs: Mapping[str, Tensor]) -> float:
    """Smallest cosine of the first output's rows; of scores, which are one number each, that of all together."""
    found, wanted = (outputs[0] for outputs in _run(part, path, inputs))
    if found.dim() == 1:
        found, wanted = found[None], wanted[None]
    return torch.cosine_similarity(found, wanted, dim=-1).min().item()


def _quantized(path: Path, folder: Path) -> Path:
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
