"""R@1 with concepts that ALBEF finds in the pixels, with the corpus generator's, and with none, in equal seconds.

    python examples/benchmarks/earned_concepts.py --seeds 3 --json earned.json

Every run is one of `examples/demo.py`. The first row trains ALBEF, selects concepts and goes on as ViCHA from ALBEF's
weights. Its seconds, selection included, are what the others get: a short run of each tells how many steps that is. The
second way reads the generator's noisy concepts, the third is ViCHA without concepts.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from measuring import add_json_option, print_table, seconds_per_step

from vicha_hf.command_parser import CommandParser
from vicha_hf.mistakes import run_script


DEMO = Path(__file__).parents[1] / "demo.py"
NONE = ("--model.config.use_concepts", "false")
WAYS = {"found in pixels": (), "the generator's": (), "none": NONE}
# Evaluations before the end would cost one way more than another.
AT_THE_END = 1_000_000
GALLERIES = ("test", "test_compositional")
RECALLS = ("r1_i2t_itc_only", "r1_t2i_itc_only", "r1_i2t", "r1_t2i")


def run_demo(folder: Path, bootstrap_steps: int, options: Sequence[object], corpus_dir: Path) -> Path:
    """Runs the demo with options of the training script; returns its folder."""
    command = [sys.executable, DEMO, "--output_dir", folder, "--corpus_dir", corpus_dir]
    command += ["--bootstrap_steps", bootstrap_steps, "--", *options]
    subprocess.run([str(part) for part in command], check=True)
    return folder


def measured(folder: Path, seconds: float) -> dict:
    """Recalls of a demo's galleries, with what the model reads at its best."""
    conditions = json.loads((folder / "metrics.json").read_text())["conditions"]
    recalls = {}
    for gallery in GALLERIES:
        best = conditions.get(gallery, conditions.get(f"{gallery}_without_concepts"))
        recalls[gallery] = [best[name] for name in RECALLS]
    return {"seconds": seconds, **recalls}


def main(argv: Sequence[str] | None = None) -> dict:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each way (default: %(default)s)")
    parser.add_argument("--bootstrap_steps", type=int, default=200, help="of ALBEF (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=400, help="of ViCHA behind it (default: %(default)s)")
    parser.add_argument("--calibration_steps", type=int, default=40, help="of the short runs (default: %(default)s)")
    parser.add_argument("--corpus_dir", type=Path, default=Path("outputs/demo_corpus"), help="default: %(default)s")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("outputs/earned_concepts"), help="default: %(default)s"
    )
    add_json_option(parser, "earned_concepts")
    parser.add_argument("pretraining", nargs="*", help="after --: options of the training script for every run")
    arguments = parser.parse_args(argv)
    results = {way: [] for way in WAYS}
    for seed in range(arguments.seeds):
        shared = [*arguments.pretraining, "--seed", seed, "--evaluation_steps", AT_THE_END]
        folder, corpus = arguments.output_dir / f"seed_{seed}", arguments.corpus_dir
        pixels = run_demo(
            folder / "pixels", arguments.bootstrap_steps, [*shared, "--max_steps", arguments.steps], corpus
        )
        metrics = json.loads((pixels / "metrics.json").read_text())
        budget = metrics["train_seconds"] + selection_seconds(pixels)
        results["found in pixels"].append(measured(pixels, budget))
        for way, options in list(WAYS.items())[1:]:
            name = "none" if options else "generator"
            short = [*shared, *options, "--max_steps", arguments.calibration_steps]
            step = seconds_per_step(run_demo(folder / f"{name}_short", 0, short, corpus) / "pretraining")
            steps = max(int(budget / step), 1)
            run = run_demo(folder / name, 0, [*shared, *options, "--max_steps", steps], corpus)
            seconds = json.loads((run / "metrics.json").read_text())["train_seconds"]
            results[way].append(measured(run, seconds) | {"steps": steps})
    rows = []
    for way, runs in results.items():
        row = [way, f"{mean(run['seconds'] for run in runs):.0f}"]
        for gallery in GALLERIES:
            means = [mean(run[gallery][column] for run in runs) for column in range(len(RECALLS))]
            row += ["{:.1f} / {:.1f}".format(*means[:2]), "{:.1f} / {:.1f}".format(*means[2:])]
        rows.append(row)
    print_table(
        ["concepts", "seconds", "test, similarity", "test, re-ranked", "compositions, similarity", "re-ranked"], rows
    )
    arguments.json.write(results)
    return results


def selection_seconds(folder: Path) -> float:
    """Seconds between the two trainings: from ALBEF's metrics to the last file of concepts."""
    written = [path.stat().st_mtime for path in (folder / "concepts").glob("*.jsonl")]
    return max(0.0, max(written) - (folder / "bootstrap" / "metrics.json").stat().st_mtime)


if __name__ == "__main__":
    sys.exit(run_script(main))
