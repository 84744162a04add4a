"""Mistakes that a user can put right: one line on stderr and an exit status, instead of a traceback."""

import json
import os
import re
import select
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path
from subprocess import CalledProcessError

from .arguments import one_line


# Exit status after a mistake in the input; wrong usage is 2, as argparse has it.
FAILED = 1
# What a process returns that was stopped by a signal: 128 and the signal's number, as shells have it.
STOPPED_BY_CTRL_C = 130
STOPPED_BY_CLOSED_PIPE = 141
STOPPED_BY_SIGTERM = 143
DEBUG_OPTION = "--debug"
_OF_VALIDATOR = re.compile(r"^Class validation error for validator '\w+':\s+\w+: ")
_FROM_WORKER = re.compile(r"Caught \w+ in DataLoader worker process \d+\.\nOriginal Traceback")
# torch raises it wherever the main thread is.
_WORKER_ENDED = re.compile(r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) ((?:is killed by|exited)[^.]+)")


def run_command(name: str, run: Callable[[list[str]], int | None], argv: Sequence[str]) -> int:
    """
    Runs a command; a mistake in its input becomes one line on stderr, and so does Ctrl-C. It ends silently where nobody
    reads what it writes any more, as behind `| head`.

    Args:
        name: of the command, which opens the line.
        run: called with the command line; returns the exit status, None for 0.
        argv: the command line. `--debug` in it shows the full trace.

    Returns:
        The exit status.
    """
    words, behind = _split_at_dashes(argv)
    debug = DEBUG_OPTION in words
    try:
        try:
            return run([word for word in words if word != DEBUG_OPTION] + behind) or 0
        finally:
            # Here a closed pipe can still be answered; at Python's own end it is a trace.
            sys.stdout.flush()
    except KeyboardInterrupt:
        if debug:
            raise
        print(f"{name}: interrupted", file=sys.stderr, flush=True)
        return STOPPED_BY_CTRL_C
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _leave_closed_pipes():
            return STOPPED_BY_CLOSED_PIPE
        if not debug and _lost_the_others(error):
            print(f"{name}: another process has ended; its message says why.", file=sys.stderr, flush=True)
            return FAILED
        if debug or not is_mistake(error):
            raise
        line = f"{name}: {describe(error)}"
        print(line, file=sys.stderr, flush=True)
        _tell_launcher(line)
        return FAILED


def run_script(main: Callable[[list[str]], object]) -> int:
    """
    Runs the `main` of a script on the process's command line; returns the exit status, as [`run_command`] does.

    A `main` that returns a [`TrainingResult`] which a SIGTERM cut short ends with status 143.
    """

    def run(argv: list[str]) -> int:
        return STOPPED_BY_SIGTERM if getattr(main(argv), "interrupted", False) else 0

    return run_command(Path(sys.argv[0]).name, run, sys.argv[1:])


def is_mistake(error: BaseException) -> bool:
    """Whether an exception comes from what the user gave: files, values, the machine's memory. Others are our faults."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from torch import OutOfMemoryError
    from yaml import YAMLError

    from .data.image_files import ImageReadError
    from .training.non_finite import NonFiniteLossError

    kinds = (
        ValueError,
        OSError,
        # An extra that is not installed; the message names it.
        ImportError,
        ImageReadError,
        NonFiniteLossError,
        StrictDataclassError,
        DatasetsError,
        SafetensorError,
        OutOfMemoryError,
        # A process that loads data was ended from outside, usually for its memory.
        BrokenExecutor,
        YAMLError,
    )
    return isinstance(error, kinds) or _ended_worker(error) is not None or _failed_script(error) is not None


def describe(error: BaseException) -> str:
    """The message of an exception on one line, never empty."""
    if isinstance(error, OSError) and error.filename is not None and str(error).startswith("[Errno"):
        return one_line(f"{error.filename}: {_plain_cause(error)}")
    if isinstance(error, BrokenExecutor):
        return "a process that did a part of the work was ended from outside, usually for its memory; take fewer processes"
    script = _failed_script(error)
    if script is not None:
        return f"{script} ended with an error; its message stands above"
    ended = _ended_worker(error)
    if ended is not None:
        wanted = "shared memory" if "Bus error" in ended else "memory"
        return f"a process that loads data {ended}, usually for want of {wanted}; take fewer (num_workers), or 0 to see its own error"
    message = str(error)
    # A configuration's check is a step of the class: its name says nothing to a user.
    message = _OF_VALIDATOR.sub("", message)
    if _FROM_WORKER.match(message):
        # A loading process hands on its whole trace as the message.
        message = message.rpartition(f"\n{type(error).__module__}.{type(error).__qualname__}: ")[2]
    return one_line(message) or type(error).__name__


def _ended_worker(error: BaseException) -> str | None:
    """Reads out of torch's error how a process of a `DataLoader` has ended; None of any other error."""
    # What waited for the process only knows that it is gone; the cause knows the signal.
    for told in (error.__cause__, error):
        match = _WORKER_ENDED.match(str(told)) if isinstance(told, RuntimeError) else None
        if match:
            return match[1].strip()
    return None


def _failed_script(error: BaseException) -> str | None:
    """Names a script that another one ran and that has printed itself what is wrong; None of any other error."""
    if not isinstance(error, CalledProcessError) or error.output is not None or error.stderr is not None:
        return None
    return next((Path(word).name for word in map(str, error.cmd) if word.endswith(".py")), None)


def _plain_cause(error: OSError) -> str:
    """A bare error of the operating system in words, with the remedy."""
    for kind, cause in (
        (FileNotFoundError, "not found; check the path"),
        (IsADirectoryError, "is a folder; name a file"),
        (NotADirectoryError, "is, or lies below, a file; name a folder"),
        (FileExistsError, "is there already; choose another name"),
        (PermissionError, "permission denied; make it readable and its folder writable, or choose another"),
    ):
        if isinstance(error, kind):
            return cause
    return error.strerror or type(error).__name__


def _lost_the_others(error: Exception) -> bool:
    """Whether a process stopped only because another one of the same run did."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or (type(error) is RuntimeError and "gloo" in str(error))


def _leave_closed_pipes() -> bool:
    """Whether stdout or stderr is a pipe that nobody reads; what is still to be written there goes nowhere."""
    # A failed write does not say which pipe it was: loading processes have pipes too.
    if not hasattr(select, "poll"):  # Windows, which tells of a closed pipe otherwise
        return False
    pipes = select.poll()
    for stream in (sys.stdout, sys.stderr):
        pipes.register(stream.fileno(), 0)
    closed = [pipe for pipe, event in pipes.poll(0) if event & (select.POLLERR | select.POLLHUP)]
    for pipe in closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), pipe)
    return bool(closed)


def _tell_launcher(line: str) -> None:
    """Writes the message where torch's launcher of several processes looks for it, so that its own report ends with it."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        details = {"py_callstack": line, "timestamp": str(int(time.time()))}
        Path(path).write_text(json.dumps({"message": {"message": line, "extraInfo": details}}), encoding="utf-8")


def _split_at_dashes(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Words before `--`, and the rest from it on."""
    words = list(argv)
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at:]
