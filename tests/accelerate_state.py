"""Accelerate's settings of the process, which would leak from one run into the next."""

from accelerate.state import AcceleratorState, GradientState, PartialState


def forget_accelerator() -> None:
    """The next accelerator of this process starts anew."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()
