"""A test's work in real processes that are one process group."""

import datetime
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing


def run_in_processes(worker: Callable[..., dict], folder: Path, world_size: int, *arguments) -> list[dict]:
    """
    What `worker(rank, *arguments)`, a function of a module, returns in each of `world_size` processes. It may hold
    tensors and plain values. That there were so many processes is asserted.
    """
    torch.multiprocessing.spawn(_process, (worker, str(folder), world_size, arguments), nprocs=world_size)
    records = [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world_size)]
    assert [record.pop("world_size") for record in records] == [world_size] * world_size
    return records


def _process(rank: int, worker: Callable[..., dict], folder: str, world_size: int, arguments: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(f"{folder}/store", world_size),
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(seconds=60),
    )
    record = worker(rank, *arguments) | {"world_size": dist.get_world_size()}
    torch.save(record, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
