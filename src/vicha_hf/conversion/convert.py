"""Converting a published ViCHA, ALBEF or SIMLA checkpoint."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError

from ..families import head_class
from ..models.modeling_vision_text import VisionTextPreTrainedModel
from ..models.training_state import TRAINING_STATE_PREFIX
from ..weight_files import require_weights
from .checkpoint_config import HEADS, detect_head, detect_layout, infer_config
from .key_table import Layout, is_training_only, translate


# Keys under which a training script or framework may have put the tensors, inside each other too.
WRAPPING_KEYS = ("model", "state_dict")
# What data parallelism, torch.compile and training frameworks put before every name.
WRAPPING_PREFIXES = ("module.", "_orig_mod.", "model.")
# Buffers of the published code that count.
INTEGER_NAMES = ("position_ids", "idx_queue", "queue_ptr")


class CheckpointError(ValueError):
    """A checkpoint that cannot be converted; the message says which keys or options are in the way."""


class CheckpointConfigError(CheckpointError):
    """A checkpoint whose options and the caller's make no configuration."""


def convert_checkpoint(
    path: str | Path, head: str | None = None, training_state: bool = False, **config_overrides
) -> VisionTextPreTrainedModel:
    """
    Reads a published checkpoint (`.pth`, a dict with `model` and, optionally, `config`) into a model.

    Shapes come from the tensors; what tensors cannot tell comes from `config_overrides`, else from the checkpoint's
    `config`, else from the published settings (attention heads = width / 64).

    Args:
        path: the checkpoint, read with `weights_only=True`.
        head: one of `pretraining`, `retrieval`, `vqa`, `entailment`, `reasoning`, `grounding`, `text-assignment`; by
            default what the keys say. It must be given where two heads share their keys (retrieval and grounding).
        training_state: keep the teacher (`*_m`) and the queues.
        config_overrides: fields of the family's configuration ([`ViChaConfig`] or [`SimlaConfig`]; the tensors tell which
            family it is); `vision_config` and `text_config` as dicts of single fields, e.g.
            `text_config={"num_attention_heads": 4}`.

    Raises:
        CheckpointError: unreadable file, unknown head, or tensors that are missing, left over or of another shape,
            by name.
        ValueError: an override that the family's configuration does not have.
    """
    require_known_head(head)
    tensors, options = _read(path)
    head = _resolve_head(path, tensors, head)
    try:
        config = infer_config(tensors, options, config_overrides)
    except KeyError as error:
        raise CheckpointError(f"{path} lacks {error}, from which the model's sizes are read.") from error
    except (StrictDataclassError, ValueError, TypeError, ArithmeticError, IndexError) as error:
        raise CheckpointConfigError(
            f"{path}: its tensors, its `config` and the given fields make no configuration: {error}"
        ) from error
    model = head_class(config.model_type, head)(config)
    if training_state:
        model.add_training_state()
        if model.training_state is not None and model.training_state.queue is not None:
            # Published queues are full from the start: they are initialised with random features.
            model.training_state.queue.num_filled.fill_(config.queue_size)
    _load(model, tensors, path, training_state, detect_layout(tensors, config_overrides))
    model.tie_weights()
    return model.eval()


def require_known_head(head: str | None) -> None:
    """Refuses a head that no checkpoint can have; None leaves it to the checkpoint's keys."""
    if head is not None and head not in HEADS:
        raise CheckpointError(f"`head={head!r}` is not known; choose one of {', '.join(HEADS)}.")


def _read(path) -> tuple[dict[str, torch.Tensor], Mapping]:
    try:
        require_weights(path)
        # Mapped: the system may drop the pages again. Files of before torch 1.6 are no archives, and are read whole.
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except FileNotFoundError:
        raise
    except Exception as error:
        # A damaged pickle can fail in any way.
        if isinstance(error, ValueError) and str(path) in str(error):
            raise CheckpointError(str(error)) from error
        raise CheckpointError(
            f"{path} is not a checkpoint of tensors and plain options that can be read safely "
            f"(`torch.load(..., weights_only=True)`), or it is cut off or damaged: {_reason(error)}"
        ) from error
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(f"{path} holds a {type(checkpoint).__name__}, not a dict with the key 'model'.")
    tensors, options = checkpoint, {}
    while True:
        options = tensors.get("config", options)
        key = next((key for key in WRAPPING_KEYS if key in tensors and not torch.is_tensor(tensors[key])), None)
        if key is None:
            break
        tensors = tensors[key]
        if not isinstance(tensors, Mapping):
            raise CheckpointError(f"{path} holds a {type(tensors).__name__} under {key!r}, not a dict of tensors.")
    if not isinstance(options or {}, Mapping):
        raise CheckpointError(f"{path} holds a {type(options).__name__} under 'config', not a dict of options.")
    tensors = _unwrapped(path, tensors)
    if "visual_encoder.cls_token" not in tensors:
        raise CheckpointError(
            f"{path} has no `visual_encoder.cls_token`: it is not a ViCHA, ALBEF or SIMLA checkpoint."
        )
    return tensors, options or {}


