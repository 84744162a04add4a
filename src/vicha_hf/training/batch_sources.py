"""Sources of a run's batches: a dataset that is read in the order of its epochs, or a stream that is read on and on."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..data.loader_processes import ignore_sigterm
from ..data.stream_dataset import StreamDataset
from .arguments import TrainingArguments
from .batch_description import describe_samples
from .checkpoints import Progress
from .data_order import ENDLESS, DataOrder


logger = get_logger(__name__)

Batch = dict[str, Tensor]


class DatasetBatches:
    """
    Batches of a map-style dataset, in an order that follows from seed, epoch and step.

    Args:
        dataset: `set_epoch(epoch)` is called before each epoch if it exists.
        collator: makes a batch out of a list of samples.
        arguments: of the run.
        accelerator: of the run.

    Attributes:
        order: of the samples.
        steps_per_epoch: optimiser steps.
    """

    def __init__(
        self,
        dataset: Dataset,
        collator: Callable[[list], Batch],
        arguments: TrainingArguments,
        accelerator: Accelerator,
    ):
        self.dataset = dataset
        self.collator = collator
        self.arguments = arguments
        self.accelerator = accelerator
        self.order = _data_order(len(dataset), arguments, accelerator)
        self.steps_per_epoch = self.order.steps_per_epoch
        if self.order.dataset_size < self.order.samples_per_step:
            logger.warning(
                "%d training samples do not fill one optimiser step of %d: samples are repeated within a step.",
                self.order.dataset_size,
                self.order.samples_per_step,
            )

    @property
    def size(self) -> str:
        """Number of samples, for a reader."""
        return f"{self.order.dataset_size:,}"

    def of_epoch(self, epoch: int, first_step: int) -> Iterator[tuple[list[int], Batch]]:
        """Indices and batch of each forward pass that this process runs in an epoch, from optimiser step `first_step` on."""
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
        batches = self.order.batches(epoch, self.accelerator.process_index, first_step)
        loader = DataLoader(
            self.dataset,
            batch_sampler=batches,
            collate_fn=self.collator,
            pin_memory=self.accelerator.device.type == "cuda",
            **_loading_options(self.arguments, epoch),
        )
        return zip(batches, loader, strict=True)

    def describe(self, samples: list[int]) -> str:
        """Describes these samples for a message, besides their indices. Reads them again."""
        return describe_samples(self.dataset, self.collator, samples)

    def note_place(self, progress: Progress) -> None:
        """Nothing: the place follows from the step."""

    def go_on_from(self, progress: Progress) -> None:
        """Nothing: the place follows from the step."""


class StreamBatches:
    """
    Batches of a stream, whose only epoch is the run.

    Args:
        stream: the share of this process.
        arguments: of the run, with the number of its steps.
        accelerator: of the run.

    Attributes:
        order: of a dataset without end; it tells the samples of a step.
        steps_per_epoch: optimiser steps of the run.
    """

    size = "a stream"

    def __init__(self, stream: StreamDataset, arguments: TrainingArguments, accelerator: Accelerator):
        if arguments.max_steps is None:
            raise ValueError("max_steps=None is not possible: a stream has no end; say after how many steps to stop.")
        self.stream = stream
        self.arguments = arguments
        self.accelerator = accelerator
        self.order = _data_order(ENDLESS, arguments, accelerator)
        self.steps_per_epoch = arguments.max_steps

    def of_epoch(self, epoch: int, first_step: int) -> Iterator[tuple[list[str], Batch]]:
        """Records and batch of each forward pass; those that were used move the places that a checkpoint notes."""
        for batch in DataLoader(self.stream, batch_size=None, **_loading_options(self.arguments, epoch)):
            self.stream.saw(batch)
            yield batch.records, batch.batch

    def describe(self, samples: list[str]) -> str:
        """Names these records for a message."""
        return f" ({'; '.join(samples)})"

    def note_place(self, progress: Progress) -> None:
        """Writes the places of all processes' readers into what a checkpoint holds. Every process must call it."""
        progress.stream_places = gather_object([self.stream.states])

    def go_on_from(self, progress: Progress) -> None:
        """
        Goes on where a checkpoint was made.

        Raises:
            ValueError: by another number of processes.
        """
        places = progress.stream_places
        if len(places) != self.accelerator.num_processes:
            raise ValueError(
                f"the checkpoint knows the places of {len(places)} processes in the stream, and there are "
                f"{self.accelerator.num_processes}: continue with as many, or start anew from its weights."
            )
        batches = progress.step * self.arguments.gradient_accumulation_steps
        self.stream.go_on_from(places[self.accelerator.process_index], batches)


def batch_source(
    dataset: Dataset, collator: Callable[[list], Batch], arguments: TrainingArguments, accelerator: Accelerator
) -> DatasetBatches | StreamBatches:
    """Source for a dataset, map-style or a stream; a stream has its own collator."""
    if isinstance(dataset, StreamDataset):
        return StreamBatches(dataset, arguments, accelerator)
    return DatasetBatches(dataset, collator, arguments, accelerator)


def _data_order(size: int, arguments: TrainingArguments, accelerator: Accelerator) -> DataOrder:
    return DataOrder(
        dataset_size=size,
        batch_size=arguments.per_device_batch_size,
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        num_processes=accelerator.num_processes,
        seed=arguments.seed,
    )


def _loading_options(arguments: TrainingArguments, epoch: int) -> dict[str, Any]:
    return {
        "num_workers": arguments.num_workers,
        "worker_init_fn": ignore_sigterm,
        # The loader's own draw must not come from the random state that training uses.
        "generator": torch.Generator().manual_seed(arguments.seed + epoch),
    }
