"""Time and memory of a pretraining step, in all and by optimisation, against the published way, on this machine.

    python examples/benchmarks/training.py --size base --json training.json

Weights, images and token ids are random, sizes those of the recipes in `examples/configs`. Captions have 25 tokens, or
real lengths with `--lengths real`; concepts have 15. Dropout is as configured, the queue is full. Times are medians over rounds, in each of which every way of doing the step
has its turn. FLOPs are counted, not estimated. Memory is measured in a process of its own for each way. It is what the
tensors of a step take at most at one time beyond parameters, gradients, optimiser, teacher and queue. `beyond_state`
is that of the step as the training loop does it, which clears the gradients first: activations may take their place
before they are there. `activation` is that of a step whose gradients are there from the beginning, as in all but the
first of accumulated batches.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from measuring import add_json_option, print_table
from published_training import OPTIMISATIONS
from training_step import FAMILIES, GPU_VARIANTS, PARTS, device

from vicha_hf.command_parser import CommandParser
from vicha_hf.mistakes import run_script


MEMORY_VARIANTS = ("ours", "checkpointed", "published")
ALLOCATED = ("beyond_state_gib", "activation_gib")


def main(argv: Sequence[str] | None = None) -> dict:
    parser = CommandParser(description=__doc__.splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "small", "base"), default="small", help="default: %(default)s")
    parser.add_argument("--family", choices=FAMILIES, nargs="+", default=FAMILIES, help="default: all")
    parser.add_argument("--batch_size", type=int, default=8, help="default: %(default)s")
    parser.add_argument(
        "--lengths",
        choices=("full", "real"),
        default="full",
        help="captions of 25 tokens, or as in COCO of 8 to 25, 12 on average; default: %(default)s",
    )
    parser.add_argument("--rounds", type=int, default=3, help="timed steps of each way; default: %(default)s")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    add_json_option(parser, "training")
    arguments = parser.parse_args(argv)
    if arguments.batch_size < 2:
        parser.error("--batch_size: matching needs another image for its negatives; use 2 or more.")

    result = {
        "size": arguments.size,
        "batch_size": arguments.batch_size,
        "lengths": arguments.lengths,
        "rounds": arguments.rounds,
        "threads": arguments.threads,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device() == "cuda" else "cpu",
        "families": {},
    }
    for family in arguments.family:
        setting = {
            "family": family,
            "size": arguments.size,
            "batch_size": arguments.batch_size,
            "lengths": arguments.lengths,
            "threads": arguments.threads,
        }
        result["families"][family] = figures = measure(setting, arguments.rounds)
        report(family, figures)
        # After every family: a run at base size takes long.
        arguments.json.write(result)
    return result


def run_apart(job: str, **arguments) -> dict:
    """A job of `training_step.py` in a process of its own, whose peak memory is the job's."""
    command = [
        sys.executable,
        str(Path(__file__).with_name("training_step.py")),
        json.dumps({"job": job, **arguments}),
    ]
    threads = str(arguments["threads"])
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    if finished.returncode != 0:
        raise RuntimeError(f"{job} of {arguments} ended with {finished.returncode}; its own message stands above.")
    return json.loads(finished.stdout.splitlines()[-1])


