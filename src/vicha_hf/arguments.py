"""Arguments of commands: read from YAML and the command line, and checked where they are made."""

from collections.abc import Sequence
from dataclasses import fields
from typing import TypeVar

import jsonargparse


T = TypeVar("T")


def require(condition: bool, name: str, value: object, remedy: str) -> None:
    """Raise a `ValueError` that names the argument, its value and what to do about it."""
    if not condition:
        raise ValueError(f"{name}={value!r} is not possible: {remedy}")


def parse_arguments(
    arguments_class: type[T], argv: Sequence[str] | None = None, description: str = ""
) -> tuple[T, str]:
    """Read `--config FILE.yaml` and overrides such as `--learning_rate 1e-4 --data.hflip false`.

    Args:
        arguments_class: a dataclass, usually derived from [`TrainingArguments`]; nested dataclasses become dotted names.
        argv: the command line; by default the process's own.
        description: shown by `--help`.

    Returns:
        The arguments, and the same as YAML that `--config` reads back.

    Raises:
        SystemExit: an unknown name, a value of the wrong type or an impossible value, explained on stderr.
    """
    parser = jsonargparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below.")
    parser.add_class_arguments(arguments_class)
    parsed = parser.parse_args(argv)
    try:
        made = parser.instantiate(parsed)
        arguments = arguments_class(**{item.name: made[item.name] for item in fields(arguments_class)})
    except ValueError as error:
        parser.error(str(error))
    return arguments, parser.dump(parsed, skip_unset=False)
