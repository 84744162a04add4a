"""Noticing that a cluster wants its machine back."""

import signal
from types import FrameType


class SigtermNotice:
    """Within its context a SIGTERM no longer ends the process; `received` tells the program, which ends in its own time.

    Only the main thread may handle signals: elsewhere this does nothing, and a SIGTERM ends the process as usual.
    """

    def __init__(self):
        self.received = False
        self._previous = None

    def __enter__(self) -> "SigtermNotice":
        try:
            self._previous = signal.signal(signal.SIGTERM, self._note)
        except ValueError:
            self._previous = None
        return self

    def __exit__(self, *exception) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.received = True
