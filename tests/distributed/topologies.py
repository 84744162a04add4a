"""What `accelerate launch` would put into the environment for each of the committed topologies."""

import os
from pathlib import Path

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env


CONFIGS = Path(__file__).parents[2] / "examples/accelerate_configs"
# Run by two processes, for a CPU in full precision.
OVERRIDES = ("--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0")
SHARDED = ("deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3", "fsdp2")
TOPOLOGIES = ("multi_gpu", *SHARDED)


def environment_of(topology: str) -> dict[str, str]:
    arguments = ["--config_file", str(CONFIGS / f"{topology}.yaml"), *OVERRIDES, "script.py"]
    parsed, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    if parsed.use_deepspeed:
        parsed.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        _, environment = prepare_deepspeed_cmd_env(parsed)
    else:
        environment = prepare_multi_gpu_env(parsed)
    return {name: value for name, value in environment.items() if name.startswith(("ACCELERATE_", "FSDP_"))}


def enter(topology: str) -> None:
    """Makes this process one that was launched with `topology`."""
    for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_"))]:
        del os.environ[name]
    os.environ.update(environment_of(topology))
