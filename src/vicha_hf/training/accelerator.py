"""The `Accelerator` of a training run."""

import os
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    FullyShardedDataParallelPlugin,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    LoggerType,
    ProjectConfiguration,
)

from ..arguments import require
from .arguments import TrainingArguments
from .matmul_precision import multiplies_in_bfloat16


def create_accelerator(arguments: TrainingArguments) -> Accelerator:
    """An `Accelerator` as the loop wants it; devices and processes come from `accelerate launch`.

    Args:
        arguments: of the run.

    Raises:
        ValueError: trackers that are not installed, or fp16 on a CPU. Accelerate goes on without them, and without a word.
    """
    _require_trackers(arguments.trackers)
    handlers = [
        # The queues are equal on every process by construction: they hold what was gathered from all.
        DistributedDataParallelKwargs(broadcast_buffers=False)
    ]
    only_cpu = not torch.accelerator.is_available()
    uses_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    if uses_deepspeed and only_cpu:
        # On a CPU DeepSpeed would ask for a backend that torch does not have.
        handlers.append(InitProcessGroupKwargs(backend="gloo"))
    precision = arguments.mixed_precision
    if precision == "auto":
        device = torch.device("cpu") if only_cpu else torch.accelerator.current_accelerator()
        precision = "bf16" if multiplies_in_bfloat16(device) else "no"
    accelerator = Accelerator(
        # Without this several processes on a machine without GPU would not find each other.
        cpu=only_cpu and not uses_deepspeed,
        mixed_precision=precision,
        # The loop makes every optimiser step full, so the end of a data loader needs no special case.
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=arguments.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        log_with=arguments.trackers or None,
        project_config=ProjectConfiguration(
            project_dir=arguments.output_dir, logging_dir=str(Path(arguments.output_dir) / "tracking")
        ),
        kwargs_handlers=handlers,
    )
    require(
        accelerator.mixed_precision != "fp16" or accelerator.device.type != "cpu",
        "mixed_precision",
        "fp16",
        "a CPU has no fp16 training; use bf16 or no.",
    )
    if accelerator.distributed_type == DistributedType.MULTI_CPU and os.environ.get("ACCELERATE_USE_FSDP") == "true":
        _shard_on_cpu(accelerator)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        # DeepSpeed clips and accumulates inside its engine, and cannot see the batch size of a loader of ours.
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        config["gradient_accumulation_steps"] = arguments.gradient_accumulation_steps
        config["train_micro_batch_size_per_gpu"] = arguments.per_device_batch_size
        config["gradient_clipping"] = arguments.max_grad_norm or 0.0
    return accelerator


def _require_trackers(names: list[str]) -> None:
    known, installed = LoggerType.list(), [str(tracker) for tracker in get_available_trackers()]
    for name in names:
        require(name in known, "trackers", names, f"{name!r} is none of {', '.join(known)}; [] for no tracker.")
        require(
            name in (*installed, str(LoggerType.ALL)),
            "trackers",
            names,
            f"the package of {name!r} is not installed. Installed are {', '.join(installed) or 'none'}; [] for no tracker.",
        )


def _shard_on_cpu(accelerator: Accelerator) -> None:
    """Accelerate leaves FSDP out on a CPU, without a word; its FSDP2 code runs there just as well."""
    plugin = FullyShardedDataParallelPlugin()
    if accelerator.mixed_precision != "no":
        plugin.set_mixed_precision(accelerator.mixed_precision)
    accelerator.state.fsdp_plugin = plugin
    for state in (accelerator.state, PartialState()):
        state.distributed_type = DistributedType.FSDP
