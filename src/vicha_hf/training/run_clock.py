"""Time of a run: over all its interruptions, since the last record of the log, and until its end."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


# After so many steps a run tells how long it will take.
STEPS_BEFORE_ESTIMATE = 10


class RunClock:
    """
    Clock that starts when it is made, before the first step of a session.

    Args:
        step: optimiser steps that earlier sessions took.
        earlier_seconds: that they took for them.
    """

    def __init__(self, step: int, earlier_seconds: float):
        self._earlier_seconds = earlier_seconds
        self._first_step = step
        self._start = time.perf_counter()
        self._window_start, self._window_first_step = self._start, step
        self._second_step_start = self._start

    def seconds_since_start(self) -> float:
        """Seconds since this process began to train."""
        return time.perf_counter() - self._start

    def train_seconds(self) -> float:
        """Seconds over all interruptions, evaluations and checkpoints included."""
        return self._earlier_seconds + self.seconds_since_start()

    @contextmanager
    def paused_rates(self) -> Iterator[None]:
        """Leaves the block out of what `steps_per_second` and `seconds_per_step` tell."""
        start = time.perf_counter()
        yield
        pause = time.perf_counter() - start
        self._window_start += pause
        self._second_step_start += pause

    def steps_per_second(self, step: int) -> float:
        """Rate since it was last asked for, where the run stands at `step`."""
        now = time.perf_counter()
        rate = (step - self._window_first_step) / (now - self._window_start)
        self._window_start, self._window_first_step = now, step
        return rate

    def seconds_per_step(self, step: int) -> float | None:
        """Seconds of a step, once, when the first steps have shown it; to be called after each. The very first is slower."""
        taken = step - self._first_step
        if taken == 1:
            self._second_step_start = time.perf_counter()
        if taken != STEPS_BEFORE_ESTIMATE:
            return None
        return (time.perf_counter() - self._second_step_start) / (taken - 1)
