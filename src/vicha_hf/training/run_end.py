"""The end of a run for whoever reads it: `metrics.json`, and the lines that say where the model is and how to go on."""

import json
import shlex
from pathlib import Path
from typing import Any

from accelerate.logging import get_logger
from torch import nn

from ..data.read_report import RejectsFile
from ..evaluation.task_result import METRICS_FILE
from ..families import BEST_MODEL_FOLDER, EVALUATED_TASKS, MODEL_FOLDER, task_of
from ..whole_files import write_whole_file
from .arguments import TrainingArguments
from .checkpoints import Progress
from .evaluation_words import evaluation_words_of_run
from .progress_display import duration


logger = get_logger(__name__)


def report_end(
    arguments: TrainingArguments,
    model: nn.Module,
    progress: Progress,
    primary_metric: str | None,
    rejects: RejectsFile,
    **facts: Any,
) -> None:
    """
    Write a run's `metrics.json`, and tell what came of it. On the main process.

    Args:
        arguments: of the run.
        model: that was trained.
        progress: at the end.
        primary_metric: name of the metric that chose the best model; None without evaluation.
        rejects: the records that the run did without.
        facts: of the run, `{name: value}`.
    """
    output_dir = Path(arguments.output_dir)
    rejected = rejects.counts()
    if rejected:
        shown = "; ".join(f"{count} x {cause}" for cause, count in rejected.items())
        logger.warning("Records that the run did without (%s): %s", rejects.path, shown)
    content = final_metrics(progress, primary_metric, rejected_records=rejected, **facts)
    write_whole_file(output_dir / METRICS_FILE, json.dumps(content, indent=2) + "\n")
    lines = closing_lines(output_dir, progress, primary_metric, model, arguments)
    logger.info("Done in %s.\n%s", duration(progress.train_seconds), "\n".join(f"  {one}" for one in lines))


def final_metrics(progress: Progress, primary_metric: str | None, **facts: Any) -> dict[str, Any]:
    """
    Content of a run's `metrics.json`: the last evaluation's metrics, what the run took, and which evaluation was best.

    Args:
        progress: at the end.
        primary_metric: name of the metric that chose the best model; None without evaluation.
        facts: of the run, `{name: value}`.
    """
    content = {
        **progress.metrics,
        "step": progress.step,
        "skipped_steps": progress.skipped_steps,
        "train_seconds": progress.train_seconds,
        **facts,
    }
    if primary_metric is not None:
        content |= {
            "primary_metric": primary_metric,
            "best_metric": progress.best_metric,
            "best_step": progress.best_step,
        }
    return content


def closing_lines(
    output_dir: Path, progress: Progress, primary_metric: str | None, model: nn.Module, arguments: TrainingArguments
) -> list[str]:
    """Places of the model and of the best evaluation, and the commands that evaluate and report it; one fact a line."""
    lines = [f"Model: {output_dir / MODEL_FOLDER}"]
    if primary_metric is not None and progress.best_step is not None:
        lines.append(
            f"Best:  {output_dir / BEST_MODEL_FOLDER} of step {progress.best_step}, {primary_metric} "
            f"{progress.best_metric:.1f}"
        )
    task = task_of(model)
    if task not in EVALUATED_TASKS:
        return lines
    data = getattr(arguments, "data", None)
    source = getattr(data, "validation", None)
    folder = BEST_MODEL_FOLDER if progress.best_step is not None else MODEL_FOLDER
    sources = [source if isinstance(source, str) else "ANNOTATIONS"]
    evaluate = evaluation_words_of_run(str(output_dir / folder), sources, task, data)
    report = ["vicha-hf", "report", str(output_dir / folder)]
    return [
        *lines,
        f"Evaluate: {shlex.join(evaluate)}",
        f"Report:   {shlex.join(report)}",
    ]
