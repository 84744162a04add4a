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
