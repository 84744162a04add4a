"""Costs and savings of each option beyond the papers in a pretraining step, against the step without it.

    python examples/benchmarks/training_options.py --size small --json training_options.json

The step is that of `training.py`. Times are medians over rounds in which the step with the option and the step without
it take turns in one process. Ratios are those of two steps that follow each other. Memory is measured in a process of
its own for each option. Accuracy is not measured.
"""

import argparse
import sys
from collections.abc import Sequence
from statistics import median

import torch
from beyond_papers import NONE, OPTIONS
from measuring import add_json_option, print_table
from training import run_apart
from training_step import FAMILIES, PARTS, device

from vicha_hf.command_parser import CommandParser
from vicha_hf.mistakes import run_script


MEMORY = ("activation_gib", "state_gib", "peak_rss_gib")


def main(argv: Sequence[str] | None = None) -> dict:
    parser = CommandParser(description=__doc__.splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "small", "base"), default="small", help="default: %(default)s")
    parser.add_argument("--family", choices=FAMILIES, nargs="+", default=["vicha"], help="default: vicha")
    names = [name for name in OPTIONS if name != NONE]
    parser.add_argument("--option", choices=names, nargs="+", default=names, help="default: all")
    parser.add_argument("--batch_size", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="timed steps of each way; default: %(default)s")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    add_json_option(parser, "training_options")
    arguments = parser.parse_args(argv)
    options = {name: OPTIONS[name] for name in (NONE, *arguments.option)}
    parts = max(option.parts for option in options.values())
    if arguments.batch_size % (2 * parts):
        parser.error(
            f"--batch_size: it is cut into {parts} parts of two images or more; use a multiple of {2 * parts}."
        )

    setting = {"size": arguments.size, "batch_size": arguments.batch_size, "threads": arguments.threads}
    result = setting | {
        "rounds": arguments.rounds,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device() == "cuda" else "cpu",
        "unavailable": {name: option.needs for name, option in options.items() if not option.is_available},
        "families": {},
    }
    available = [name for name, option in options.items() if option.is_available]
    for family in arguments.family:
        result["families"][family] = figures = measure({"family": family, **setting}, arguments.rounds, available)
        report(family, figures)
        arguments.json.write(result)
    for name, library in result["unavailable"].items():
        print(f"{OPTIONS[name].title}: not measured, {library} is not installed")
    return result


def measure(setting: dict, rounds: int, options: Sequence[str]) -> dict:
    """Figures of one family by option, the first being none, each with its ratio to the step without any."""
    memory = {name: run_apart("memory", option=name, **setting) for name in options}
    figures = {NONE: {name: memory[NONE][name] for name in MEMORY}}
    for name in options:
        if name != NONE:
            time = run_apart("option", option=name, rounds=rounds, **setting)
            figures[name] = _figures(name, time, memory)
    return figures


def _figures(name: str, time: dict, memory: dict) -> dict:
    seconds = {way: [sum(each[way].values()) for each in time["rounds"]] for way in (NONE, name)}
    # Of steps that follow each other: what slows the machine down for a while slows both.
    ratios = [with_option / without for with_option, without in zip(seconds[name], seconds[NONE], strict=True)]
    return {
        "seconds_per_step": median(seconds[name]),
        "seconds_per_step_without": median(seconds[NONE]),
        "seconds_ratio": median(ratios),
        "seconds_ratio_range": [min(ratios), max(ratios)],
        "seconds_by_part": {part: median(each[name][part] for each in time["rounds"]) for part in PARTS},
        "flops_per_step": time["flops"][name],
        "flops_ratio": time["flops"][name] / time["flops"][NONE],
        "trained_parameters": time["trained_parameters"][name],
        "trained_parameters_without": time["trained_parameters"][NONE],
        **{key: memory[name][key] for key in MEMORY},
        **{f"{key.removesuffix('_gib')}_ratio": memory[name][key] / memory[NONE][key] for key in MEMORY},
        "rounds": time["rounds"],
    }


def report(family: str, figures: dict) -> None:
    plain = figures[NONE]
    print(
        f"\n{family}: without options activation {plain['activation_gib']:.2f} GiB, state {plain['state_gib']:.2f} GiB, "
        f"peak {plain['peak_rss_gib']:.2f} GiB"
    )
    rows = [
        [
            OPTIONS[name].title,
            f"{way['seconds_per_step']:.2f}",
            f"{way['seconds_per_step_without']:.2f}",
            f"{way['seconds_ratio']:.2f}",
            "{:.2f} - {:.2f}".format(*way["seconds_ratio_range"]),
            f"{way['flops_ratio']:.2f}",
            f"{way['trained_parameters'] / 1e6:.1f}",
            f"{way['activation_gib']:.2f}",
            f"{way['activation_ratio']:.2f}",
            f"{way['state_gib']:.2f}",
            f"{way['state_ratio']:.2f}",
            f"{way['peak_rss_gib']:.2f}",
        ]
        for name, way in figures.items()
        if name != NONE
    ]
    head = [
        "",
        "s / step",
        "without",
        "ratio",
        "of rounds",
        "FLOPs ratio",
        "M trained",
        "activation GiB",
        "ratio",
        "state GiB",
        "ratio",
    ]
    print_table([*head, "peak GiB"], rows)


if __name__ == "__main__":
    sys.exit(run_script(main))
