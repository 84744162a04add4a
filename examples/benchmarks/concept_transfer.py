"""R@1 of a model of few images whose concepts an encoder of many images finds, beside the annotations' and none.

    python examples/benchmarks/concept_transfer.py --encoder outputs/demo/model --images 500 --seeds 3 --json transfer.json

This is the paper's case: CLIP has seen far more images than the model that learns from its concepts (ViCHA, section 3.1).
The encoder ranks the nouns of the training captions for each image. A model with its concepts is trained for
`--steps` steps from random weights; its seconds, the search for concepts included, are what a model without concepts
gets. A short run of that one tells how many steps they are.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from measuring import add_json_option, print_table, seconds_per_step
from transformers import AutoProcessor

from vicha_hf.command_parser import CommandParser, at_least
from vicha_hf.concepts import ConceptCorpus
from vicha_hf.concepts.annotation_writer import AnnotationRow, write_annotations
from vicha_hf.data.annotations import read_image_text_records
from vicha_hf.demo_corpus.found_concepts import own_selector, write_found_concepts
from vicha_hf.families import load_finetuned
from vicha_hf.mistakes import run_script


ROOT = Path(__file__).parents[2]
SPLITS = ("train", "validation", "test")
FOUND, GIVEN, NONE = "found by the encoder", "the annotations'", "none"
STAGES = {"similarity": "_itc_only", "combined": ""}
WAYS = ("i2t", "t2i")


def main(argv: Sequence[str] | None = None) -> dict[str, list[dict]]:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", type=Path, required=True, help="folder of a model of this package")
    parser.add_argument("--images", type=at_least(1), default=500, help="for training (default: %(default)s)")
    parser.add_argument("--steps", type=at_least(1), default=800, help="with concepts (default: %(default)s)")
    parser.add_argument("--calibration_steps", type=at_least(1), default=40, help="default: %(default)s")
    parser.add_argument("--seeds", type=at_least(1), default=3, help="runs of each way (default: %(default)s)")
    parser.add_argument("--config", default="examples/configs/vicha/own_small.yaml", help="default: %(default)s")
    parser.add_argument("--corpus_dir", type=Path, default=Path("outputs/demo_corpus"), help="default: %(default)s")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("outputs/concept_transfer"), help="default: %(default)s"
    )
    add_json_option(parser, "concept_transfer")
    arguments = parser.parse_args(argv)
    given = few_records(arguments.corpus_dir, arguments.images, arguments.output_dir / "annotations")
    start = time.perf_counter()
    found = found_records(given, arguments.encoder, arguments.output_dir / "found")
    search_seconds = time.perf_counter() - start
    results: dict[str, list[dict]] = {FOUND: [], GIVEN: [], NONE: []}
    for seed in range(arguments.seeds):
        with_concepts = Training(arguments, found, seed, "found").run(arguments.steps)
        budget = with_concepts["seconds"] + search_seconds
        results[FOUND].append(with_concepts | {"seconds": budget})
        results[GIVEN].append(Training(arguments, given, seed, "annotations").run(arguments.steps))
        without = Training(arguments, given, seed, "none", ("--model.config.use_concepts", "false"))
        steps = int(budget / without.seconds_per_step(arguments.calibration_steps))
        results[NONE].append(without.run(max(steps, 1)))
    print_table(
        ["concepts", "steps", "seconds", *(f"{stage}{kind}" for stage in STAGES for kind in (", R@1", ", RSUM"))],
        [[way, *described(runs)] for way, runs in results.items()],
    )
    arguments.json.write(results)
    return results


def described(runs: Sequence[dict[str, float]]) -> list[str]:
    """Steps, seconds, R@1 both ways and the sum of six recalls by each score: means over seeds."""

    def over_seeds(name: str) -> float:
        return mean(run[name] for run in runs)

    cells = [f"{over_seeds('steps'):.0f}", f"{over_seeds('seconds'):.0f}"]
    for stage in STAGES:
        cells.append(" / ".join(f"{over_seeds(f'{stage}_r1_{way}'):.1f}" for way in WAYS))
        cells.append(f"{over_seeds(f'{stage}_rsum'):.1f}")
    return cells


def recalls(measured: dict[str, float]) -> dict[str, float]:
    """R@1 both ways and RSUM, the sum of R@1, R@5 and R@10 both ways, by each score of an evaluation."""
    found = {}
    for stage, suffix in STAGES.items():
        found |= {f"{stage}_r1_{way}": measured[f"r1_{way}{suffix}"] for way in WAYS}
        found[f"{stage}_rsum"] = sum(measured[f"r{cut}_{way}{suffix}"] for cut in (1, 5, 10) for way in WAYS)
    return found


def few_records(corpus_dir: Path, images: int, folder: Path) -> dict[str, Path]:
    """Writes the corpus with its first training records alone; returns the file of each split."""
    files = {}
    for split in SPLITS:
        records = ConceptCorpus(str(corpus_dir / f"{split}.json")).records
        number = min(images, len(records)) if split == "train" else len(records)
        files[split] = folder / f"{split}.jsonl"
        kept = [records[row] for row in range(number)]
        write_annotations(
            files[split], lambda kept=kept: (AnnotationRow(one.fields, one.image, one.where) for one in kept)
        )
    return files


def found_records(given: dict[str, Path], encoder: Path, folder: Path) -> dict[str, Path]:
    """Writes every split with the concepts that the encoder finds; returns their files."""
    model = load_finetuned("retrieval", str(encoder))
    selector = own_selector(read_image_text_records(given["train"]), model, AutoProcessor.from_pretrained(encoder))
    return {split: write_found_concepts(file, folder / f"{split}.jsonl", selector) for split, file in given.items()}


class Training:
    """
    The runs of one way and seed.

    Args:
        arguments: of the command.
        annotations: the file of each split.
        seed: of weights and order.
        name: of the way; a part of the folder's name.
        options: of the training script, for this way alone.
    """

    def __init__(
        self,
        arguments: argparse.Namespace,
        annotations: dict[str, Path],
        seed: int,
        name: str,
        options: Sequence[str] = (),
    ):
        self.arguments, self.annotations = arguments, annotations
        self.folder = arguments.output_dir / f"{name}_seed_{seed}"
        self.options = ("--seed", str(seed), *options)

    def run(self, steps: int) -> dict[str, float]:
        """Trains for some steps; returns them, their seconds, and the recalls of the test images in %."""
        self._train(self.folder, steps)
        file = self.folder / "test.json"
        command = [sys.executable, "-m", "vicha_hf.cli", "evaluate", self.folder / "model", self.annotations["test"]]
        _call([*command, "--task", "retrieval", "--json", file])
        measured = json.loads(file.read_text(encoding="utf-8"))
        seconds = json.loads((self.folder / "metrics.json").read_text(encoding="utf-8"))["train_seconds"]
        return {"steps": steps, "seconds": seconds} | recalls(measured)

    def seconds_per_step(self, steps: int) -> float:
        """Seconds of a step in a short run."""
        short = self.folder.with_name(f"{self.folder.name}_short")
        self._train(short, steps)
        return seconds_per_step(short)

    def _train(self, folder: Path, steps: int) -> None:
        command = [sys.executable, ROOT / "examples/pretrain.py", "--config", self.arguments.config]
        command += ["--data.train", self.annotations["train"], "--data.validation", self.annotations["validation"]]
        # The captions say left and right. Evaluations before the end would cost time.
        command += ["--data.hflip", "false", "--early_stopping_evaluations", "null", "--trackers", "[]"]
        command += ["--evaluation_steps", steps, "--checkpoint_steps", steps, "--max_steps", steps]
        _call([*command, "--output_dir", folder, *self.options])


def _call(command: Sequence[object]) -> None:
    subprocess.run([str(part) for part in command], check=True)


if __name__ == "__main__":
    sys.exit(run_script(main))
