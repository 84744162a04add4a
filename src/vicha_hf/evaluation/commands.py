"""The command `vicha-hf evaluate`, which is examples/evaluate.py: one definition of the options, one way to run."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..arguments import parse_arguments, require
from ..command_parser import Commands
from ..console_log import log_to_console
from .task_result import TaskResult


DESCRIPTION = "A model on an annotation file: retrieval, question answering, entailment, reasoning or grounding."
USAGE = "%(prog)s MODEL DATA [DATA ...] [options]"


def register(commands: Commands) -> None:
    """Adds `vicha-hf evaluate`."""
    commands.add_parser(
        "evaluate", help=DESCRIPTION[0].lower() + DESCRIPTION[1:-1], reads_own_options=True
    ).set_defaults(run=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> None:
    run_evaluation(arguments.argv, prog="vicha-hf evaluate")


def run_evaluation(argv: Sequence[str] | None = None, prog: str | None = None) -> TaskResult:
    """
    Evaluates what the command line says, prints the metrics and writes the files that it asks for.

    Args:
        argv: options of [`~vicha_hf.evaluation.task_evaluation.EvaluationArguments`], or `MODEL DATA...` and options;
            None takes the process's own.
        prog: name of the program in messages; None takes the script's.

    Raises:
        SystemExit, AnnotationError, ValueError: as `parse_arguments` and `evaluate_task`.
    """

    from accelerate import Accelerator

    from ..devices import choose_device
    from .card_results import ResultCard, evaluation_command
    from .task_evaluation import EvaluationArguments, evaluate_task, for_its_model, format_metrics
    from .task_result import ResultFiles

    arguments, _ = parse_arguments(EvaluationArguments, argv, DESCRIPTION, prog, ("model", "data"), USAGE)
    log_to_console()
    accelerator = Accelerator()
    require(
        arguments.device is None or accelerator.num_processes == 1,
        "device",
        arguments.device,
        "several processes take theirs from the launcher.",
    )
    device = None if arguments.device is None else choose_device(arguments.device)
    arguments = for_its_model(arguments)
    # One process writes; the others neither need the folder nor lock it.
    files = (
        ResultFiles(arguments.output_dir, arguments.json, _paths(arguments.data))
        if accelerator.is_main_process
        else None
    )
    card = ResultCard(arguments.model) if arguments.add_to_card and accelerator.is_main_process else None
    if arguments.device is None:
        result = evaluate_task(arguments, accelerator=accelerator)
    else:
        result = evaluate_task(arguments, device=device)
    if accelerator.is_main_process:
        print(format_metrics(arguments.task, result.metrics))
        files.write(result, task=arguments.task, model=arguments.model, num_processes=accelerator.num_processes)
        if arguments.output_dir is not None:
            print(f"Written to {arguments.output_dir}")
        if card is not None and not result.metrics:
            print("Nothing was added to the card: the data hold no answers to compare with")
        elif card is not None:
            sources, settings = list(map(str, _paths(arguments.data))), arguments.unusual_settings
            command = evaluation_command(arguments.model, sources, arguments.task, settings)
            card.add(arguments.task, _dataset_name(sources), result.metrics, settings, command)
            print(f"Added to the card: {card.write()}")
    accelerator.end_training()
    return result


def _paths(data) -> list:
    """Paths of an evaluation's sources."""
    sources = data if isinstance(data, list) else [data]
    return [source.get("path") if isinstance(source, dict) else source for source in sources]


def _dataset_name(sources: list[str]) -> str:
    """Sources as a card names them: files without their folders, which mean nothing elsewhere."""
    return ", ".join(source if not Path(source).exists() else Path(source).name for source in sources)
