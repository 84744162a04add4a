"""What every benchmark here states beside its figures: how fast the machine multiplies, how much memory was used."""

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch


def timed(function: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    """The shortest of some runs, seconds, and what the function returned."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def matmul_gflops(size: int = 2048, repeats: int = 5) -> float:
    """GFLOP/s of a square fp32 matrix product with as many threads as torch uses here."""
    left, right = torch.randn(2, size, size)
    seconds, _ = timed(lambda: left @ right, repeats)
    return 2 * size**3 / seconds / 1e9


def peak_rss_gib() -> float:
    """The most memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20
