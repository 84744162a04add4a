"""The precision of matrix products: of float32 ones while a run lasts, and where bfloat16 is quicker."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch


MatmulPrecision = Literal["highest", "high", "medium"]


def multiplies_in_bfloat16(device: torch.device) -> bool:
    """Whether a device has bfloat16 arithmetic. A CPU without it takes many times as long as in float32."""
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


@contextmanager
def float32_matmul_precision(precision: MatmulPrecision) -> Iterator[None]:
    """Sets torch's process-wide precision inside the block, and puts it back behind it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
