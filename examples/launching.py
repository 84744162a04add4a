"""The start of `accelerate launch examples/pretrain.py` on whatever machine this is, for scripts that train by it."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch


EXAMPLES = Path(__file__).parent


def launch_pretraining(options: Sequence[str], num_processes: int = 1) -> int:
    """
    Runs the script to its end, its progress on this terminal; a SIGTERM to this process is passed on to it.

    Args:
        options: of `examples/pretrain.py`.
        num_processes: that train together.

    Returns:
        The exit status.
    """
    hardware, num_threads = launch_topology(num_processes)
    launcher = ["--config_file", str(EXAMPLES / f"accelerate_configs/{hardware}.yaml")]
    launcher += ["--num_processes", str(num_processes), "--num_cpu_threads_per_process", str(num_threads)]
    if num_processes > 1:
        # Any free port: several of them may run on one machine.
        launcher += ["--main_process_port", "0"]
    command = [*launcher, str(EXAMPLES / "pretrain.py"), *options]
    print("accelerate launch " + shlex.join(command), flush=True)
    # Without --quiet the launcher's own trace would follow the message of a mistake.
    process = subprocess.Popen([sys.executable, "-m", "accelerate.commands.launch", "--quiet", *command])
    before = signal.signal(signal.SIGTERM, lambda number, frame: _stop(process.pid))
    try:
        return process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)


def launch_topology(num_processes: int = 1) -> tuple[str, int]:
    """The file in accelerate_configs/ that suits this machine and so many processes, and the threads of each."""
    if torch.cuda.is_available():
        return "single_gpu" if num_processes == 1 else "multi_gpu", torch.get_num_threads()
    hardware = "cpu" if num_processes == 1 else "cpu_two_processes"
    return hardware, max(available_cores() // num_processes, 1)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _stop(launcher: int) -> None:
    """Asks the processes that train to stop; their launcher waits for them, and would not if it were asked itself."""
    running = psutil.Process(launcher)
    for process in running.children() or [running]:
        process.terminate()
