"""The training loop of every script: a model that returns named losses, a dataset, a collator, and Accelerate."""

import copy
import inspect
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import gather_object, set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..arguments import require
from ..data.loader_processes import ignore_sigterm
from ..data.read_report import REJECTS_FILE, RejectsFile
from ..data.stream_dataset import StreamDataset
from ..evaluation.beside_chance import describe_figures
from ..evaluation.task_result import METRICS_FILE
from ..families import MODEL_FOLDER
from ..folder_lock import locked_folder
from ..hub_upload import prepare_repository, upload_folder
from ..models.modeling_vision_text import VisionTextPreTrainedModel
from ..models.pair_step import ContrastPart, cache_contrast
from ..reporting.run_files import BEST_MODEL_FOLDER, SETTINGS_FILE
from ..whole_files import complete_folder, require_writable, tidy_up, write_whole_file
from .adapters import has_adapters, merged_weights
from .arguments import TrainingArguments
from .batch_description import describe_samples
from .batch_statistics import BatchStatistics
from .checkpoint_revisions import FOLDER as UNSENT_REVISIONS
from .checkpoint_revisions import CheckpointRevisions
from .checkpoints import (
    Course,
    Progress,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
    sharding_of,
    warn_of_little_space,
)
from .data_order import ENDLESS, DataOrder
from .gradient_caching import require_cacheable
from .interruption import SigtermNotice
from .launch_block import LaunchBlock, report_launch
from .matmul_precision import float32_matmul_precision
from .model_card import card_files
from .non_finite import NonFiniteGuard, Visit, require_finite
from .one_process import on_main_process
from .optimizer import create_optimizer
from .progress_display import bar_numbers, duration, peak_memory_gib, progress_bar
from .random_state import preserved_random_state
from .run_end import closing_lines, final_metrics
from .run_log import RunLog
from .run_settings import run_settings
from .schedule import ramped_alpha
from .sharding import embeddings_in_one_unit, prepare_for_gathering, require_whole_weights, whole_model


logger = get_logger(__name__)

# In the folder of the best model: which evaluation it is from.
BEST_EVALUATION_FILE = "evaluation.json"

# After so many steps a run tells how long it will take.
STEPS_BEFORE_ESTIMATE = 10

