"""Start-up of the processes that load data: `DataLoader`'s workers, and pools."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from threading import Thread


def ignore_sigterm(worker: int) -> None:
    """Ignores SIGTERM of others than the training process, as a `worker_init_fn`: a cluster sends it to all processes of
    a job, also to those that load data.

    They would die of it before the training process has saved, and it would take that for an error. They end with it: at
    its own end it sends them SIGTERM, and waits for them.
    """
    # Elsewhere a process cannot learn who has sent a signal.
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


@contextmanager
def process_pool(num_processes: int, start_method: str | None = None) -> Iterator[ProcessPoolExecutor]:
    """
    A pool that ends with its context: what waits is dropped, after an error also what is at hand. Ctrl-C, which a terminal
    sends to every process, is left to the caller.

    Args:
        num_processes: in the pool.
        start_method: of `multiprocessing`; None takes the machine's own.
    """
    others = set(active_children())
    pool = ProcessPoolExecutor(num_processes, mp_context=get_context(start_method), initializer=_ignore_ctrl_c)
    try:
        yield pool
    except BaseException:
        # Nobody wants what they are at any more, and it may take them long.
        for process in set(active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _ignore_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