def _reason(error: Exception) -> str:
    """The sentence of torch's long message that says what is wrong."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    told = next(
        (line.partition("WeightsUnpickler error:")[2] for line in lines if "WeightsUnpickler error" in line), lines[0]
    )
    return told.strip().split(". ")[0] or "it is no pickle of tensors"


def _unwrapped(path, content: Mapping) -> dict[str, torch.Tensor]:
    """The tensors under their published names; one that no weight can be is refused by name."""
    tensors = {}
    for full_name, value in content.items():
        if not torch.is_tensor(value):
            continue
        name = str(full_name)
        while prefix := next((prefix for prefix in WRAPPING_PREFIXES if name.startswith(prefix)), None):
            name = name.removeprefix(prefix)
        if name in tensors:
            raise CheckpointError(
                f"{path} holds `{name}` twice, with and without `{str(full_name).removesuffix(name)}`."
            )
        problem = _problem(name, value)
        if problem is not None:
            raise CheckpointError(f"{path}: `{full_name}` {problem}.")
        tensors[name] = value
    return tensors


def _problem(name: str, value: torch.Tensor) -> str | None:
    """Reason why a tensor cannot be a weight; ids and positions may be whole numbers."""
    if value.layout != torch.strided or value.is_quantized:
        return f"is {'quantized' if value.is_quantized else 'sparse'}: save it as a dense tensor"
    if value.is_complex():
        return "is complex: weights are real numbers"
    if not value.is_floating_point():
        if name.endswith(INTEGER_NAMES):
            return None
        return f"holds {value.dtype}: weights are floating point numbers"
    finite = torch.isfinite(value)
    if not finite.all():
        return f"holds {int((~finite).sum())} values that are NaN or infinite"
    return None


def _resolve_head(path, tensors, head: str | None) -> str:
    found = detect_head(tensors)
    if not found:
        raise CheckpointError(f"{path} has the keys of none of the heads {HEADS}.")
    if head is None and len(found) > 1:
        raise CheckpointError(f"{path} fits the heads {found}, which share their keys: say which with `head`.")
    head = head or found[0]
    if head not in found:
        raise CheckpointError(
            f"{path} is a checkpoint for {' or '.join(found)}, not for {head}: convert it as it is, then load the "
            "converted folder into the head that you want with `from_pretrained`."
        )
    return head


@torch.no_grad()
def _load(model, tensors, path, training_state: bool, layout: Layout) -> None:
    own = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if training_state or not name.startswith(TRAINING_STATE_PREFIX)
    }
    shapes = {name: tensor.shape for name, tensor in own.items()}
    converted, left_over = {}, []
    for name, tensor in tensors.items():
        if is_training_only(name) and not training_state:
            continue
        target = translate(name, layout)
        if target is None or any(part not in shapes for part in target.names):
            left_over.append(name)
            continue
        if not target.names:
            continue
        for part, value in target.split(tensor, shapes).items():
            if value.shape != shapes[part]:
                raise CheckpointError(
                    f"{path}: `{name}` {tuple(tensor.shape)} does not fit `{part}` {tuple(shapes[part])}; "
                    "give the configuration that it was trained with."
                )
            if part in converted and not torch.equal(converted[part], value):
                raise CheckpointError(f"{path}: `{name}` and another key both set `{part}`, to different values.")
            converted[part] = value
    missing = sorted(set(own) - set(converted) - _not_in_checkpoints(own))
    if missing or left_over:
        raise CheckpointError(
            f"{path} does not fit {type(model).__name__}: missing {missing or 'nothing'}, "
            f"left over {sorted(left_over) or 'nothing'}."
        )
    for name, value in converted.items():
        own[name].copy_(value)


def _not_in_checkpoints(names) -> set[str]:
    """
    Names that the published code does not store: the queue's fill, the ids of its images, the teacher's temperature.
    """
    absent = ("queue.num_filled", "queue.num_batches", "queue.image_ids")
    return {
        name
        for name in names
        if name.endswith(absent) or (name.startswith(TRAINING_STATE_PREFIX) and name.endswith(".temperature"))
    }
