"""A pretraining step of this version and of another one, in turn in one process.

    git worktree add ../before a10d9ab
    python examples/benchmarks/training_versions.py --against ../before --size base --family vicha --lengths real

Both do the step of `training.py` on the same batch with the same weights. Ratios are those of two steps that follow
each other. CPU seconds are of all threads; on one thread their ratio is little disturbed by what else the machine does.
Memory is what the tensors of a step take beyond parameters, gradients, optimiser, teacher and queue.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from statistics import median
from types import ModuleType

import torch
from measuring import add_json_option, matmul_gflops, peak_allocated_gib, print_table

from vicha_hf.command_parser import CommandParser
from vicha_hf.mistakes import run_script


HERE = Path(__file__).resolve().parents[2]
NAMES = ("before", "now")


def main(argv: Sequence[str] | None = None) -> dict:
    parser = CommandParser(description=__doc__.splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, required=True, metavar="CHECKOUT", help="folder of the other version")
    parser.add_argument("--size", choices=("tiny", "small", "base"), default="small", help="default: %(default)s")
    parser.add_argument("--family", choices=("vicha", "albef", "simla"), default="vicha", help="default: %(default)s")
    parser.add_argument("--batch_size", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--lengths", choices=("full", "real"), default="real", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="timed steps of each; default: %(default)s")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    add_json_option(parser, "training_versions")
    arguments = parser.parse_args(argv)
    if not (arguments.against / "examples" / "benchmarks" / "training_step.py").is_file():
        parser.error(f"--against {arguments.against}: there is no checkout of this project.")
    torch.set_num_threads(arguments.threads)
    settings = {name: value for name, value in vars(arguments).items() if name != "json"}
    result = settings | {"against": str(arguments.against)} | measure(arguments)
    report(result)
    arguments.json.write(result)
    return result


def load(checkout: Path) -> ModuleType:
    """The benchmark's step of a checkout with the package of that checkout."""
    folders = [str(checkout.resolve() / "src"), str(checkout.resolve() / "examples" / "benchmarks")]
    sys.path[:0] = folders
    own = {path.stem for path in Path(folders[1]).glob("*.py")}
    for name in [name for name in sys.modules if name.split(".")[0] == "vicha_hf" or name in own]:
        del sys.modules[name]
    module = import_module("training_step")
    del sys.path[: len(folders)]
    _rename_classes(checkout.resolve())
    package = Path(sys.modules["vicha_hf"].__file__)
    if not package.is_relative_to(checkout.resolve()):
        raise RuntimeError(f"the package came from {package}, not from {checkout}")
    return module


def _rename_classes(checkout: Path) -> None:
    """Tells the versions' classes apart: transformers knows what a model can record by the class's full name."""
    for name, module in [(name, module) for name, module in sys.modules.items() if name.split(".")[0] == "vicha_hf"]:
        sys.modules[f"{checkout}:{name}"] = module
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == name:
                value.__module__ = f"{checkout}:{name}"


def measure(arguments: argparse.Namespace) -> dict:
    steps, variants, flops, memory = {}, {}, {}, {}
    for name, checkout in zip(NAMES, (arguments.against, HERE), strict=True):
        module = load(checkout)
        steps[name] = module.TrainingStep(arguments.family, arguments.size, arguments.batch_size)
        variants[name] = module.CPU_VARIANTS["ours"]
    # A version may not know of lengths yet: both get the batch that this one makes.
    batch = module.build_batch(steps["now"].model, arguments.batch_size, arguments.lengths)
    steps["now"].model.load_state_dict(steps["before"].model.state_dict())
    for name, step in steps.items():
        step.batch = batch
        flops[name] = step.count_flops(variants[name])
        memory[name] = peak_allocated_gib(lambda step=step, name=name: step.run(variants[name])) - _gradient_gib(step)
    seconds, cpu_seconds = {name: [] for name in NAMES}, {name: [] for name in NAMES}
    gflops = [matmul_gflops()]
    for number in range(arguments.rounds):
        # There and back: a machine that gets slower must not slow the same version every time.
        for name in NAMES if number % 2 == 0 else reversed(NAMES):
            start, cpu_start = time.perf_counter(), time.process_time()
            steps[name].run(variants[name])
            seconds[name].append(time.perf_counter() - start)
            cpu_seconds[name].append(time.process_time() - cpu_start)
        gflops.append(matmul_gflops())
    return {
        "flops": flops,
        "beyond_state_gib": memory,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "matmul_gflops": gflops,
        "speedup": _ratios(seconds),
        "speedup_cpu": _ratios(cpu_seconds),
        "memory_ratio": memory["now"] / memory["before"],
        "tokens_per_caption": batch["attention_mask"].sum(dim=1).tolist(),
    }


def _gradient_gib(step) -> float:
    """Of a step whose gradients were there when its memory was highest."""
    return (
        sum(value.numel() * value.element_size() for value in step.model.parameters() if value.requires_grad) / 2**30
    )


def _ratios(seconds: dict[str, list[float]]) -> list[float]:
    return [before / now for before, now in zip(*(seconds[name] for name in NAMES), strict=True)]


def report(result: dict) -> None:
    rate = median(result["matmul_gflops"])
    print(f"captions of {result['tokens_per_caption']} tokens; matrix product {rate:.0f} GFLOP/s")
    rows = [
        [
            name,
            f"{median(result['seconds'][name]):.3f}",
            f"{median(result['cpu_seconds'][name]):.3f}",
            f"{result['flops'][name] / 1e9:.0f}",
            f"{result['flops'][name] / median(result['seconds'][name]) / rate / 1e9:.0%}",
            f"{result['beyond_state_gib'][name]:.2f}",
        ]
        for name in NAMES
    ]
    print_table(["", "s / step", "CPU s / step", "GFLOP", "of matmul rate", "beyond state GiB"], rows)
    for name, ratios in (("seconds", result["speedup"]), ("CPU seconds", result["speedup_cpu"])):
        print(f"{name}: {median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"memory beyond the state: {result['memory_ratio']:.2f}")


if __name__ == "__main__":
    sys.exit(run_script(main))
