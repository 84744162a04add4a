"""Seconds of training until a quality: a candidate recipe against the reference, in turn on one machine, several seeds.

    python examples/benchmarks/time_to_quality.py --candidate examples/configs/vicha/tiny.yaml --seeds 3 --json quality.json

On the scenes of `other_scenes.py`, and on a corpus of your own:

    python examples/benchmarks/time_to_quality.py --corpus easy-vqa --corpus_dir outputs/easy_vqa_scenes
    python examples/benchmarks/time_to_quality.py --corpus photographs --corpus_dir outputs/photograph_scenes
    python examples/benchmarks/time_to_quality.py --train train.jsonl --test test.jsonl --tokenizer FOLDER

Quality is the mean of four R@1 on the corpus's test split: by similarity and re-ranked, image to caption and caption to
image. Re-ranked scores weigh the similarity beside the match logit; each evaluation chooses the weight, for both
recipes alike. Seconds are those of the run's log at the first evaluation whose quality, averaged over the seeds,
reaches the target. They contain the evaluations and checkpoints before it. Every seed trains the reference, then the
candidate, so that both see the machine's slow and fast hours. A second target is the quality that the reference has at
its end, whatever that is.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import yaml
from measuring import add_json_option, matmul_gflops, print_table
from other_scenes import KINDS, STAMPS, build_scenes

from vicha_hf.command_parser import CommandParser
from vicha_hf.demo_corpus import build_demo_corpus
from vicha_hf.mistakes import run_script
from vicha_hf.training.run_log import read_log


EXAMPLES = Path(__file__).parents[1]
REFERENCE = EXAMPLES / "configs" / "vicha" / "tiny_reference.yaml"
FOUR_RECALLS = ("r1_i2t_itc_only", "r1_t2i_itc_only", "r1_i2t", "r1_t2i")


@dataclass(frozen=True)
class Corpus:
    """Annotation files of the training images and of those that quality is measured on, and the folder of a tokenizer."""

    train: Path
    test: Path
    tokenizer: Path


@dataclass(frozen=True)
class Evaluation:
    """
    One evaluation of one run.

    Attributes:
        step: optimiser steps before it.
        seconds: of training until then.
        quality: mean of the four R@1, in %.
    """

    step: int
    seconds: float
    quality: float


def evaluations_of(run: Path) -> list[Evaluation]:
    """The evaluations in a run's log; each has the seconds of the training record before it."""
    found, seconds = [], 0.0
    for record in read_log(run):
        if "evaluation" in record:
            quality = mean(record["evaluation"][name] for name in FOUR_RECALLS)
            found.append(Evaluation(record["step"], seconds, quality))
        else:
            seconds = record["train_seconds"]
    return found


def step_reaching(target: float, runs: Sequence[Sequence[Evaluation]]) -> int | None:
    """The first step whose quality, averaged over the runs of one recipe, is the target or more."""
    for together in zip(*runs, strict=True):
        if mean(evaluation.quality for evaluation in together) >= target:
            return together[0].step
    return None


def seconds_at(step: int, run: Sequence[Evaluation]) -> float:
    return next(evaluation.seconds for evaluation in run if evaluation.step == step)


def compare(
    target: float, reference: Sequence[Sequence[Evaluation]], candidate: Sequence[Sequence[Evaluation]]
) -> dict:
    """
    Seconds until the target, as means over the seeds, and their ratio with its range over the seeds.

    Args:
        target: quality in %.
        reference, candidate: the evaluations of each seed.

    Returns:
        `reached`: whether both recipes reach the target; only then the seconds and `ratio` are numbers. `final_quality`:
        each recipe's mean quality at its end.
    """
    steps = {"reference": step_reaching(target, reference), "candidate": step_reaching(target, candidate)}
    reached = None not in steps.values()
    result = {
        "target": target,
        "reached": reached,
        "steps": steps,
        "final_quality": {
            name: mean(run[-1].quality for run in runs)
            for name, runs in (("reference", reference), ("candidate", candidate))
        },
        "reference_seconds": None,
        "candidate_seconds": None,
        "ratio": None,
        "ratio_range": None,
    }
    if reached:
        slow = [seconds_at(steps["reference"], run) for run in reference]
        quick = [seconds_at(steps["candidate"], run) for run in candidate]
        ratios = [one / other for one, other in zip(quick, slow, strict=True)]
        result |= {
            "reference_seconds": mean(slow),
            "candidate_seconds": mean(quick),
            "ratio": mean(quick) / mean(slow),
            "ratio_range": [min(ratios), max(ratios)],
        }
    return result


