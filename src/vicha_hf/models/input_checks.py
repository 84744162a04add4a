"""Errors about arguments that do not belong together, raised before they become one about tensor shapes."""

import inspect
from difflib import get_close_matches

import torch
from torch import nn

from .modeling_outputs import Recorded


# What transformers passes to a model's forward by itself, whatever the model.
RECORDED_ARGUMENTS = ("output_attentions", "output_hidden_states")
STANDARD_ARGUMENTS = (*RECORDED_ARGUMENTS, "return_dict", "num_items_in_batch", "use_cache")


def check_arguments(model: nn.Module, arguments: dict[str, object]) -> dict[str, Recorded]:
    """
    Further arguments of a model's forward are such that transformers passes to every model. Returns those that say what
    to record; the configuration says it where they do not.

    Raises:
        TypeError: an argument that the model does not take; the message names the nearest that it takes.
    """
    unknown = [name for name in arguments if name not in STANDARD_ARGUMENTS]
    if unknown:
        kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        parameters = inspect.signature(model.forward).parameters.values()
        known = [parameter.name for parameter in parameters if parameter.kind not in kinds]
        near = get_close_matches(unknown[0], known, n=1, cutoff=0.0)
        raise TypeError(
            f"{type(model).__name__}'s forward takes no {', '.join(f'`{name}`' for name in unknown)}; leave it out, or did "
            f"you mean `{near[0]}`?"
        )
    wanted = {name: arguments.get(name) for name in RECORDED_ARGUMENTS}
    configured = {name: getattr(model.config, name, None) or None for name in RECORDED_ARGUMENTS}
    record = {name: configured[name] if value is None else value for name, value in wanted.items()}
    return {name: value for name, value in record.items() if value is not None}


def check_rows(**arguments: torch.Tensor | None) -> None:
    """All the given arguments have as many rows as the first. Raises a `ValueError` that names the two that differ."""
    given = {name: len(value) for name, value in arguments.items() if value is not None}
    first = next(iter(given), None)
    for name, rows in given.items():
        if rows != given[first]:
            raise ValueError(f"`{name}` has {rows} rows and `{first}` {given[first]}: give one for each.")


def check_shape(shape: tuple[int, ...], **arguments: torch.Tensor | None) -> None:
    """The given arguments have this shape. Raises a `ValueError` that names the first that has another."""
    for name, value in arguments.items():
        if value is not None and tuple(value.shape) != tuple(shape):
            raise ValueError(f"`{name}` has shape {tuple(value.shape)}; expected {tuple(shape)}.")


def check_together(**arguments: torch.Tensor | None) -> None:
    """Either all or none of the arguments are given. Raises a `ValueError` that names what is missing."""
    missing = [name for name, value in arguments.items() if value is None]
    if missing and len(missing) < len(arguments):
        given = [name for name in arguments if name not in missing]
        raise ValueError(f"`{given[0]}` was given without `{missing[0]}`: give both or neither.")


def value_bounds(tensor: torch.Tensor) -> tuple[int, int] | None:
    """
    The least and the greatest of some integers, for a check of arguments; `None` of no integers. `None` in a compiled
    graph, too: values are not to be had there, and an index that is out of range fails where it is used.
    """
    if tensor.numel() == 0 or torch.compiler.is_compiling():
        return None
    least, greatest = tensor.aminmax()
    return int(least), int(greatest)


def check_labels(labels: torch.Tensor, batch_size: int, classes: tuple[str, ...]) -> None:
    """`labels` are [batch_size] indices into `classes`."""
    if labels.shape != (batch_size,) or labels.is_floating_point():
        raise ValueError(
            f"`labels` has shape {tuple(labels.shape)} and dtype {labels.dtype}; expected one class index per sample, "
            f"[{batch_size}], of an integer type."
        )
    bounds = value_bounds(labels)
    if bounds is not None and not 0 <= bounds[0] <= bounds[1] < len(classes):
        raise ValueError(
            f"`labels` holds {bounds[0]} to {bounds[1]}; the classes are numbered 0 to {len(classes) - 1}: {classes}."
        )