EvaluationHook = Callable[[nn.Module, Accelerator], dict[str, float]]
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class StepReport:
    """One optimiser step in numbers.

    Args:
        losses: each averaged over the step's forward passes and over all processes.
        statistics: of the batch, averaged likewise; see [`~vicha_hf.training.batch_statistics.BatchStatistics`].
        state: learning rate, alpha, gradient norm and temperature, where they exist.
        skipped: whether the weights were left as they were, because something was not finite.
    """

    losses: dict[str, float]
    statistics: dict[str, float]
    state: dict[str, float]
    skipped: bool


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
        if (evaluate is None) != (primary_metric is None):
            raise ValueError("evaluate and primary_metric belong together: give both or neither.")
        require(
            evaluate is not None or arguments.early_stopping_evaluations is None,
            "early_stopping_evaluations",
            arguments.early_stopping_evaluations,
            "there is no evaluation to tell when to stop; give data.validation, or set it to null.",
        )
        self.arguments = arguments
        self.accelerator = accelerator
        self.train_dataset = train_dataset
        self.collator = collator
        self.processor = processor
        self.evaluate = evaluate
        self.primary_metric = primary_metric
        self.resolved_config = resolved_config
        self.output_dir = Path(arguments.output_dir)

        self._is_stream = isinstance(train_dataset, StreamDataset)
        if self._is_stream and arguments.max_steps is None:
            raise ValueError("max_steps=None is not possible: a stream has no end; say after how many steps to stop.")
        self.order = DataOrder(
            dataset_size=ENDLESS if self._is_stream else len(train_dataset),
            batch_size=arguments.per_device_batch_size,
            gradient_accumulation_steps=arguments.gradient_accumulation_steps,
            num_processes=accelerator.num_processes,
            seed=arguments.seed,
        )
        # A stream's epoch is the run.
        self.steps_per_epoch = arguments.max_steps if self._is_stream else self.order.steps_per_epoch
        self.total_steps = arguments.total_steps(self.steps_per_epoch)
        self.schedule = arguments.learning_rate_schedule(self.steps_per_epoch)
        if self.order.dataset_size < self.order.samples_per_step:
            logger.warning(
                "%d training samples do not fill one optimiser step of %d: samples are repeated within a step.",
                self.order.dataset_size,
                self.order.samples_per_step,
            )

        # Read before `prepare`, which may hide the model's own signature. A decorator may hide a part of it as well.
        self._forward_arguments = inspect.signature(inspect.unwrap(model.forward)).parameters
        require(
            arguments.hard_negative_steps == 0 or "negative_hardness" in self._forward_arguments,
            "hard_negative_steps",
            arguments.hard_negative_steps,
            f"{type(model).__name__} draws no negatives by their hardness; set it to 0.",
        )
        require(
            arguments.teacher_start_step == 0 or "use_teacher" in self._forward_arguments,
            "teacher_start_step",
            arguments.teacher_start_step,
            f"{type(model).__name__} needs its teacher from the first step; set it to 0.",
        )
        self._temperature = next(
            (value for name, value in model.named_parameters() if name.split(".")[-1] == "temperature"), None
        )
        if arguments.gradient_caching:
            require_cacheable(model, accelerator)
        if arguments.optimizer != "adamw":
            require_whole_weights(accelerator, "optimizer", arguments.optimizer)
        if arguments.gradient_checkpointing:
            model.activation_checkpointing_enable()
        # Between two steps every weight is where it is kept, also where it is split over the processes.
        self._moves_teacher_in_forward = not hasattr(model, "update_teacher")
        self._guard = NonFiniteGuard(model, arguments, accelerator, self._describe)
        # Here, for the run itself may change the model's configuration.
        settings = on_main_process(
            accelerator, lambda: run_settings(arguments, model, train_dataset, processor, accelerator)
        )
        self._course = Course(self.order, settings, sharding_of(accelerator))
        prepare_for_gathering(model, accelerator)
        self._statistics = BatchStatistics(model)
        optimizer = create_optimizer(
            model,
            arguments.learning_rate,
            arguments.weight_decay,
            accelerator.device,
            temperature_lr_scale=arguments.temperature_lr_scale,
            kind=arguments.optimizer,
            betas=(arguments.adam_beta1, arguments.adam_beta2),
            matrix_lr_scale=arguments.muon_learning_rate / arguments.learning_rate,
        )
        with warnings.catch_warnings(), embeddings_in_one_unit(model, accelerator):
            # torch has renamed the option that Accelerate passes on.
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
            self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.progress = Progress()
        self._sigterm = SigtermNotice()
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

    def save_model(self, folder: Path, notes: Mapping[str, Mapping | str] | None = None) -> None:
        """Write the weights for inference, and the processor. Every process must call it.

        Args:
            folder: replaced as a whole.
            notes: further files, by name: texts, and what is written as JSON.
        """
        state_dict = self.accelerator.get_state_dict(self.model)
        if self.accelerator.is_main_process:
            require_finite(state_dict, f"{folder} was not written")
        with complete_folder(folder, self.accelerator) as unfinished:
            if self.accelerator.is_main_process:
                weights = merged_weights(self.unwrapped_model, state_dict)
                self.unwrapped_model.save_pretrained(unfinished, state_dict=weights)
                if self.processor is not None:
                    self.processor.save_pretrained(unfinished)
                for name, content in (notes or {}).items():
                    text = content if isinstance(content, str) else json.dumps(content, indent=2) + "\n"
                    (unfinished / name).write_text(text, encoding="utf-8")

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
        self._keep_rejects(is_new=checkpoint is None)
        # Dropout and masks differ between processes; the weights were made before and are equal.
        set_seed(self.arguments.seed, device_specific=True)
        if checkpoint is not None:
            self.progress = load_checkpoint(
                self.accelerator, checkpoint, self._course, self.arguments.allow_changed_settings
            )
            if self._is_stream:
                self._go_on_in_stream()
            self._adopt_best_model()
            self._report_continuation(checkpoint)
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
        self._session_start = time.perf_counter()
        self._session_step = self.progress.step
        self._earlier_seconds = self.progress.train_seconds
        self._window_start, self._window_start_step = self._session_start, self.progress.step

    def _go_on_in_stream(self) -> None:
        places = self.progress.stream_places
        if len(places) != self.accelerator.num_processes:
            raise ValueError(
                f"the checkpoint knows the places of {len(places)} processes in the stream, and there are "
                f"{self.accelerator.num_processes}: continue with as many, or start anew from its weights."
            )
        batches = self.progress.step * self.arguments.gradient_accumulation_steps
        self.train_dataset.go_on_from(places[self.accelerator.process_index], batches)

    def _keep_rejects(self, is_new: bool) -> None:
        """Write down the records that are done without, those that training comes to included."""
        self._rejects = RejectsFile(self.output_dir / REJECTS_FILE)
        report = getattr(getattr(self.train_dataset, "annotations", None), "report", None)
        if self.accelerator.is_main_process:
            if is_new:
                self._rejects.path.unlink(missing_ok=True)
            if report is not None and report.num_skipped:
                write_whole_file(self._rejects.path, self._rejects.joined_with(report))
        self.accelerator.wait_for_everyone()
        if hasattr(self.train_dataset, "rejects"):
            self.train_dataset.rejects = self._rejects

    def _adopt_best_model(self) -> None:
        """The best model's own note is right: it may be younger than the checkpoint, or gone."""
        note = self.output_dir / BEST_MODEL_FOLDER / BEST_EVALUATION_FILE
        content = json.loads(note.read_text()) if note.is_file() else {}
        if self.primary_metric is not None and content.get("primary_metric") != self.primary_metric:
            content = {}
        self.progress.best_metric = content.get("best_metric")
        self.progress.best_step = content.get("step")

    def _report_continuation(self, checkpoint: Path) -> None:
        logger.info("Continuing from %s at step %d of %d.", checkpoint, self.progress.step, self.total_steps)
        if self.progress.total_steps != self.total_steps:
            logger.warning(
                "%s belongs to a run of %d steps, this one has %d: the learning rate may jump.",
                checkpoint,
                self.progress.total_steps,
                self.total_steps,
            )

    def _is_over(self) -> bool:
        return self._stop or self.progress.stopped_early or self.progress.step >= self.total_steps

    def _train_epoch(self, bar: tqdm) -> None:
        epoch, first_step = divmod(self.progress.step, self.steps_per_epoch)
        if hasattr(self.train_dataset, "set_epoch"):
            self.train_dataset.set_epoch(epoch)
        samples_and_batches = self._stream_batches() if self._is_stream else self._batches(epoch, first_step)
        self.model.train()
        for step_in_epoch in range(first_step, self.steps_per_epoch):
            report = self._optimizer_step(epoch, step_in_epoch, samples_and_batches)
            self.progress.step += 1
            bar.set_postfix(bar_numbers(report.losses, report.state), refresh=False)
            bar.update()
            self._after_step(report)
            if self._is_over():
                return

    def _batches(self, epoch: int, first_step: int) -> Iterator[tuple[list[int], Batch]]:
        batches = self.order.batches(epoch, self.accelerator.process_index, first_step)
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=batches,
            collate_fn=self.collator,
            pin_memory=self.accelerator.device.type == "cuda",
            **self._loading_options(epoch),
        )
        return zip(batches, loader, strict=True)

    def _stream_batches(self) -> Iterator[tuple[list[str], Batch]]:
        """Batches of a stream; those that were used move the places that a checkpoint notes."""
        for batch in DataLoader(self.train_dataset, batch_size=None, **self._loading_options(0)):
            self.train_dataset.saw(batch)
            yield batch.records, batch.batch

    def _loading_options(self, epoch: int) -> dict[str, Any]:
        return {
            "num_workers": self.arguments.num_workers,
            "worker_init_fn": ignore_sigterm,
            # The loader's own draw must not come from the random state that training uses.
            "generator": torch.Generator().manual_seed(self.arguments.seed + epoch),
        }

    def _optimizer_step(
        self, epoch: int, step_in_epoch: int, samples_and_batches: Iterator[tuple[list[int], Batch]]
    ) -> StepReport:
        learning_rate = self.schedule(self.progress.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["lr_scale"]
        state, options = {"learning_rate": learning_rate}, {}
        if "distillation_alpha" in self._forward_arguments:
            options["distillation_alpha"] = state["distillation_alpha"] = self._alpha(epoch, step_in_epoch)
        if self.progress.step < self.arguments.hard_negative_steps:
            options["negative_hardness"] = self.progress.step / self.arguments.hard_negative_steps
        if not self.arguments.teacher_takes_part(self.progress.step):
            options |= {"use_teacher": False, "distillation_alpha": 0.0}
            state["distillation_alpha"] = 0.0

        follows = self.arguments.teacher_start_step is not None
        if follows and not self._moves_teacher_in_forward:
            self.unwrapped_model.update_teacher()
        self._guard.begin_step()
        visits: list[Visit] = []
        grad_norm = None
        for micro_step, (samples, batch, part) in enumerate(self._micro_batches(samples_and_batches)):
            if "update_teacher" in self._forward_arguments:
                options["update_teacher"] = self._moves_teacher_in_forward and follows and micro_step == 0
            if part is not None:
                options["contrast_part"] = part
            with self.accelerator.accumulate(self.model):
                output = self.model(**batch, **options)
                visits.append(Visit(samples, {name: loss.detach() for name, loss in _losses(output).items()}))
                self.accelerator.backward(output["loss"])
                if self.accelerator.sync_gradients:
                    grad_norm = self._clip_gradients()

        losses, statistics, numbers = self._read_numbers(visits, grad_norm, output)
        allowed = self._guard.allows(self.progress, losses, numbers.get("grad_norm"), visits)
        if allowed:
            self.optimizer.step()
        self.optimizer.zero_grad()
        state |= {name: value for name, value in numbers.items() if math.isfinite(value)}
        return StepReport(losses, statistics, state, skipped=not allowed)

    def _micro_batches(
        self, samples_and_batches: Iterator[tuple[list[int], Batch]]
    ) -> Iterator[tuple[list[int], Batch, ContrastPart | None]]:
        """The forward passes of an optimiser step: dataset indices, the batch on the device, and what it knows of the others."""
        own = islice(samples_and_batches, self.arguments.gradient_accumulation_steps)
        moved = ((samples, self._moved(batch)) for samples, batch in own)
        if not self.arguments.gradient_caching:
            yield from ((*each, None) for each in moved)
            return
        all_samples, batches = zip(*moved, strict=True)
        # Gradients flow to what is computed here, so it must be computed as in the forward pass.
        with self.accelerator.autocast():
            parts = cache_contrast(self.unwrapped_model, batches)
        yield from zip(all_samples, batches, parts, strict=True)

    def _moved(self, batch: Batch) -> Batch:
        self._require_known_arguments(batch)
        return {name: _to_device(value, self.accelerator.device) for name, value in batch.items()}

    def _alpha(self, epoch: int, step_in_epoch: int) -> float:
        alpha = self.unwrapped_model.config.distillation_alpha
        if not self.arguments.ramp_distillation_alpha:
            return alpha
        return ramped_alpha(alpha, epoch, step_in_epoch, self.steps_per_epoch)

    def _require_known_arguments(self, batch: Batch) -> None:
        """A forward with `**kwargs` would swallow a misspelt name, and train without what it stands for."""
        known = [
            name
            for name, parameter in self._forward_arguments.items()
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
        # A wrapper that takes anything says nothing about what the model takes.
        unknown = sorted(batch.keys() - set(known)) if known else []
        if unknown:
            close = get_close_matches(unknown[0], known, n=1)
            raise TypeError(
                f"the batch holds {unknown[0]!r}, which the forward of {type(self.unwrapped_model).__name__} does not "
                f"take{f' (it takes {close[0]!r})' if close else ''}: rename it in the collator, or leave it out."
            )

    def _describe(self, samples: list[int]) -> str:
        """Describes these samples for a message, besides their indices. Reads them again."""
        if self._is_stream:
            return f" ({'; '.join(map(str, samples))})"
        return describe_samples(self.train_dataset, self.collator, samples)

    def _clip_gradients(self) -> Tensor | None:
        limit = self.arguments.max_grad_norm
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), math.inf if limit is None else limit)
        return None if norm is None else torch.as_tensor(norm, device=self.accelerator.device)

    def _read_numbers(
        self, visits: Sequence[Visit], grad_norm: Tensor | None, output: Mapping
    ) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
        """Losses, statistics and state of a step, averaged over the processes.

        All together, for reading makes a GPU wait: the loop does it once in a step. On the way, a stop that was asked of
        one process becomes a stop of all.
        """
        losses = {name: torch.stack([visit.losses[name] for visit in visits]).mean() for name in visits[0].losses}
        statistics = self._statistics.take()
        state = {} if grad_norm is None else {"grad_norm": grad_norm}
        temperature = output.get("temperature", self._temperature)
        if temperature is not None and temperature.numel() == 1:
            state["temperature"] = temperature
        stop = torch.tensor(float(self._sigterm.received), device=self.accelerator.device)
        packed = torch.stack(
            [
                _local(value).detach().float().reshape(())
                for value in (*losses.values(), *statistics.values(), *state.values(), stop)
            ]
        )
        values = iter(self.accelerator.reduce(packed, reduction="mean").tolist())
        read = [{name: next(values) for name in group} for group in (losses, statistics, state)]
        self._stop = next(values) > 0
        return tuple(read)

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

        pause = time.perf_counter()
        if self.evaluate is not None and (last or self._is_due(arguments.evaluation_steps)):
            self._evaluate()
        if last or self._stop or progress.stopped_early or self._is_due(arguments.checkpoint_steps):
            progress.train_seconds = self._train_seconds()
            self._guard.require_finite_weights(f"Step {progress.step} was not saved")
            if self._is_stream:
                progress.stream_places = gather_object([self.train_dataset.states])
            save_checkpoint(
                self.accelerator,
                self.unwrapped_model,
                self.output_dir,
                progress,
                self._course,
                arguments.keep_last_checkpoints,
                self._save_companions,
            )
            if arguments.push_checkpoints:
                self._push_checkpoint()
        # Samples per second are those of training alone.
        self._window_start += time.perf_counter() - pause

    def _tell_expected_time(self) -> None:
        """Tell, once the first steps have shown it, how long the run takes. The very first is slower than the others."""
        taken = self.progress.step - self._session_step
        if taken == 1:
            self._second_step_start = time.perf_counter()
        elif taken == STEPS_BEFORE_ESTIMATE and self.progress.step < self.total_steps:
            seconds = (time.perf_counter() - self._second_step_start) / (taken - 1)
            left = seconds * (self.total_steps - self.progress.step)
            logger.info("%.2f s a step: about %s to go, without evaluations.", seconds, duration(left))

    def _save_companions(self, folder: Path) -> None:
        """Make a checkpoint a folder for `from_pretrained`, where its weights are whole and have the model's names."""
        model = self.unwrapped_model
        if self._course.sharding != "none" or has_adapters(model) or not hasattr(model.config, "save_pretrained"):
            return
        config = copy.deepcopy(model.config)
        config.architectures = [type(model).__name__]
        config.save_pretrained(folder)
        if self.processor is not None:
            self.processor.save_pretrained(folder)

    def _is_due(self, every: int | None) -> bool:
        return self.progress.step % (every or self.steps_per_epoch) == 0

    def _log_window(self, state: dict[str, float]) -> None:
        progress = self.progress
        now = time.perf_counter()
        steps_per_second = (progress.step - self._window_start_step) / (now - self._window_start)
        record = {
            **{name: total / progress.window_steps for name, total in progress.window_sums.items()},
            **state,
            "skipped_steps": progress.skipped_steps,
            "samples_per_second": steps_per_second * self.order.samples_per_step,
            "eta_seconds": (self.total_steps - progress.step) / steps_per_second,
            "memory_gib": peak_memory_gib(self.accelerator.device),
            "train_seconds": self._train_seconds(),
        }
        if rejected := self._rejects.count():
            record["rejected_records"] = rejected
        if self.accelerator.scaler is not None:
            record["loss_scale"] = self.accelerator.scaler.get_scale()
        self.log.training(progress.step, self._epoch(), record)
        progress.window_sums, progress.window_steps = {}, 0
        self._window_start, self._window_start_step = now, progress.step

    def _evaluate(self) -> None:
        progress = self.progress
        model = self.unwrapped_model
        model.eval()
        with preserved_random_state(), torch.no_grad(), whole_model(model) as whole:
            metrics = self.evaluate(whole, self.accelerator)
        self.model.train()
        if self.primary_metric not in metrics:
            raise KeyError(f"the evaluation returned no {self.primary_metric!r}; it has {sorted(metrics)}")
        progress.metrics = metrics
        self.log.evaluation(progress.step, self._epoch(), metrics)
        logger.info(
            "Step %d of %d: %s", progress.step, self.total_steps, describe_figures(metrics, self.primary_metric)
        )
        value = metrics[self.primary_metric]
        if math.isfinite(value) and (progress.best_metric is None or value > progress.best_metric):
            progress.best_metric, progress.best_step, progress.evaluations_since_best = value, progress.step, 0
            note = {"primary_metric": self.primary_metric, "best_metric": value, "step": progress.step, **metrics}
            self.save_model(self.output_dir / BEST_MODEL_FOLDER, {BEST_EVALUATION_FILE: note})
            return
        progress.evaluations_since_best += 1
        if progress.evaluations_since_best == self.arguments.early_stopping_evaluations:
            progress.stopped_early = True
            logger.info(
                "No better %s in %d evaluations: the run ends at step %d; the best model is that of step %s.",
                self.primary_metric,
                progress.evaluations_since_best,
                progress.step,
                progress.best_step,
            )

    def _finish(self) -> None:
        self.save_model(self.output_dir / MODEL_FOLDER, self._card())
        if self.accelerator.is_main_process:
            rejected = self._rejects.counts()
            if rejected:
                shown = "; ".join(f"{count} x {cause}" for cause, count in rejected.items())
                logger.warning("Records that the run did without (%s): %s", self._rejects.path, shown)
            content = final_metrics(
                self.progress,
                self.primary_metric,
                rejected_records=rejected,
                epoch=self._epoch(),
                num_processes=self.accelerator.num_processes,
                samples_per_step=self.order.samples_per_step,
            )
            write_whole_file(self.output_dir / METRICS_FILE, json.dumps(content, indent=2) + "\n")
            lines = closing_lines(
                self.output_dir, self.progress, self.primary_metric, self.unwrapped_model, self.arguments
            )
            logger.info(
                "Done in %s.\n%s", duration(self.progress.train_seconds), "\n".join(f"  {one}" for one in lines)
            )
        if self.arguments.push_to_hub is not None:
            on_main_process(self.accelerator, self._push)

    def _card(self) -> dict[str, str]:
        """The model's card and its curve, by file name; nothing on other processes, or for a model of no family."""
        model = self.unwrapped_model
        if not self.accelerator.is_main_process or not isinstance(model, VisionTextPreTrainedModel):
            return {}
        return card_files(
            model,
            self.arguments,
            self.output_dir,
            self.progress.metrics,
            steps=self.progress.step,
            epochs=f"{self._epoch():.2f}",
            samples="a stream" if self._is_stream else f"{len(self.train_dataset):,}",
            **{"samples per step": self.order.samples_per_step, "processes": self.accelerator.num_processes},
            duration=str(timedelta(seconds=round(self._train_seconds()))),
        )

    def _push_checkpoint(self) -> None:
        revisions = self._revisions()
        self.save_model(revisions.place(self.progress.step), self._card())
        on_main_process(self.accelerator, revisions.try_to_send)

    def _revisions(self) -> CheckpointRevisions:
        return CheckpointRevisions(self.output_dir, self.arguments.push_to_hub)

    def _push(self) -> None:
        repository = self.arguments.push_to_hub
        # Models with visual concepts have one, or None.
        index = getattr(self.unwrapped_model, "concept_index", None)
        if index is not None:
            index.warn_of_local_encoder()
        self._revisions().send()
        address = upload_folder(self.output_dir / MODEL_FOLDER, repository, f"Step {self.progress.step}")
        logger.info("Uploaded to the Hub: %s", address)

    def _epoch(self) -> float:
        return self.progress.step / self.steps_per_epoch

    def _train_seconds(self) -> float:
        return self._earlier_seconds + self._session_seconds()

    def _session_seconds(self) -> float:
        return time.perf_counter() - self._session_start


def _losses(output: Mapping) -> dict[str, Tensor]:
    losses = {
        name: value
        for name, value in output.items()
        if value is not None and (name == "loss" or name.endswith("_loss"))
    }
    if "loss" not in losses:
        raise ValueError("the model's output has no loss: the collator did not give it what it needs to train.")
    return losses


def _local(tensor: Tensor) -> Tensor:
    """A number that is sharded over the processes, in one piece."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _to_device(value, device: torch.device):
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
