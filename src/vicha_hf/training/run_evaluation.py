"""Evaluation on the way: it chooses the best model, and ends a run that does not get better."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from torch import nn

from ..evaluation.beside_chance import describe_figures
from ..families import BEST_MODEL_FOLDER
from .checkpoints import Progress
from .model_writer import ModelWriter
from .random_state import preserved_random_state
from .run_log import RunLog
from .sharding import whole_model


logger = get_logger(__name__)

# In the folder of the best model: which evaluation it is from.
BEST_EVALUATION_FILE = "evaluation.json"

EvaluationHook = Callable[[nn.Module, Accelerator], dict[str, float]]


class RunEvaluation:
    """
    Evaluation of a model that trains. It cannot change training.

    Args:
        evaluate: `evaluate(model, accelerator) -> metrics`, the same on all processes.
        primary_metric: name of the metric whose best value (higher = better) is kept as `best_model`, the earliest
            of equal ones.
        patience: after so many evaluations in a row that are no better the run ends; None never ends it.
        writer: of the run's models; it knows the model.
        output_dir: of the run.
    """

    def __init__(
        self,
        evaluate: EvaluationHook,
        primary_metric: str,
        patience: int | None,
        writer: ModelWriter,
        output_dir: Path,
    ):
        self.evaluate = evaluate
        self.primary_metric = primary_metric
        self.patience = patience
        self.writer = writer
        self.output_dir = output_dir
        # Value and step of the model in the folder, once this run has made or taken over one.
        self._kept: tuple[float | None, int | None] = (None, None)

    def go_on_from(self, progress: Progress) -> None:
        """
        Takes over the best model of an interrupted run, which may be younger than the checkpoint. The best value on the
        present course, and when to stop, follow from the checkpoint alone.

        Args:
            progress: from the checkpoint; forgets its best value where the model is gone, or was chosen by another metric.
        """
        self._kept = best_of_folder(self.output_dir, self.primary_metric)
        if self._kept == (None, None):
            progress.best_metric = progress.best_step = None

    def name_best(self, progress: Progress) -> None:
        """Names in `progress`, at the end, the model that is in the folder."""
        progress.best_metric, progress.best_step = self._kept

    def run(self, progress: Progress, log: RunLog, epoch: float) -> None:
        """
        Evaluates, and keeps the model if it is the best so far. Every process must call it.

        Args:
            progress: where the run stands; gets the metrics, the best value, and whether the run is to end.
            log: gets the metrics.
            epoch: where the run stands, for the log.

        Raises:
            KeyError: the metrics have no primary one.
        """
        metrics = progress.metrics = self._metrics()
        log.evaluation(progress.step, epoch, metrics)
        logger.info(
            "Step %d of %d: %s", progress.step, progress.total_steps, describe_figures(metrics, self.primary_metric)
        )
        value = metrics[self.primary_metric]
        if math.isfinite(value) and (progress.best_metric is None or value > progress.best_metric):
            progress.best_metric, progress.best_step, progress.evaluations_since_best = value, progress.step, 0
            if self._kept[0] is None or value > self._kept[0]:
                note = {"primary_metric": self.primary_metric, "best_metric": value, "step": progress.step, **metrics}
                self.writer.write_model(self.output_dir / BEST_MODEL_FOLDER, {BEST_EVALUATION_FILE: note})
                self._kept = value, progress.step
            return
        progress.evaluations_since_best += 1
        if progress.evaluations_since_best == self.patience:
            progress.stopped_early = True
            logger.info(
                "No better %s in %d evaluations: the run ends at step %d; the best model is that of step %s.",
                self.primary_metric,
                progress.evaluations_since_best,
                progress.step,
                self._kept[1],
            )

    def _metrics(self) -> dict[str, float]:
        accelerator, prepared = self.writer.accelerator, self.writer.model
        model = accelerator.unwrap_model(prepared)
        model.eval()
        with preserved_random_state(), torch.no_grad(), whole_model(model) as whole:
            metrics = self.evaluate(whole, accelerator)
        prepared.train()
        if self.primary_metric not in metrics:
            raise KeyError(f"the evaluation returned no {self.primary_metric!r}; it has {sorted(metrics)}")
        return metrics


def best_of_folder(output_dir: Path, primary_metric: str | None) -> tuple[float | None, int | None]:
    """
    Value and step of a run's best model by its own note; None both without it.

    Args:
        output_dir: of the run.
        primary_metric: a model that another one has chosen does not count; None takes any.
    """
    content = _best_note(output_dir)
    if primary_metric is not None and content.get("primary_metric") != primary_metric:
        content = {}
    return content.get("best_metric"), content.get("step")


def best_metrics(output_dir: Path) -> tuple[int, dict[str, float]] | None:
    """Step and metrics of a run's best model by its own note; None without it."""
    note = _best_note(output_dir)
    metrics = {name: value for name, value in note.items() if name not in ("primary_metric", "best_metric", "step")}
    return (note["step"], metrics) if note else None


def _best_note(output_dir: Path) -> dict:
    note = output_dir / BEST_MODEL_FOLDER / BEST_EVALUATION_FILE
    return json.loads(note.read_text()) if note.is_file() else {}
