"""The block of facts that a run prints at its launch, with warnings of what cannot be right."""

import math
import os
from dataclasses import dataclass, field
from pathlib import Path

from accelerate.logging import get_logger
from torch import nn
from torch.utils.data import Dataset

from ..data.corpus_summary import CorpusSummary, summarize_corpus
from .arguments import TrainingArguments
from .data_order import ENDLESS, DataOrder


logger = get_logger(__name__)

# Below this many steps in an epoch a corpus is small for its batch.
FEW_STEPS_PER_EPOCH = 10
# Above this many passes over the data a model has seen all there is.
MANY_EPOCHS = 200


@dataclass(frozen=True)
class LaunchBlock:
    """
    Facts of a run before its first step.

    Attributes:
        num_samples: training samples of one epoch; None of a stream, whose samples nobody has counted.
        samples_per_step: of all processes and forward passes of an optimiser step.
        num_processes: that train together.
        total_steps, steps_per_epoch: optimiser steps.
        arguments: of the run.
        corpus: the texts in numbers, where they are known.
        queue_size: features in the queue; 0 without.
        queue_start: optimiser step from which the queue counts.
        device: kind that every process trains on, such as "cuda".
        num_local_processes: on this machine.
        num_cores: that this process may use, which the machine's processes share.
        reads_concepts: whether the model takes visual concepts, and the run gives them to it.
    """

    num_samples: int | None
    samples_per_step: int
    num_processes: int
    total_steps: int
    steps_per_epoch: int
    arguments: TrainingArguments = field(repr=False)
    corpus: CorpusSummary | None = None
    queue_size: int = 0
    queue_start: int = 0
    device: str = "cpu"
    num_local_processes: int = 1
    num_cores: int = 1
    reads_concepts: bool = False

    @classmethod
    def of_run(
        cls,
        arguments: TrainingArguments,
        model: nn.Module,
        processor,
        dataset: Dataset,
        order: DataOrder,
        total_steps: int,
        steps_per_epoch: int,
    ) -> "LaunchBlock":
        """The facts of a run that is ready to start.

        Args:
            arguments: of the run.
            model: with queue and teacher, if it trains with them.
            processor: whose tokenizer counts the corpus; None where there is none.
            dataset: of the training; its `annotations` are counted, if it has them.
            order: the data order.
            total_steps, steps_per_epoch: optimiser steps.
        """
        annotations = getattr(dataset, "annotations", None)
        corpus = None
        if annotations is not None and hasattr(processor, "tokenizer"):
            corpus = summarize_corpus(annotations, processor.tokenizer, processor.max_text_length)
        queue = getattr(getattr(model, "training_state", None), "queue", None)
        if arguments.teacher_start_step is None:
            # Nothing fills it.
            queue = None
        return cls(
            num_samples=None if order.dataset_size == ENDLESS else order.dataset_size,
            samples_per_step=order.samples_per_step,
            num_processes=order.num_processes,
            total_steps=total_steps,
            steps_per_epoch=steps_per_epoch,
            arguments=arguments,
            corpus=corpus,
            queue_size=0 if queue is None else queue.size,
            queue_start=0
            if queue is None
            else arguments.teacher_start_step
            + math.ceil(model.config.queue_warmup_batches / arguments.gradient_accumulation_steps),
            device=next(model.parameters()).device.type,
            num_local_processes=int(os.environ.get("LOCAL_WORLD_SIZE", order.num_processes)),
            reads_concepts=getattr(model.config, "use_concepts", False)
            and getattr(getattr(arguments, "data", None), "use_concepts", True),
            num_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        )

    @property
    def epochs(self) -> float:
        """Passes over the training data."""
        return self.total_steps / self.steps_per_epoch

    @property
    def length_field(self) -> str:
        """The setting that decides how long the run is."""
        return "max_steps" if self.arguments.max_steps is not None else "num_epochs"

    def lines(self) -> list[str]:
        """The facts, one a line."""
        arguments = self.arguments
        parts = f"{arguments.per_device_batch_size} samples"
        parts += f" x {arguments.gradient_accumulation_steps} forward passes x {self.num_processes} processes"
        passes = (
            f"{self.epochs:.1f} epochs of {self.steps_per_epoch:,} steps; " if self.num_samples is not None else ""
        )
        facts = {
            "samples": "a stream" if self.num_samples is None else f"{self.num_samples:,} an epoch",
            "corpus": str(self.corpus) if self.corpus else None,
            "device": self.device,
            "batch": f"{self.samples_per_step} ({parts})",
            "steps": f"{self.total_steps:,} ({passes}{self.length_field} decides)",
            "warm-up": f"{arguments.warmup_steps:,} steps",
            "queue": f"{self.queue_size:,} features, counts from step {self.queue_start:,}"
            if self.queue_size
            else None,
            "output": arguments.output_dir,
        }
        return [f"{name:8s} {value}" for name, value in facts.items() if value is not None]

    def warnings(self) -> list[str]:
        """Settings that cannot be right, each with its remedy."""
        found = []
        if self.device == "cpu" and self.num_local_processes > self.num_cores:
            found.append(
                f"{self.num_local_processes} processes train on the CPU and share {self.num_cores} of its cores: there is no "
                "GPU for them. examples/accelerate_configs/cpu.yaml starts a single process."
            )
        if self.arguments.warmup_steps >= self.total_steps:
            found.append(
                f"the warm-up takes {self.arguments.warmup_steps:,} steps, and the run has {self.total_steps:,}: the "
                "learning rate never falls; lower warmup_steps."
            )
        if self.queue_size and self.queue_start >= self.total_steps:
            found.append(
                f"the queue would count from step {self.queue_start:,}, after the end of the run: lower "
                "model.config.queue_warmup_batches."
            )
        if self.num_samples is None:
            return found
        if self.queue_size > self.num_samples:
            found.append(
                f"the queue of {self.queue_size:,} is larger than the {self.num_samples:,} samples: it holds images "
                "twice; lower model.config.queue_size."
            )
        if self.steps_per_epoch < FEW_STEPS_PER_EPOCH or self.epochs > MANY_EPOCHS:
            remedy = self.length_field if self.epochs > MANY_EPOCHS else "per_device_batch_size"
            found.append(
                f"{self.num_samples:,} samples are few for this recipe: an epoch has {self.steps_per_epoch} step"
                f"{'' if self.steps_per_epoch == 1 else 's'}, and the run {self.epochs:.1f} epochs. Lower {remedy}; docs/your_own_pictures.md has recipes for few images."
            )
        if self.reads_concepts and self.corpus is not None and not self.corpus.num_with_concepts:
            found.append(
                "the model reads visual concepts, and no record has any: `vicha-hf concepts build CORPUS` finds some, and "
                "model.config.use_concepts false trains without."
            )
        if self.corpus is not None and self.corpus.splits_most_words:
            found.append(
                f"the tokenizer writes {self.corpus.num_split_words:,} of {self.corpus.num_words:,} words in pieces: it "
                "was made for other texts. Pretrain with one of all your texts: `vicha-hf tokenizer CORPUS --output DIR`."
            )
        return found


def report_launch(block: LaunchBlock) -> None:
    """Tell what is about to be trained, and what cannot be right about it."""
    logger.info("This run:\n%s", "\n".join(f"  {line}" for line in block.lines()))
    for warning in block.warnings():
        logger.warning("%s", warning)


def report_continuation(checkpoint: Path, step: int, total_steps: int, earlier_total_steps: int) -> None:
    """
    Tell that a run goes on, and that it is longer or shorter than it was to be.

    Args:
        checkpoint: that it goes on from.
        step: of the checkpoint.
        total_steps: optimiser steps that the run is to take.
        earlier_total_steps: that it was to take when the checkpoint was made.
    """
    logger.info("Continuing from %s at step %d of %d.", checkpoint, step, total_steps)
    if earlier_total_steps != total_steps:
        logger.warning(
            "%s belongs to a run of %d steps, this one has %d: the learning rate may jump.",
            checkpoint,
            earlier_total_steps,
            total_steps,
        )
