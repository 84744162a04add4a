"""Run by a launcher in every process: the example script under some topologies, and what each run left behind.

topology_worker.py ROOT TOPOLOGIES SCRIPT_ARGUMENTS...

TOPOLOGIES are comma-separated names of launch configurations, each entered as `accelerate launch` would; "launched" is
the one that this process was launched with. Under each the script runs twice in the folder ROOT/TOPOLOGY/run: to the
end, and again from its first checkpoint. Process 0 writes `state.pt`, the complete state dicts (weights, teacher,
queue) of both ends, and each process `report_RANK.json`.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType
from topologies import enter

from vicha_hf.training.checkpoints import list_checkpoints
from vicha_hf.training.loop import TrainingLoop


sys.path.insert(0, str(Path(__file__).parents[1]))
from script_modules import load_script


def run(arguments: list[str]) -> TrainingLoop:
    """The script's `main`; the loop that it made."""
    made = []
    original = TrainingLoop.__init__

    def remember(loop, *args, **kwargs):
        made.append(loop)
        original(loop, *args, **kwargs)

    TrainingLoop.__init__ = remember
    try:
        load_script("examples/pretrain.py").main(arguments)
    finally:
        TrainingLoop.__init__ = original
    return made[0]


def whole_state(loop: TrainingLoop) -> dict[str, torch.Tensor]:
    state = loop.accelerator.get_state_dict(loop.model)
    return {name: value.detach().cpu().clone() for name, value in (state or {}).items()}


def main(root: Path, topologies: list[str], arguments: list[str]) -> None:
    for topology in topologies:
        if topology != "launched":
            enter(topology)
        folder = root / topology
        folder.mkdir(parents=True, exist_ok=True)
        train_and_resume(folder, [*arguments, f"--output_dir={folder / 'run'}"])


def train_and_resume(folder: Path, arguments: list[str]) -> None:
    loop = run(arguments)
    accelerator = loop.accelerator
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    uses_deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    report = {
        "pid": os.getpid(),
        "world_size": dist.get_world_size(),
        "distributed_type": accelerator.distributed_type.value,
        "zero_stage": plugin.zero_stage if uses_deepspeed else None,
        "fsdp2": accelerator.is_fsdp2,
        "kept": {name: kept_numbers(parameter) for name, parameter in loop.unwrapped_model.named_parameters()},
    }
    (folder / f"report_{accelerator.process_index}.json").write_text(json.dumps(report))
    state = {"end": whole_state(loop)}
    first = list_checkpoints(loop.output_dir)[0]
    if accelerator.is_main_process:
        (loop.output_dir / "log.jsonl").replace(folder / "log.jsonl")
    accelerator.wait_for_everyone()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    resumed = run([*arguments, f"--resume_from_checkpoint={first}"])
    state["resumed"] = whole_state(resumed)
    if accelerator.is_main_process:
        torch.save(state, folder / "state.pt")
    accelerator.wait_for_everyone()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def kept_numbers(parameter: torch.Tensor) -> int:
    """How many of a parameter's numbers this process keeps between two steps."""
    if hasattr(parameter, "ds_tensor"):
        return parameter.ds_tensor.numel()
    return parameter.to_local().numel() if hasattr(parameter, "to_local") else parameter.numel()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[3:])
