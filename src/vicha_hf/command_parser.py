"""The parser behind every subcommand of `vicha-hf`."""

import argparse
from collections.abc import Callable, Sequence
from typing import NoReturn

from .arguments import one_line


# What a package's `register(commands)` is given; `commands.add_parser(name)` makes a [`CommandParser`].
Commands = argparse._SubParsersAction


class CommandParser(argparse.ArgumentParser):
    """
    A parser that tells a mistake in one line and takes `--batch_size` for `--batch-size`.

    A command registers itself with `commands.add_parser(name, help=...)` and `set_defaults(run=function)`, where
    `function(arguments)` returns the exit status or None.

    Args:
        reads_own_options: hand the command line on, unread, as `arguments.argv`: for commands whose options come from a
            dataclass, by [`~vicha_hf.arguments.parse_arguments`].
        options: of [`argparse.ArgumentParser`].
    """

    def __init__(self, *, reads_own_options: bool = False, **options):
        super().__init__(allow_abbrev=False, **options)
        self.reads_own_options = reads_own_options

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        if self.reads_own_options:
            return argparse.Namespace(argv=list(args or ()), **self._defaults), []
        if args is not None and self._subparsers is None:
            args = [_with_dashes(word) for word in args]
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {one_line(message)} (all options: {self.prog} --help)\n")


def at_least(least: int) -> Callable[[str], int]:
    """The type of an option that takes whole numbers from `least` on."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}")
        return value

    return read


def _with_dashes(word: str) -> str:
    """`--batch_size=4` -> `--batch-size=4`; values stay."""
    name, equals, value = word.partition("=")
    return f"{name.replace('_', '-')}{equals}{value}" if name.startswith("--") else word
