"""Conditions under which the micro-batches of an optimiser step may contrast with each other."""

from accelerate import Accelerator
from torch import nn

from ..arguments import require
from ..models.objective_itc import ImageTextContrast
from .sharding import require_whole_weights


def require_cacheable(model: nn.Module, accelerator: Accelerator) -> None:
    """Raise a `ValueError` where `gradient_caching` is asked for and would train wrongly, or do nothing.

    Args:
        model: unwrapped.
        accelerator: of the run.
    """
    # It encodes a batch outside the forward pass for which split weights are gathered.
    require_whole_weights(accelerator, "gradient_caching", True)
    require(
        isinstance(getattr(model, "itc", None), ImageTextContrast),
        "gradient_caching",
        True,
        f"{type(model).__name__} has no contrast between the samples of a batch, so that plain accumulation is exact.",
    )
    require(
        not model.config.cross_process_negatives,
        "gradient_caching",
        True,
        "negatives come from the own micro-batch; set model.config.cross_process_negatives=false.",
    )
