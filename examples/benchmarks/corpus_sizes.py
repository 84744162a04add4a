"""Recall of one recipe on the demo corpus with ever more training images, in equally many steps.

    python examples/benchmarks/corpus_sizes.py --steps 800 --json outputs/corpus_sizes.json --plot outputs/corpus_sizes.svg

The plot needs matplotlib: pip install "vicha_hf[ablation]". Each size is a run of `examples/demo.py`, a folder of its own under `--output_dir`. Test images are the same for all.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from measuring import add_json_option

from vicha_hf.command_parser import CommandParser, at_least
from vicha_hf.mistakes import run_script
from vicha_hf.whole_files import MADE_BY, require_result_file


ROOT = Path(__file__).parents[2]
SIZES = (250, 500, 1000, 4000, 8000)
DIRECTIONS = ("i2t", "t2i")


def main(argv: Sequence[str] | None = None) -> list[dict[str, float]]:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=at_least(1), nargs="+", default=SIZES, help="default: %(default)s")
    parser.add_argument("--steps", type=at_least(1), default=800, help="of each run (default: %(default)s)")
    parser.add_argument("--config", default="examples/configs/vicha/own_small.yaml", help="default: %(default)s")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/corpus_sizes"), help="default: %(default)s")
    add_json_option(parser, "corpus_sizes")
    parser.add_argument("--plot", type=Path, help="SVG file for the curves")
    arguments = parser.parse_args(argv)
    if arguments.plot is not None and find_spec("matplotlib") is None:
        parser.error('--plot needs matplotlib: pip install "vicha_hf[ablation]"')
    if arguments.plot is not None:
        require_result_file(arguments.plot)
    rows = []
    for size in arguments.sizes:
        rows.append({"images": size, "steps": arguments.steps} | recall(arguments, size))
        print(format_row(rows[-1]), flush=True)
    print("\nimages: R@1 by similarity, image to caption / caption to image; chance; re-ranked; without concepts")
    print("\n".join(map(format_row, rows)))
    arguments.json.write({"rows": rows})
    if arguments.plot is not None:
        draw_curves(arguments.plot, rows)
    return rows


def draw_curves(file: Path, rows: Sequence[dict[str, float]]) -> None:
    """Draws recall, the mean of both directions, over the number of training images."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    sizes = [row["images"] for row in rows]
    for name, label in (
        ("reranked", "re-ranked, with concepts"),
        ("similarity", "similarity, with concepts"),
        ("without_concepts", "similarity, without concepts"),
    ):
        recalls = [sum(row[f"{name}_{way}"] for way in DIRECTIONS) / len(DIRECTIONS) for row in rows]
        axes.plot(sizes, recalls, marker="o", label=label)
    axes.plot(sizes, [row["chance"] for row in rows], color="grey", linestyle=":", label="chance")
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes], minor=False)
    axes.set_xticks([], minor=True)
    axes.set(xlabel="training images", ylabel="R@1 in %", ylim=(0, 100))
    axes.legend(loc="center right")
    # The same figures draw the same file.
    with matplotlib.rc_context({"svg.hashsalt": "corpus sizes", "svg.fonttype": "none"}):
        figure.savefig(file, metadata={"Date": None, "Creator": MADE_BY})


def recall(arguments: argparse.Namespace, size: int) -> dict[str, float]:
    """R@1 in % on the test images of a model trained with `size` images."""
    folder = arguments.output_dir / str(size)
    command = [sys.executable, str(ROOT / "examples/demo.py"), "--config", arguments.config]
    # The generator's concepts at every size: those that a short stage finds would depend on it too.
    command += ["--bootstrap_steps", "0"]
    command += ["--output_dir", str(folder), "--corpus_dir", str(folder / "corpus"), "--corpus", f"num_train={size}"]
    # The captions say left and right; every size has its whole number of steps.
    command += ["--", "--data.hflip", "false", "--max_steps", str(arguments.steps)]
    command += ["--early_stopping_evaluations", "null"]
    subprocess.run(command, check=True)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    without = metrics["conditions"]["test_without_concepts"]
    return {
        name: found[f"r1_{way}{stage}"]
        for way in DIRECTIONS
        for name, found, stage in (
            (f"similarity_{way}", metrics, "_itc_only"),
            (f"reranked_{way}", metrics, ""),
            (f"without_concepts_{way}", without, "_itc_only"),
        )
    } | {"chance": metrics["chance_r1"]}


def format_row(row: dict[str, float]) -> str:
    """A line of the table."""
    pairs = [
        " / ".join(f"{row[f'{name}_{way}']:.1f}" for way in DIRECTIONS)
        for name in ("similarity", "reranked", "without_concepts")
    ]
    return f"{row['images']:6,}: {pairs[0]}; {row['chance']:.1f}; {pairs[1]}; {pairs[2]}"


if __name__ == "__main__":
    sys.exit(run_script(main))