def measure(setting: dict, rounds: int) -> dict:
    """All figures of one family."""
    agreement = run_apart("agreement", **setting)
    memory = {variant: run_apart("memory", variant=variant, **setting) for variant in MEMORY_VARIANTS}
    time = run_apart("time", rounds=rounds, **setting)
    ways = {name: _seconds(steps) for name, steps in time["seconds"].items()}
    ours, published = ways["ours"]["all"], ways["published"]["all"]
    gflops, flops = median(time["matmul_gflops"]), time["flops"]["ours"]
    allocated = {
        f"{name}{suffix}": memory[variant][name]
        for name in ALLOCATED
        for suffix, variant in (("", "ours"), ("_checkpointed", "checkpointed"))
    }
    figures = {
        "seconds_per_step": ours,
        "samples_per_second": setting["batch_size"] / ours,
        "seconds_by_part": {part: ways["ours"][part] for part in PARTS},
        "flops_per_step": flops,
        "matmul_gflops": gflops,
        "matmul_share": flops / ours / gflops / 1e9,
        "seconds_per_step_in_matmul_units": ours * gflops,
        "peak_rss_gib": memory["ours"]["peak_rss_gib"],
        "state_gib": memory["ours"]["state_gib"],
        **allocated,
        "peak_rss_gib_checkpointed": memory["checkpointed"]["peak_rss_gib"],
        "seconds_per_step_checkpointed": ways["checkpointed"]["all"],
        "trained_parameters": time["parameters"],
        "optimisations": {
            name: {
                "seconds_per_step": ways[f"without_{name}"]["all"],
                "flops_per_step": time["flops"][f"without_{name}"],
                "speedup_without": ways[f"without_{name}"]["all"] / ours,
            }
            for name in OPTIMISATIONS
        },
        "published": {
            "seconds_per_step": published,
            "seconds_by_part": {part: ways["published"][part] for part in PARTS},
            "flops_per_step": time["flops"]["published"],
            "matmul_share": time["flops"]["published"] / published / gflops / 1e9,
            "peak_rss_gib": memory["published"]["peak_rss_gib"],
            **{name: memory["published"][name] for name in ALLOCATED},
        },
        "speedup": published / ours,
        "memory": memory,
        "agreement": agreement,
        "rounds": time["seconds"],
        "matmul_gflops_of_rounds": time["matmul_gflops"],
    }
    for name, value in allocated.items():
        published_value = memory["published"][name.removesuffix("_checkpointed")]
        figures[name.replace("_gib", "_ratio")] = value / published_value
    if "matmul_gflops_bf16" in time:
        figures["gpu"] = {
            "matmul_gflops_bf16": time["matmul_gflops_bf16"],
            "unavailable": time["unavailable"],
            **{name: {"seconds_per_step": ways[name]["all"]} for name in GPU_VARIANTS if name in ways},
        }
    return figures


def _seconds(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """Medians over the rounds, of each part and of the whole."""
    return {part: median(step[part] for step in steps) for part in PARTS} | {
        "all": median(sum(step.values()) for step in steps)
    }


def report(family: str, figures: dict) -> None:
    published, agreement = figures["published"], figures["agreement"]
    print(
        f"\n{family}: matmul {figures['matmul_gflops']:.0f} GFLOP/s, {figures['trained_parameters'] / 1e6:.0f} M parameters"
    )
    rows = []
    for name, way in (("this package", figures), ("published way", published)):
        parts = [f"{way['seconds_by_part'][part]:.3f}" for part in PARTS]
        rows.append(
            [
                name,
                f"{way['seconds_per_step']:.3f}",
                *parts,
                f"{way['flops_per_step'] / 1e9:.0f}",
                f"{way['matmul_share']:.0%}",
                f"{way['peak_rss_gib']:.2f}",
                *(f"{way[name]:.2f}" for name in ALLOCATED),
            ]
        )
    print_table(
        ["", "s / step", *PARTS, "GFLOP", "of matmul rate", "peak GiB", "beyond state GiB", "activation GiB"], rows
    )
    print(
        f"ratio {figures['speedup']:.2f}; {figures['samples_per_second']:.2f} samples / s; with checkpointing "
        f"{figures['seconds_per_step_checkpointed']:.3f} s / step"
    )
    for name, what in (("beyond_state", "beyond the state"), ("activation", "beside gradients of an earlier batch")):
        print(
            f"memory {what}: {figures[f'{name}_ratio']:.2f} of the published way's, with checkpointing "
            f"{figures[f'{name}_ratio_checkpointed']:.2f} ({figures[f'{name}_gib_checkpointed']:.2f} GiB)"
        )
    print(
        f"losses differ by {agreement['loss_difference_published']:.1e}, gradients by "
        f"{agreement['gradient_difference_published']:.1e}, with checkpointing by "
        f"{agreement['gradient_difference_checkpointed']:.1e} (the largest gradient is {agreement['largest_gradient']:.1e})"
    )
    print_table(
        ["without", "s / step", "GFLOP", "ratio"],
        [
            [
                OPTIMISATIONS[name][0],
                f"{way['seconds_per_step']:.3f}",
                f"{way['flops_per_step'] / 1e9:.0f}",
                f"{way['speedup_without']:.3f}",
            ]
            for name, way in figures["optimisations"].items()
        ],
    )
    for name, way in figures.get("gpu", {}).items():
        if name in GPU_VARIANTS:
            seconds = way["seconds_per_step"]
            print(f"{name}: {seconds:.3f} s / step, ratio {figures['seconds_per_step'] / seconds:.2f}")
    for name, reason in figures.get("gpu", {}).get("unavailable", {}).items():
        print(f"{name}: not measured, {reason}")


if __name__ == "__main__":
    sys.exit(run_script(main))
