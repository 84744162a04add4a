"""Doing something on one process and letting all know what became of it."""

from collections.abc import Callable
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list


T = TypeVar("T")


def on_main_process(accelerator: Accelerator, function: Callable[[], T]) -> T:
    """The main process's result of `function`, on every process; its error likewise, so that none waits for the others.

    Args:
        accelerator: of the run; every process must call it.
        function: what it returns or raises must be small and can be pickled.
    """
    outcome = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = function()
        except Exception as error:
            if accelerator.num_processes == 1:
                raise
            outcome[1] = error
    if accelerator.num_processes > 1:
        broadcast_object_list(outcome)
    result, error = outcome
    if error is not None:
        raise error
    return result
