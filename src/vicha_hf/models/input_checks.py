"""Errors about arguments that do not belong together, raised before they become one about tensor shapes."""

import torch


def check_rows(**arguments: torch.Tensor | None) -> None:
    """All the given arguments have as many rows as the first. Raises a `ValueError` that names the two that differ."""
    given = {name: len(value) for name, value in arguments.items() if value is not None}
    first = next(iter(given), None)
    for name, rows in given.items():
        if rows != given[first]:
            raise ValueError(f"`{name}` has {rows} rows and `{first}` {given[first]}: give one for each.")


def check_together(**arguments: torch.Tensor | None) -> None:
    """Either all or none of the arguments are given. Raises a `ValueError` that names what is missing."""
    missing = [name for name, value in arguments.items() if value is None]
    if missing and len(missing) < len(arguments):
        given = [name for name in arguments if name not in missing]
        raise ValueError(f"`{given[0]}` was given without `{missing[0]}`: give both or neither.")


def check_labels(labels: torch.Tensor, batch_size: int, classes: tuple[str, ...]) -> None:
    """`labels` are [batch_size] indices into `classes`."""
    if labels.shape != (batch_size,) or labels.is_floating_point():
        raise ValueError(
            f"`labels` has shape {tuple(labels.shape)} and dtype {labels.dtype}; expected one class index per sample, "
            f"[{batch_size}], of an integer type."
        )
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
        raise ValueError(
            f"`labels` holds {int(labels.min())} to {int(labels.max())}; the classes are numbered 0 to "
            f"{len(classes) - 1}: {classes}."
        )
