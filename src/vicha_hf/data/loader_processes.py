"""Start-up of the processes that load data: `DataLoader`'s workers, and pools."""

import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context


def ignore_sigterm(worker: int) -> None:
    """Ignores SIGTERM, as a `worker_init_fn`: a cluster sends it to all processes of a job, also to those that load
    data.

    They would die of it before the training process has saved, and it would take that for an error. They end with it.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def process_pool(num_processes: int, start_method: str | None = None) -> Iterator[ProcessPoolExecutor]:
    """
    A pool that ends with its context: what waits is dropped, and Ctrl-C, which a terminal sends to every process, is left to
    the caller.

    Args:
        num_processes: in the pool.
        start_method: of `multiprocessing`; None takes the machine's own.
    """
    pool = ProcessPoolExecutor(num_processes, mp_context=get_context(start_method), initializer=_ignore_ctrl_c)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _ignore_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
