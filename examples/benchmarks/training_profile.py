"""The time of a pretraining step by kind of operation: what its matrix products reach, and what else takes time.

    python examples/benchmarks/training_profile.py --size base --family vicha --batch_size 8 --lengths real --json profile.json

The step is that of `training.py`. Torch's profiler gives the time of each operation without that of the operations within
it, on all threads. FLOPs are counted per operation. Rates are shares of that of a 2048 x 2048 product, measured before
and after the step.
"""

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from statistics import mean

import torch
from measuring import add_json_option, matmul_gflops, now, print_table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from training_step import CPU_VARIANTS, FAMILIES, TrainingStep

from vicha_hf.command_parser import CommandParser
from vicha_hf.mistakes import run_script


PRODUCTS, ATTENTION, PATCHES, OTHERS = "matrix products", "fused attention", "patch embedding", "everything else"
PRODUCT_OPERATIONS = ("mm", "addmm", "bmm", "baddbmm")
# The first part of a name decides, so longer ones stand before those that begin alike.
KINDS = {
    "_scaled_dot_product": ATTENTION,
    "convolution": PATCHES,
    "mkldnn_convolution": PATCHES,
    "_slow_conv2d": PATCHES,
    "_fused_adam": "AdamW",
    "_foreach": "teacher and clipping",
    "linalg_vector_norm": "teacher and clipping",
    "gelu": "GELU",
    "native_layer_norm": "LayerNorm",
    "native_dropout": "dropout",
    "bernoulli": "dropout",
    "_log_softmax": "softmax of losses",
    "_softmax": "softmax of losses",
    "add": "sums",
    "sum": "sums",
    "mul": "products by element",
    "copy": "copies",
    "cat": "copies",
    "index": "rows read and written",
    "embedding": "rows read and written",
    "gather": "rows read and written",
    "scatter": "rows read and written",
}
# Sizes of products that are shown.
SHAPES = 8


@dataclass(frozen=True)
class Share:
    """
    Part of a step.

    Attributes:
        seconds: of it, without the operations that it calls.
        share: of the step's seconds.
        gflop: counted; 0 for what is no product.
        rate: GFLOP per second over that of the 2048 x 2048 product; None for what is no product.
    """

    seconds: float
    share: float
    gflop: float = 0.0
    rate: float | None = None


def main(argv: Sequence[str] | None = None) -> dict:
    parser = CommandParser(description=__doc__.splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "small", "base"), default="small", help="default: %(default)s")
    parser.add_argument("--family", choices=FAMILIES, default="vicha", help="default: %(default)s")
    parser.add_argument("--batch_size", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--lengths", choices=("full", "real"), default="full", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    add_json_option(parser, "training_profile")
    arguments = parser.parse_args(argv)
    if torch.cuda.is_available():
        parser.error("this profile is of the CPU: run it with CUDA_VISIBLE_DEVICES=")
    torch.set_num_threads(arguments.threads)
    settings = {name: value for name, value in vars(arguments).items() if name != "json"}
    result = settings | profile_step(
        TrainingStep(*(settings[name] for name in ("family", "size", "batch_size", "lengths")))
    )
    report(result)
    arguments.json.write(result)
    return result


def profile_step(step: TrainingStep) -> dict:
    """Shares of one step by kind of operation, and the sizes of products that take longest; a step before it warms up."""
    ours = CPU_VARIANTS["ours"]
    flops = count_flops(step)
    step.run(ours)
    gflops = [matmul_gflops()]
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        started = now()
        step.run(ours)
        seconds = now() - started
    gflops.append(matmul_gflops())
    rate = mean(gflops)
    by_kind, by_shape = defaultdict(float), defaultdict(float)
    product_flops = Counter()
    for event in recorded.key_averages(group_by_input_shape=True):
        kind = kind_of(event.key)
        spent = event.self_cpu_time_total / 1e6
        by_kind[kind] += spent
        if kind == PRODUCTS:
            size = product_size(event.key, event.input_shapes)
            by_shape[size] += spent
            product_flops[size] += event.count * flops_of(size)
    # What lies between operations, Python above all, is nobody's.
    by_kind[OTHERS] += seconds - sum(by_kind.values())
    return {
        "seconds": seconds,
        "gflop": sum(flops.values()) / 1e9,
        "matmul_gflops": gflops,
        "rate_of_step": sum(flops.values()) / 1e9 / seconds / rate,
        "kinds": {
            kind: asdict(_share(spent, seconds, flops.get(kind, 0), rate))
            for kind, spent in sorted(by_kind.items(), key=lambda item: -item[1])
        },
        "products": {
            " x ".join(map(str, size)): asdict(_share(spent, seconds, product_flops[size], rate))
            for size, spent in sorted(by_shape.items(), key=lambda item: -item[1])[:SHAPES]
        },
    }


def count_flops(step: TrainingStep) -> dict[str, int]:
    """FLOPs of a step by kind; those of attention count once, whatever its kernel computes twice."""
    totals = []
    for backends in ([SDPBackend.MATH], [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
        way = CPU_VARIANTS["ours"]
        with step.doing(way) as forward, FlopCounterMode(display=False) as counter, sdpa_kernel(backends):
            forward(**step.batch).loss.backward()
        step.optimizer.zero_grad()
        by_kind = Counter()
        for operation, count in counter.get_flop_counts()["Global"].items():
            by_kind[kind_of(str(operation).removeprefix("aten."))] += count
        totals.append(by_kind)
    plain, fused = totals
    return dict(fused) | {ATTENTION: plain[PRODUCTS] - fused[PRODUCTS]}


def kind_of(operation: str) -> str:
    """`"aten::addmm"` -> `"matrix products"`."""
    name = operation.removeprefix("aten::")
    if name in PRODUCT_OPERATIONS:
        return PRODUCTS
    return next((kind for start, kind in KINDS.items() if name.startswith(start)), OTHERS)


def product_size(operation: str, shapes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """(rows, inner width, columns) of a product by the shapes of what it multiplies, batch first where there is one."""
    left, right = shapes[1:3] if "add" in operation else shapes[:2]
    return (*left, right[-1])


def flops_of(size: Sequence[int]) -> int:
    return 2 * prod(size)


def _share(spent: float, seconds: float, flops: int, rate: float) -> Share:
    if not flops:
        return Share(spent, spent / seconds)
    return Share(spent, spent / seconds, flops / 1e9, flops / 1e9 / spent / rate)


def report(result: dict) -> None:
    print(
        f"{result['seconds']:.2f} s, {result['gflop']:.0f} GFLOP: {result['rate_of_step']:.0%} of the rate of the "
        f"2048 x 2048 product ({mean(result['matmul_gflops']):.0f} GFLOP/s)\n"
    )
    for head, rows in (("operation", result["kinds"]), ("rows x inner width x columns", result["products"])):
        print_table(
            [head, "s", "share", "GFLOP", "of matmul rate"],
            [
                [
                    name,
                    f"{row['seconds']:.2f}",
                    f"{row['share']:.1%}",
                    f"{row['gflop']:.0f}" if row["gflop"] else "",
                    "" if row["rate"] is None else f"{row['rate']:.0%}",
                ]
                for name, row in rows.items()
            ],
        )
        print()


if __name__ == "__main__":
    sys.exit(run_script(main))
