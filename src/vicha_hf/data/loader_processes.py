"""Start-up of the processes that load data (`DataLoader`'s workers)."""

import signal


def ignore_sigterm(worker: int) -> None:
    """Ignores SIGTERM, as a `worker_init_fn`: a cluster sends it to all processes of a job, also to those that load
    data.

    They would die of it before the training process has saved, and it would take that for an error. They end with it.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
