"""The precision of float32 matrix products while a run lasts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch


MatmulPrecision = Literal["highest", "high", "medium"]


@contextmanager
def float32_matmul_precision(precision: MatmulPrecision) -> Iterator[None]:
    """Sets torch's process-wide precision inside the block, and puts it back behind it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
