"""Commands that are stopped from outside, by Ctrl-C or by a reader that closes the pipe, end without a traceback."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor

import pytest

from vicha_hf.data.loader_processes import process_pool
from vicha_hf.mistakes import run_command


def test_ctrl_c_is_one_line(capsys):
    def run(words):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    # A shell starts what it sends to the background deaf to Ctrl-C, the tests too.
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert run_command("vicha-hf index", run, []) == 130
        assert capsys.readouterr().err == "vicha-hf index: interrupted\n"
        with pytest.raises(KeyboardInterrupt):
            run_command("vicha-hf index", run, ["--debug"])
    finally:
        signal.signal(signal.SIGINT, earlier)


def test_ctrl_c_while_the_libraries_load_is_one_line(tmp_path):
    stopped = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    (tmp_path / "transformers.py").write_text(stopped)
    command = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    command += "from vicha_hf_command import main; sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    process = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (130, "vicha-hf: interrupted\n")


@pytest.mark.parametrize("buffering", [1, -1], ids=["line by line", "at the end"])
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_closed_pipe_is_silent(monkeypatch, tmp_path, name, buffering):
    reader, writer = os.pipe()
    os.close(reader)
    other = (tmp_path / "other").open("w+")
    with open(writer, "w", buffering=buffering) as closed:
        monkeypatch.setattr(sys, "stdout", other)
        monkeypatch.setattr(sys, "stderr", other)
        monkeypatch.setattr(sys, name, closed)

        def run(words):
            print("much", file=closed)
            if name == "stderr":
                closed.flush()

        assert run_command("vicha-hf search", run, []) == 141
    # What was left to write went nowhere when the stream was closed.
    other.seek(0)
    assert other.read() == ""


def test_a_pipe_of_something_else_is_a_mistake(capfd):
    def run(words):
        raise BrokenPipeError(32, "Broken pipe")

    assert run_command("vicha-hf index", run, []) == 1
    assert "vicha-hf index: [Errno 32] Broken pipe" in capfd.readouterr().err


def test_pools_leave_ctrl_c_to_the_command():
    with process_pool(1) as pool:
        assert pool.submit(os.getpid).result() != os.getpid()
        assert pool.submit(signal.getsignal, signal.SIGINT).result() is signal.SIG_IGN


def test_ctrl_c_does_not_wait_for_what_a_pool_is_at():
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), process_pool(2) as pool:
        pool.submit(os.getpid).result()
        for _ in range(4):
            pool.submit(time.sleep, 600)
        raise KeyboardInterrupt
    assert time.monotonic() - started < 120


def test_a_process_that_was_killed_is_one_line(capsys):
    def run(words):
        with process_pool(1) as pool, pytest.raises(BrokenExecutor):
            pool.submit(os._exit, 9).result()
        with process_pool(1) as pool:
            pool.submit(os._exit, 9).result()

    assert run_command("vicha-hf data check", run, []) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("vicha-hf data check: a process that did a part of the work was ended from outside")


def test_a_script_that_failed_within_another_is_one_line(tmp_path, capfd):
    (tmp_path / "train.py").write_text("import sys; sys.exit('train.py: no such corpus')")

    def run(words):
        subprocess.run([sys.executable, tmp_path / "train.py"], check=True)

    assert run_command("benchmark.py", run, []) == 1
    assert capfd.readouterr().err.splitlines() == [
        "train.py: no such corpus",
        "benchmark.py: train.py ended with an error; its message stands above",
    ]

    # What was caught stands nowhere: its trace must.
    with pytest.raises(subprocess.CalledProcessError):
        run_command("benchmark.py", lambda words: subprocess.check_output([sys.executable, tmp_path / "train.py"]), [])


KILLED_LOADING = """
import os, sys
from torch.utils.data import DataLoader, Dataset
from vicha_hf.mistakes import run_command

class Numbers(Dataset):
    def __len__(self):
        return 100
    def __getitem__(self, index):
        {end}
        return index

sys.exit(run_command("pretrain.py", lambda words: list(DataLoader(Numbers(), num_workers=1)), []))
"""


@pytest.mark.parametrize(
    ("end", "how"),
    [
        ("os.kill(os.getpid(), 9)", "is killed by signal: Killed, usually for want of memory"),
        ("os.kill(os.getpid(), 7)", "is killed by signal: Bus error, usually for want of shared memory"),
        ("os._exit(7)", "exited unexpectedly with exit code 7, usually for want of memory"),
    ],
)
def test_a_loading_process_that_ended_is_one_line(end, how):
    done = subprocess.run(
        [sys.executable, "-c", KILLED_LOADING.format(end=end)], capture_output=True, text=True, timeout=120
    )
    # Before it torch may report the signal, with a NUL at the end.
    line = done.stderr.splitlines()[-1].strip("\0")
    said = f"pretrain.py: a process that loads data {how}; take fewer (num_workers), or 0 to see its own error"
    assert (done.returncode, line) == (1, said), done.stderr
    assert "Traceback" not in done.stderr


LOADING = """
import os, signal, sys, time
from torch.utils.data import DataLoader, Dataset
from vicha_hf.data.loader_processes import ignore_sigterm

class Numbers(Dataset):
    def __len__(self):
        return 100
    def __getitem__(self, index):
        return index, os.getpid()

loader = iter(DataLoader(Numbers(), num_workers=2, worker_init_fn=ignore_sigterm))
loading = {int(next(loader)[1]) for _ in range(8)}
assert len(loading) == 2 and os.getpid() not in loading
other = os.fork()
if not other:
    for process in loading:
        os.kill(process, signal.SIGTERM)
    os._exit(0)
os.waitpid(other, 0)
time.sleep(0.5)
print(len(list(loader)), flush=True)
loader = iter(DataLoader(Numbers(), num_workers=2, worker_init_fn=ignore_sigterm))
print(len(next(loader)), flush=True)
sys.exit(3)
"""


def test_loading_processes_ignore_sigterm_and_end_with_the_run():
    """A run that ends by an error still holds its loader: Python then sends its processes SIGTERM, and waits for them."""
    done = subprocess.run([sys.executable, "-c", LOADING], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.split()) == (3, ["92", "2"]), done.stderr
