"""The training loop of every script: a model that returns named losses, a dataset, a collator, and Accelerate."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from ..arguments import require
from ..families import BEST_MODEL_FOLDER, MODEL_FOLDER
from ..folder_lock import locked_folder
from ..hub_upload import prepare_repository
from ..models.modeling_vision_text import VisionTextPreTrainedModel
from ..reporting.run_files import SETTINGS_FILE
from ..whole_files import require_writable, tidy_up, write_whole_file, write_whole_files
from .arguments import TrainingArguments
from .batch_sources import Batch, batch_source
from .batch_statistics import BatchStatistics
from .checkpoints import (
    Course,
    Progress,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
    sharding_of,
    warn_of_little_space,
)
from .forward_options import ForwardOptions
from .gradient_caching import require_cacheable
from .hub_publication import UNSENT_REVISIONS, HubPublication
from .interruption import SigtermNotice
from .launch_block import LaunchBlock, report_continuation, report_launch
from .matmul_precision import float32_matmul_precision
from .model_card import card_files
from .model_writer import ModelWriter
from .non_finite import NonFiniteGuard
from .one_process import on_main_process
from .optimizer import create_optimizer
from .optimizer_step import OptimizerStep, StepReport
from .progress_display import bar_numbers, duration, peak_memory_gib, progress_bar
from .rejected_records import keep_rejects
from .run_clock import RunClock
from .run_end import report_end
from .run_evaluation import EvaluationHook, RunEvaluation, best_metrics, best_of_folder
from .run_log import RunLog
from .run_settings import run_settings
from .sharding import embeddings_in_one_unit, prepare_for_gathering, require_whole_weights


logger = get_logger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """Outcome of a run.

    Args:
        step: optimiser steps taken.
        metrics: of the last evaluation; empty without one.
        best_metric: best value of the primary metric.
        best_step: when it was reached.
        train_seconds: over all interruptions, evaluations and checkpoints included.
        interrupted: whether a SIGTERM ended it early, after a checkpoint.
    """

    step: int
    metrics: dict[str, float]
    best_metric: float | None
    best_step: int | None
    train_seconds: float
    interrupted: bool


class TrainingLoop:
    """Trains a model whose forward returns a mapping with `loss` and any number of entries named `*_loss`.

    The model is called as `model(**batch)`, and with `distillation_alpha` and `update_teacher` if its forward names
    them. Alpha follows the ramp. The teacher moves once per optimiser step, in its first forward pass. One run gives
    the same result, bit for bit on a CPU, whether it was interrupted or not.

    Args:
        model: on any device. Teacher and queue, if it has them, must already be there. Its buffers must stay equal on
            every process, for checkpoints hold those of the first.
        arguments: of the run.
        train_dataset: map-style. `set_epoch(epoch)` is called before each epoch if it exists; what the dataset draws
            at random must depend on seed, epoch and index alone. `describe_sample(index)` names a sample in messages,
            if it exists.
        collator: turns a list of samples into the arguments of the model's forward; each must be one by name.
        accelerator: from [`~vicha_hf.training.accelerator.create_accelerator`].
        processor: saved beside the model, if given.
        evaluate: `evaluate(model, accelerator) -> metrics`. Called on every process with the unwrapped model in
            evaluation mode and without gradient; all processes must return the same metrics. It cannot change training:
            random states are restored after it.
        primary_metric: name of the metric whose best value (higher = better) is kept as `best_model`, the earliest
            of equal ones.
        resolved_config: the run's arguments as YAML, written to `config.yaml`.
    """

    def __init__(
        self,
        model: nn.Module,
        arguments: TrainingArguments,
        train_dataset: Dataset,
        collator: Callable[[list], Batch],
        accelerator: Accelerator,
        processor=None,
        evaluate: EvaluationHook | None = None,
        primary_metric: str | None = None,
        resolved_config: str | None = None,
    ):
        _require_possible(model, arguments, accelerator, evaluate, primary_metric)
        self.arguments = arguments
        self.accelerator = accelerator
        self.train_dataset = train_dataset
        self.processor = processor
        self.primary_metric = primary_metric
        self.resolved_config = resolved_config
        self.output_dir = Path(arguments.output_dir)

        self._source = batch_source(train_dataset, collator, arguments, accelerator)
        self.order, self.steps_per_epoch = self._source.order, self._source.steps_per_epoch
        self.total_steps = arguments.total_steps(self.steps_per_epoch)
        self.schedule = arguments.learning_rate_schedule(self.steps_per_epoch)
        options = ForwardOptions(model, arguments, self.steps_per_epoch)
        if arguments.gradient_checkpointing:
            model.activation_checkpointing_enable()
        self._guard = NonFiniteGuard(model, arguments, accelerator, self._source.describe)
        # Here, for the run itself may change the model's configuration.
        settings = on_main_process(
            accelerator, lambda: run_settings(arguments, model, train_dataset, processor, accelerator)
        )
        self._course = Course(self.order, settings, sharding_of(accelerator))
        prepare_for_gathering(model, accelerator)
        statistics = BatchStatistics(model)
        # Before the training engine replaces what it splits.
        temperature = next(
            (value for name, value in model.named_parameters() if name.split(".")[-1] == "temperature"), None
        )
        optimizer = _optimizer_of(model, arguments, accelerator.device)
        with warnings.catch_warnings(), embeddings_in_one_unit(model, accelerator):
            # torch has renamed the option that Accelerate passes on.
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
            self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self._sigterm = SigtermNotice()
        self.optimizer_step = OptimizerStep(
            arguments,
            accelerator,
            self.model,
            self.optimizer,
            options,
            statistics,
            temperature,
            self._guard,
            self._sigterm,
        )
        self.writer = ModelWriter(accelerator, self.model, processor)
        self._evaluation = None
        if evaluate is not None:
            patience = arguments.early_stopping_evaluations
            self._evaluation = RunEvaluation(evaluate, primary_metric, patience, self.writer, self.output_dir)
        self._publication = None
        if arguments.push_to_hub is not None:
            self._publication = HubPublication(self.output_dir, arguments.push_to_hub)
        self.progress = Progress()
        self._stop = False

    @property
    def unwrapped_model(self) -> nn.Module:
        """The model without what Accelerate put around it."""
        return self.accelerator.unwrap_model(self.model)

    def run(self) -> TrainingResult:
        """Train to the end, or to a SIGTERM; evaluate, checkpoint and log on the way.

        At the end `model/` holds the last weights, `best_model/` those of the best evaluation, `metrics.json` the metrics.

        Raises:
            NonFiniteLossError: a loss, the gradient or a weight is not finite; the message names step, loss and samples, or
                the weights. Such weights are not saved.
            OutputFolderError: the output folder cannot be written to, or its disk is full; checkpoints are intact.
            FolderInUseError: another run writes to the output folder.
            TypeError: the collator gives what the model's forward does not take.
            FileExistsError, FileNotFoundError, ValueError: see [`find_checkpoint`] and [`load_checkpoint`].
        """
        main = self.accelerator.is_main_process
        if main:
            require_writable(self.output_dir)
        precision = float32_matmul_precision(self.arguments.float32_matmul_precision)
        with locked_folder(self.output_dir, main), precision:
            return self._run()

    def _run(self) -> TrainingResult:
        self._begin()
        main = self.accelerator.is_main_process
        with self._sigterm, progress_bar(self.total_steps, self.progress.step, shown=main) as bar:
            while not self._is_over():
                self._train_epoch(bar)
        if self._evaluation is not None:
            self._evaluation.name_best(self.progress)
        interrupted = self.progress.step < self.total_steps and not self.progress.stopped_early
        if interrupted:
            logger.warning(
                "Stopped by SIGTERM after step %d of %d, with a checkpoint: continue with --resume_from_checkpoint latest.",
                self.progress.step,
                self.total_steps,
            )
        else:
            self._finish()
        if self.arguments.trackers:
            self.accelerator.end_training()
        return TrainingResult(
            step=self.progress.step,
            metrics=self.progress.metrics,
            best_metric=self.progress.best_metric,
            best_step=self.progress.best_step,
            train_seconds=self.progress.train_seconds,
            interrupted=interrupted,
        )

    def _begin(self) -> None:
        if self.accelerator.is_main_process:
            for folder in (self.output_dir, self.output_dir / UNSENT_REVISIONS):
                tidy_up(folder)
        checkpoint = on_main_process(
            self.accelerator, lambda: find_checkpoint(self.output_dir, self.arguments.resume_from_checkpoint)
        )
        if checkpoint is None and self.arguments.resume_from_checkpoint is not None:
            logger.warning("No checkpoint in %s yet: starting from the beginning.", self.output_dir)
        if self.accelerator.is_main_process:
            if self.arguments.push_to_hub is not None:
                prepare_repository(self.arguments.push_to_hub, self.arguments.hub_private)
            warn_of_little_space(self.unwrapped_model, self.output_dir, self.arguments.keep_last_checkpoints)
            if self.resolved_config is not None:
                write_whole_file(self.output_dir / SETTINGS_FILE, self.resolved_config)
        self._rejects = keep_rejects(self.output_dir, self.train_dataset, self.accelerator, is_new=checkpoint is None)
        # Dropout and masks differ between processes; the weights were made before and are equal.
        set_seed(self.arguments.seed, device_specific=True)
        if checkpoint is not None:
            self.progress = load_checkpoint(
                self.accelerator, checkpoint, self._course, self.arguments.allow_changed_settings
            )
            self._source.go_on_from(self.progress)
            if self._evaluation is not None:
                self._evaluation.go_on_from(self.progress)
            else:
                self.progress.best_metric, self.progress.best_step = best_of_folder(self.output_dir, None)
            report_continuation(checkpoint, self.progress.step, self.total_steps, self.progress.total_steps)
        if self.accelerator.is_main_process:
            report_launch(
                LaunchBlock.of_run(
                    self.arguments,
                    self.unwrapped_model,
                    self.processor,
                    self.train_dataset,
                    self.order,
                    self.total_steps,
                    self.steps_per_epoch,
                )
            )
        self._guard.require_finite_weights("The weights that training would start from are no use")
        self.progress.total_steps = self.total_steps
        if self.arguments.trackers:
            self.accelerator.init_trackers("vicha_hf")
        self.log = RunLog(self.accelerator, self.output_dir, self.progress.step)
        self._clock = RunClock(self.progress.step, self.progress.train_seconds)

    def _is_over(self) -> bool:
        return self._stop or self.progress.stopped_early or self.progress.step >= self.total_steps

    def _train_epoch(self, bar: tqdm) -> None:
        epoch, first_step = divmod(self.progress.step, self.steps_per_epoch)
        samples_and_batches = self._source.of_epoch(epoch, first_step)
        self.model.train()
        for _ in range(first_step, self.steps_per_epoch):
            report = self.optimizer_step.take(self.progress, self.schedule(self.progress.step), samples_and_batches)
            self._stop = report.stop
            self.progress.step += 1
            bar.set_postfix(bar_numbers(report.losses, report.state), refresh=False)
            bar.update()
            self._after_step(report)
            if self._is_over():
                return

    def _after_step(self, report: StepReport) -> None:
        progress, arguments = self.progress, self.arguments
        if not report.skipped:
            for name, value in (report.losses | report.statistics).items():
                progress.window_sums[name] = progress.window_sums.get(name, 0.0) + value
            progress.window_steps += 1
        last = progress.step == self.total_steps
        if last or progress.step % arguments.logging_steps == 0:
            self._log_window(report.state)
        self._tell_expected_time()
        with self._clock.paused_rates():
            if self._evaluation is not None and (last or self._is_due(arguments.evaluation_steps)):
                self._evaluation.run(progress, self.log, self._epoch())
            if last or self._stop or progress.stopped_early or self._is_due(arguments.checkpoint_steps):
                self._save_checkpoint()

    def _save_checkpoint(self) -> None:
        progress = self.progress
        progress.train_seconds = self._clock.train_seconds()
        self._guard.require_finite_weights(f"Step {progress.step} was not saved")
        self._source.note_place(progress)
        save_checkpoint(
            self.accelerator,
            self.unwrapped_model,
            self.output_dir,
            progress,
            self._course,
            self.arguments.keep_last_checkpoints,
            self.writer.write_companions,
        )
        if self.arguments.push_checkpoints:
            self.writer.write_model(self._publication.place(progress.step), self._card_of_last())
            on_main_process(self.accelerator, self._publication.try_to_send_waiting)

    def _tell_expected_time(self) -> None:
        seconds = self._clock.seconds_per_step(self.progress.step)
        if seconds is not None and self.progress.step < self.total_steps:
            left = seconds * (self.total_steps - self.progress.step)
            logger.info("%.2f s a step: about %s to go, without evaluations.", seconds, duration(left))

    def _is_due(self, every: int | None) -> bool:
        return self.progress.step % (every or self.steps_per_epoch) == 0

    def _log_window(self, state: dict[str, float]) -> None:
        progress = self.progress
        steps_per_second = self._clock.steps_per_second(progress.step)
        record = {
            **{name: total / progress.window_steps for name, total in progress.window_sums.items()},
            **state,
            "skipped_steps": progress.skipped_steps,
            "samples_per_second": steps_per_second * self.order.samples_per_step,
            "eta_seconds": (self.total_steps - progress.step) / steps_per_second,
            "memory_gib": peak_memory_gib(self.accelerator.device),
            "train_seconds": self._clock.train_seconds(),
        }
        if rejected := self._rejects.count():
            record["rejected_records"] = rejected
        if self.accelerator.scaler is not None:
            record["loss_scale"] = self.accelerator.scaler.get_scale()
        self.log.training(progress.step, self._epoch(), record)
        progress.window_sums, progress.window_steps = {}, 0

    def _finish(self) -> None:
        self.writer.write_model(self.output_dir / MODEL_FOLDER, self._card_of_last())
        if self.accelerator.is_main_process:
            self._write_card_of_best()
            report_end(
                self.arguments,
                self.unwrapped_model,
                self.progress,
                self.primary_metric,
                self._rejects,
                epoch=self._epoch(),
                num_processes=self.accelerator.num_processes,
                samples_per_step=self.order.samples_per_step,
            )
        if self._publication is not None:
            model, step = self.unwrapped_model, self.progress.step
            on_main_process(self.accelerator, lambda: self._publication.send_model(model, step))

    def _write_card_of_best(self) -> None:
        best = best_metrics(self.output_dir)
        if best is not None:
            folder = self.output_dir / BEST_MODEL_FOLDER
            write_whole_files({folder / name: content for name, content in self._card(folder, *best).items()})

    def _card_of_last(self) -> dict[str, str]:
        return self._card(self.output_dir / MODEL_FOLDER, self.progress.step, self.progress.metrics)

    def _card(self, folder: Path, step: int, metrics: Mapping[str, float]) -> dict[str, str]:
        """A model's card and the curve, by file name; nothing on other processes, or for a model of no family."""
        model = self.unwrapped_model
        if not self.accelerator.is_main_process or not isinstance(model, VisionTextPreTrainedModel):
            return {}
        return card_files(
            model,
            self.arguments,
            folder,
            metrics,
            steps=step,
            epochs=f"{step / self.steps_per_epoch:.2f}",
            samples=self._source.size,
            **{"samples per step": self.order.samples_per_step, "processes": self.accelerator.num_processes},
            **{"duration of the run": str(timedelta(seconds=round(self._clock.train_seconds())))},
        )

    def _epoch(self) -> float:
        return self.progress.step / self.steps_per_epoch


def _optimizer_of(model: nn.Module, arguments: TrainingArguments, device: torch.device) -> torch.optim.Optimizer:
    return create_optimizer(
        model,
        arguments.learning_rate,
        arguments.weight_decay,
        device,
        temperature_lr_scale=arguments.temperature_lr_scale,
        kind=arguments.optimizer,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        matrix_lr_scale=arguments.muon_learning_rate / arguments.learning_rate,
    )


def _require_possible(
    model: nn.Module,
    arguments: TrainingArguments,
    accelerator: Accelerator,
    evaluate: EvaluationHook | None,
    primary_metric: str | None,
) -> None:
    if (evaluate is None) != (primary_metric is None):
        raise ValueError("evaluate and primary_metric belong together: give both or neither.")
    require(
        evaluate is not None or arguments.early_stopping_evaluations is None,
        "early_stopping_evaluations",
        arguments.early_stopping_evaluations,
        "there is no evaluation to tell when to stop; give data.validation, or set it to null.",
    )
    if arguments.gradient_caching:
        require_cacheable(model, accelerator)
    if arguments.optimizer != "adamw":
        require_whole_weights(accelerator, "optimizer", arguments.optimizer)
