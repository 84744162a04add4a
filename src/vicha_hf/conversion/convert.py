"""Converting a published ViCHA, ALBEF or SIMLA checkpoint."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch

from ..families import head_class
from ..models.modeling_vision_text import VisionTextPreTrainedModel
from ..models.training_state import TRAINING_STATE_PREFIX
from .checkpoint_config import HEADS, detect_head, detect_layout, infer_config
from .key_table import Layout, is_training_only, translate


class CheckpointError(ValueError):
    """A checkpoint that cannot be converted; the message says which keys or options are in the way."""


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
    tensors, options = _read(path)
    head = _resolve_head(path, tensors, head)
    try:
        config = infer_config(tensors, options, config_overrides)
    except KeyError as error:
        raise CheckpointError(f"{path} lacks {error}, from which the model's sizes are read.") from error
    model = head_class(config.model_type, head)(config)
    if training_state:
        model.add_training_state()
        if model.training_state is not None and model.training_state.queue is not None:
            # Published queues are full from the start: they are initialised with random features.
            model.training_state.queue.num_filled.fill_(config.queue_size)
    _load(model, tensors, path, training_state, detect_layout(tensors, config_overrides))
    model.tie_weights()
    return model.eval()


def _read(path) -> tuple[dict[str, torch.Tensor], Mapping]:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a checkpoint of tensors and plain options that can be read safely "
            f"(`torch.load(..., weights_only=True)`): {error}"
        ) from error
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(f"{path} holds a {type(checkpoint).__name__}, not a dict with the key 'model'.")
    tensors = checkpoint.get("model", checkpoint)
    if not isinstance(tensors, Mapping):
        raise CheckpointError(f"{path} holds a {type(tensors).__name__} under 'model', not a dict of tensors.")
    tensors = {name.removeprefix("module."): value for name, value in tensors.items() if torch.is_tensor(value)}
    if "visual_encoder.cls_token" not in tensors:
        raise CheckpointError(
            f"{path} has no `visual_encoder.cls_token`: it is not a ViCHA, ALBEF or SIMLA checkpoint."
        )
    return tensors, checkpoint.get("config") or {}


def _resolve_head(path, tensors, head: str | None) -> str:
    found = detect_head(tensors)
    if head is not None and head not in HEADS:
        raise CheckpointError(f"`head={head!r}` is not known; choose one of {HEADS}.")
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
