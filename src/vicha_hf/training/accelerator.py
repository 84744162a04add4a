"""The `Accelerator` of a training run."""

import os
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    ProjectConfiguration,
)

from .arguments import TrainingArguments


def create_accelerator(arguments: TrainingArguments, find_unused_parameters: bool = False) -> Accelerator:
    """An `Accelerator` as the loop wants it; devices and processes come from `accelerate launch`.

    Args:
        arguments: of the run.
        find_unused_parameters: needed only by a model that leaves trainable parameters out of some steps; costs time.
    """
    handlers = [
        # The queues are equal on every process by construction: they hold what was gathered from all.
        DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=find_unused_parameters)
    ]
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true" and not torch.accelerator.is_available():
        # On a CPU DeepSpeed would ask for a backend that torch does not have.
        handlers.append(InitProcessGroupKwargs(backend="gloo"))
    accelerator = Accelerator(
        mixed_precision=arguments.mixed_precision,
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
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        # DeepSpeed clips and accumulates inside its engine, and cannot see the batch size of a loader of ours.
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        config["gradient_accumulation_steps"] = arguments.gradient_accumulation_steps
        config["train_micro_batch_size_per_gpu"] = arguments.per_device_batch_size
        config["gradient_clipping"] = arguments.max_grad_norm or 0.0
    return accelerator
