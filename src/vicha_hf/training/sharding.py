"""Support for weights that are split over the processes (DeepSpeed's ZeRO-3, FSDP2)."""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from ..arguments import require
from ..models.training_state import TRAINING_STATE_PREFIX
from .adapters import has_adapters


# Called to be used, whatever calls them: ZeRO-3 gathers their weights by itself.
SELF_CONTAINED = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.Conv2d)


def require_whole_weights(accelerator: Accelerator, name: str, value: object) -> None:
    """Raise a `ValueError` where an option was chosen that nobody has tried with weights or optimiser split over processes."""
    require(
        accelerator.distributed_type != DistributedType.DEEPSPEED and not accelerator.is_fsdp2,
        name,
        value,
        "it does not go together with DeepSpeed or FSDP2; launch with single_gpu, multi_gpu or multi_node.",
    )


def prepare_for_gathering(model: nn.Module, accelerator: Accelerator) -> None:
    """Makes ZeRO-3 gather the weights that are read outside the forward of the module that owns them.

    It gathers a module's weights when the module is called. But heads call methods of the base model, which reads its
    temperature there, and embeddings read a part of the table of positions. Such single weights are gathered with the
    whole model's forward; all layers' remain split until they run.

    Args:
        model: unwrapped, before `accelerator.prepare`.
        accelerator: of the run.

    Raises:
        ValueError: a model with adapters, which nobody has tried there.
    """
    if has_adapters(model):
        require_whole_weights(accelerator, "model.lora", True)
    if accelerator.distributed_type != DistributedType.DEEPSPEED or _zero_stage(accelerator) != 3:
        return
    from deepspeed.runtime.zero import register_external_parameter

    for name, module in model.named_modules():
        if not isinstance(module, SELF_CONTAINED) or name.endswith("position_embeddings"):
            for parameter in module.parameters(recurse=False):
                register_external_parameter(model, parameter)


@contextmanager
def embeddings_in_one_unit(model: nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """Inside the block, around `accelerator.prepare`, Accelerate splits no embeddings off for FSDP2.

    It would give input and output embeddings a unit of their own, together with what they are tied to only where the
    two are tied to each other. A decoder whose weights are tied within itself would be torn, which FSDP2 refuses.

    Args:
        model: unwrapped.
        accelerator: of the run.
    """
    if not accelerator.is_fsdp2:
        yield
        return
    hidden = [name for name in ("get_input_embeddings", "get_output_embeddings") if hasattr(model, name)]
    for name in hidden:
        setattr(model, name, lambda: None)
    try:
        yield
    finally:
        for name in hidden:
            delattr(model, name)


@contextmanager
def whole_model(model: nn.Module) -> Iterator[nn.Module]:
    """The model with whole weights on every process, so that methods other than `forward` can be called, and by one
    process more often than by another.

    Args:
        model: unwrapped, in evaluation mode.

    Returns:
        It is the model itself, or, where its weights are split, a copy without training state. Whatever runs a part of
        a split model would have all processes gather that part's weights together.
    """
    if isinstance(model, FSDPModule):
        # FSDP2 derives the class of what it splits from FSDPModule and the class that it was.
        _, plain_class = type(model).__bases__
        yield _plain_copy(plain_class, model)
        return
    partitioned = [
        parameter
        for name, parameter in model.named_parameters()
        if hasattr(parameter, "ds_tensor") and not name.startswith(TRAINING_STATE_PREFIX)
    ]
    if not partitioned:
        yield model
        return
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters(partitioned):
        copy = _plain_copy(type(model), model)
    yield copy


def _plain_copy(plain_class: type[nn.Module], model: nn.Module) -> nn.Module:
    copy = plain_class(model.config).eval()
    state = {
        name: value.full_tensor() if isinstance(value, DTensor) else value
        for name, value in model.state_dict().items()
        if not name.startswith(TRAINING_STATE_PREFIX)
    }
    copy.load_state_dict(state)
    return copy.to(next(iter(state.values())).device)


def _zero_stage(accelerator: Accelerator) -> int:
    return accelerator.state.deepspeed_plugin.zero_stage
