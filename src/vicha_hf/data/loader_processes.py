"""What the processes that load data (`DataLoader`'s workers) are told when they start."""

import signal


def ignore_sigterm(worker: int) -> None:
    """For `worker_init_fn`: a cluster sends its signal to all processes of a job, also to those that load data.

    They would die of it before the training process has saved, and it would take that for an error. They end with it.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
