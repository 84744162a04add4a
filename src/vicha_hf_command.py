"""
The command `vicha-hf` from its first moment on. It stands outside the package because importing that loads torch and
transformers, seconds in which Ctrl-C is one line too.
"""

import os
import signal
import sys


# As shells have it: 128 and the signal's number.
STOPPED_BY_CTRL_C = 128 + signal.SIGINT


def main() -> int:
    """Runs `vicha-hf` on the process's command line; returns the exit status."""
    # A shell starts what it sends to the background deaf to Ctrl-C, and so it stays.
    hears_ctrl_c = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if hears_ctrl_c:
        signal.signal(signal.SIGINT, _end_at_once)
    from vicha_hf.cli import main

    if hears_ctrl_c:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return main()


def _end_at_once(*_: object) -> None:
    """Ends the process; an exception amid an import could be swallowed, or told as a library that is not installed."""
    sys.stderr.write("vicha-hf: interrupted\n")
    sys.stderr.flush()
    os._exit(STOPPED_BY_CTRL_C)


if __name__ == "__main__":
    sys.exit(main())