def find_corpus(arguments: argparse.Namespace) -> Corpus:
    """The corpus that the command line names; one of the two that are made here is made where it is missing."""
    if arguments.train is not None:
        return Corpus(arguments.train, arguments.test, arguments.tokenizer)
    kind, *options = arguments.corpus or [""]
    if kind in KINDS:
        stamps = dict(option.partition("=")[::2] for option in options).get("stamps", STAMPS)
        made = build_scenes(KINDS[kind](Path(stamps)), arguments.corpus_dir)
    else:
        parameters = {name: yaml.safe_load(value) for name, _, value in (i.partition("=") for i in arguments.corpus)}
        made = build_demo_corpus(arguments.corpus_dir, **parameters)
    return Corpus(made.annotations("train"), made.annotations("test"), made.tokenizer)


def train(recipe: Path, seed: int, corpus: Corpus, run: Path, arguments: argparse.Namespace) -> list[Evaluation]:
    """Trains a recipe by the script that users call, in a process of its own."""
    settings = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    steps = arguments.max_steps or settings["max_steps"]
    every = arguments.evaluation_steps or max(steps // 10, 1)
    options = {
        "config": recipe,
        "output_dir": run,
        "seed": seed,
        "max_steps": steps,
        "evaluation_steps": every,
        "checkpoint_steps": steps,
        "logging_steps": every,
        "warmup_steps": min(settings["warmup_steps"], steps),
        "data.train": corpus.train,
        "data.validation": corpus.test,
        "data.tokenizer": corpus.tokenizer,
        "trackers": "[]",
    }
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    command += ["--num_cpu_threads_per_process", str(arguments.threads), str(EXAMPLES / "pretrain.py")]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    subprocess.run(command, check=True)
    return evaluations_of(run)


def main(argv: Sequence[str] | None = None) -> dict:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, default=REFERENCE, help="recipe (default: %(default)s)")
    parser.add_argument(
        "--candidate", type=Path, default=EXAMPLES / "configs/vicha/tiny.yaml", help="recipe (default: %(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of each recipe (default: %(default)s)")
    parser.add_argument("--target", type=float, default=80.0, help="quality in %% (default: %(default)s)")
    parser.add_argument("--max_steps", type=int, help="of both recipes; by default each recipe's own")
    parser.add_argument("--evaluation_steps", type=int, help="by default a tenth of the steps")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: %(default)s)")
    parser.add_argument(
        "--corpus",
        nargs="*",
        default=[],
        metavar="NAME=VALUE",
        help="parameters of the demo corpus; or easy-vqa; or photographs, which stamps=FOLDER may follow",
    )
    parser.add_argument("--corpus_dir", type=Path, default=Path("outputs/demo_corpus"), help="default: %(default)s")
    parser.add_argument("--train", type=Path, metavar="FILE", help="annotations of a corpus of your own, with --test")
    parser.add_argument("--test", type=Path, metavar="FILE", help="annotations that quality is measured on")
    parser.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="of that corpus")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("outputs/time_to_quality"), help="default: %(default)s"
    )
    add_json_option(parser, "time_to_quality")
    arguments = parser.parse_args(argv)
    own = [arguments.train, arguments.test, arguments.tokenizer]
    if any(own) and not all(own):
        parser.error("--train, --test and --tokenizer belong together: give all three, or none")
    corpus = find_corpus(arguments)
    runs = {"reference": [], "candidate": []}
    for seed in range(arguments.seeds):
        for name, recipe in (("reference", arguments.reference), ("candidate", arguments.candidate)):
            folder = arguments.output_dir / f"{name}_{seed}"
            runs[name].append(train(recipe, seed, corpus, folder, arguments))
    result = compare(arguments.target, runs["reference"], runs["candidate"])
    at_end = result["final_quality"]["reference"]
    result["at_reference_quality"] = compare(at_end, runs["reference"], runs["candidate"])
    result |= {"seeds": arguments.seeds, "threads": arguments.threads, "matmul_gflops": matmul_gflops()}
    rows = [
        [
            name,
            str(result["steps"][name] or "-"),
            _seconds(result[f"{name}_seconds"]),
            f"{result['final_quality'][name]:.1f}",
        ]
        for name in runs
    ]
    print_table(["recipe", "steps to quality", "seconds to quality", "quality at the end, %"], rows)
    print()
    for outcome in (result, result["at_reference_quality"]):
        print(f"{outcome['target']:.1f} %: {_described(outcome)}")
    arguments.json.write(result)
    return result


def _described(outcome: dict) -> str:
    if not outcome["reached"]:
        return "not reached by both; the ratio is not known."
    low, high = outcome["ratio_range"]
    return (
        f"the candidate needs {outcome['candidate_seconds']:.0f} s, {outcome['ratio']:.2f} of the reference's "
        f"{outcome['reference_seconds']:.0f} s ({low:.2f} to {high:.2f})."
    )


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


if __name__ == "__main__":
    sys.exit(run_script(main))
