"""The launch of the pretraining script: threads for the cores of this machine, and a stop that reaches those who train."""

import subprocess
import sys

import launching


def test_processes_share_the_cores(monkeypatch):
    monkeypatch.setattr(launching.torch.cuda, "is_available", lambda: False)
    for cores, processes, expected in (
        (1, 1, ("cpu", 1)),
        (8, 1, ("cpu", 8)),
        (8, 2, ("cpu_two_processes", 4)),
        (2, 3, ("cpu_two_processes", 1)),
    ):
        monkeypatch.setattr(launching, "available_cores", lambda cores=cores: cores)
        assert launching.launch_topology(processes) == expected
    monkeypatch.setattr(launching.torch.cuda, "is_available", lambda: True)
    assert launching.launch_topology()[0] == "single_gpu"


def test_a_stop_reaches_the_process_that_trains_and_its_launcher_waits_for_it():
    script = (
        "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', "
        "'import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); print(1, flush=True); "
        "time.sleep(60)']).returncode)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as launcher:
        assert launcher.stdout.readline() == b"1\n"
        launching._stop(launcher.pid)
        assert launcher.wait(timeout=30) == 143
