"""Running a model over a dataset on any number of processes, every sample exactly once."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..data.loader_processes import ignore_sigterm
from ..models.process_group import rank, world_size


T = TypeVar("T")


@torch.no_grad()
def predict_all(
    dataset: Dataset,
    collator: Callable,
    predict: Callable[[dict[str, torch.Tensor], list[int]], Sequence[T]],
    *,
    device: torch.device,
    batch_size: int = 32,
    num_workers: int = 0,
    progress: bool = True,
    description: str = "Evaluating",
) -> list[T]:
    """
    Collects what `predict` says of every sample, in the dataset's order, on every process.

    The processes share the samples evenly and none is repeated to fill a batch, so metrics over the returned list are
    those of one process.

    Args:
        dataset: map-style.
        collator: list of its items -> the model's arguments.
        predict: called with a batch on `device` and the samples' indices; one answer per sample, which other processes
            must be able to unpickle.
        device: where the model is.
        batch_size: samples at a time on one process.
        num_workers: processes that load data, per process.
        progress: whether to show a progress bar.
        description: of the bar.

    Raises:
        ValueError: an empty dataset.
    """
    if len(dataset) == 0:
        raise ValueError("the dataset is empty: there is nothing to evaluate")
    own = range(rank(), len(dataset), world_size())
    batches = [list(own[start : start + batch_size]) for start in range(0, len(own), batch_size)]
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collator,
        num_workers=num_workers,
        worker_init_fn=ignore_sigterm,
    )
    answers: dict[int, T] = {}
    bar = tqdm(loader, desc=description, unit="batch", disable=not progress)
    for indices, batch in zip(batches, bar, strict=True):
        batch = {name: value.to(device) for name, value in batch.items()}
        answers.update(zip(indices, predict(batch, indices), strict=True))
    return _gathered(answers, len(dataset))


def _gathered(answers: dict[int, T], total: int) -> list[T]:
    shards: list[dict[int, T]] = [answers]
    if world_size() > 1:
        shards = [{} for _ in range(world_size())]
        dist.all_gather_object(shards, answers)
    merged = {index: answer for shard in shards for index, answer in shard.items()}
    if len(merged) != total or sum(map(len, shards)) != total:
        raise RuntimeError(
            f"{sum(map(len, shards))} answers to {len(merged)} of {total} samples were gathered: the processes do not see the same dataset"
        )
    return [merged[index] for index in range(total)]
