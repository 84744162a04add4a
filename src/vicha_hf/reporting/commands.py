"""The command `vicha-hf report`."""

import argparse
from pathlib import Path

from ..command_parser import Commands


def register(commands: Commands) -> None:
    """Adds `vicha-hf report`."""
    parser = commands.add_parser(
        "report",
        help="one HTML page about a run: curves, metrics beside chance, what it retrieves or answers",
        description="Write one HTML page about a run of any task. It evaluates the run's last model on --data, by default "
        "on the run's validation data. Name RUN/best_model for the model of the best evaluation.",
    )
    parser.set_defaults(run=_report)
    parser.add_argument(
        "folder",
        metavar="RUN",
        help="output folder of a training script, one of the models in it, or any model's folder",
    )
    parser.add_argument("--data", metavar="FILE", help="annotations of the task (default: the run's validation data)")
    parser.add_argument("--image-root", metavar="DIR", help="folder of the images (default: the annotation file's)")
    parser.add_argument(
        "--allow-outside-root",
        action="store_true",
        help="image paths may lead out of the image root (default: as the run)",
    )
    parser.add_argument(
        "--on-bad-record",
        choices=("raise", "skip"),
        help="refuse bad records, or leave them out (default: as the run)",
    )
    parser.add_argument("--output", type=Path, metavar="FILE.html", help="default: report.html in the run's folder")
    parser.add_argument("--k", type=int, help="candidates that retrieval re-ranks (default: as the run, or 128)")
    parser.add_argument("--batch-size", type=int, default=32, help="default: %(default)s")


def _report(arguments: argparse.Namespace) -> None:
    from ..evaluation.task_evaluation import EvaluationArguments
    from ..whole_files import require_result_file
    from .run_page import build_run_page, read_run

    run = read_run(arguments.folder)
    output = arguments.output or run.folder / "report.html"
    require_result_file(output, inputs=(arguments.data,))
    given = {
        "image_root": arguments.image_root,
        "allow_outside_root": arguments.allow_outside_root or None,
        "on_bad_record": arguments.on_bad_record,
    }
    options = {name: value for name, value in given.items() if value is not None}
    candidates = arguments.k or run.data.get("rerank_k")
    if candidates is not None:
        options["k"] = candidates
    if run.task == "retrieval":
        options["top"] = candidates or EvaluationArguments.k
    page = build_run_page(run, arguments.data, batch_size=arguments.batch_size, **options)
    print(f"Written to {page.write(output)}")
