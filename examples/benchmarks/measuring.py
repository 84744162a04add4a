"""
Measures that every benchmark states beside its figures, the machine's rate of multiplication and the memory used, and
how the figures are printed and written.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from vicha_hf.command_parser import CommandParser
from vicha_hf.training.run_log import read_log
from vicha_hf.whole_files import OutputFolderError, require_writable_file, write_whole_file


def timed(function: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    """The shortest of some runs, seconds, and what the function returned."""
    seconds = []
    for _ in range(repeats):
        start = now()
        result = function()
        seconds.append(now() - start)
    return min(seconds), result


def now() -> float:
    """Seconds on a clock, once a GPU has done what it was asked to."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_per_step(run: Path) -> float:
    """The median of a run's log; evaluations are not in it."""
    records = [record for record in read_log(run) if "loss" in record]
    samples = json.loads((run / "metrics.json").read_text())["samples_per_step"]
    return median(samples / record["samples_per_second"] for record in records)


def matmul_gflops(
    size: int = 2048, repeats: int = 5, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> float:
    """GFLOP/s of a square matrix product, on the CPU with as many threads as torch uses here."""
    left, right = torch.randn(2, size, size, device=device).to(dtype)
    left @ right
    seconds, _ = timed(lambda: left @ right, repeats)
    return 2 * size**3 / seconds / 1e9


def peak_rss_gib() -> float:
    """The most memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


def peak_allocated_gib(function: Callable[[], Any], device: str = "cpu") -> float:
    """
    Most memory that a function allocates at one time, beyond what was allocated before. On the CPU it is summed up
    from torch's own record of every allocation. That is exact, and temporary tensors are included. Unlike the resident
    memory of the process, it is free of what the C library keeps for later. It runs the function twice. The record
    leaves out the release of what was allocated before recording began, so a tensor that the function puts in
    another's place would count as an addition.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - before) / 2**30
    for _ in range(2):
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            function()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    allocated = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    return peak / 2**30


class ResultFile:
    """
    Place of the figures of a benchmark. The file says whose they are, and takes the place of that benchmark's earlier
    figures alone.

    Args:
        benchmark: its name.
        path: of the file; without one nothing is written.

    Raises:
        OutputFolderError: it cannot be written, or something else is there. That is known before hours are spent.
    """

    def __init__(self, benchmark: str, path: str | None = None):
        self.benchmark, self.path = benchmark, None if path is None else Path(path)
        if self.path is None:
            return
        require_writable_file(self.path)
        # An empty file, such as a temporary one, holds nothing to lose.
        if self.path.exists() and self.path.stat().st_size and self._earlier_benchmark() != benchmark:
            raise OutputFolderError(
                f"{path} is there already and no earlier result of {benchmark}: name another file."
            )

    def write(self, figures: Mapping[str, object]) -> None:
        if self.path is not None:
            content = {"benchmark": self.benchmark, **figures}
            write_whole_file(self.path, json.dumps(content, indent=2) + "\n")

    def _earlier_benchmark(self) -> str | None:
        try:
            found = json.loads(self.path.read_bytes())
        except ValueError:
            return None
        return found.get("benchmark") if isinstance(found, dict) else None


def add_json_option(parser: CommandParser, benchmark: str) -> None:
    """Adds `--json`; `arguments.json.write(figures)` writes the file that it names, if any."""
    parser.add_argument(
        "--json",
        type=partial(ResultFile, benchmark),
        default=ResultFile(benchmark),
        metavar="PATH",
        help="also write the figures there, in place of earlier ones of this benchmark",
    )


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A Markdown table, the first column to the left and the others to the right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    aligned = [
        " | ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, *rows)
    ]
    rule = "|".join("-" * (width + 1) + ("-" if column == 0 else ":") for column, width in enumerate(widths))
    for line in (f"| {aligned[0]} |", f"|{rule}|", *(f"| {line} |" for line in aligned[1:])):
        print(line)
