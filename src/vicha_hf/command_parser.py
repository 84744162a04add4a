"""The parser behind every subcommand of `vicha-hf`, and behind scripts whose options are no dataclass."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from .arguments import did_you_mean, one_line


# What a package's `register(commands)` is given; `commands.add_parser(name)` makes a [`CommandParser`].
Commands = argparse._SubParsersAction


class CommandParser(argparse.ArgumentParser):
    """
    A parser that tells a mistake in one line, names the nearest option to one that is unknown, and takes `--batch_size`
    for `--batch-size` and the reverse.

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
        args = sys.argv[1:] if args is None else list(args)
        end = self._end_of_own_words(args)
        args = [*map(self._known_spelling, args[:end]), *args[end:]]
        return super().parse_known_args(args, namespace)

    def _end_of_own_words(self, args: list[str]) -> int:
        """Position of `--`, or of the command whose parser reads the rest."""
        ends = (word == "--" if self._subparsers is None else not word.startswith("-") for word in args)
        return next((position for position, ends_here in enumerate(ends) if ends_here), len(args))

    def _known_spelling(self, word: str) -> str:
        """
        `--batch_size=4` -> `--batch-size=4` where the option is written so; values stay. An unknown option ends the process
        here: argparse would first miss what the option was meant to give.
        """
        name, equals, value = word.partition("=")
        if not re.match(r"--?[a-zA-Z]", name) or name in self._option_string_actions:
            return word
        for spelling in (name, name.replace("_", "-"), name.replace("-", "_").replace("__", "--", 1)):
            if spelling in self._option_string_actions:
                return f"{spelling}{equals}{value}"
        self.error(f"unknown option {name}{did_you_mean(name, [*self._option_string_actions])}")

    def name_of(self, argv: Sequence[str]) -> str:
        """Full name of the command that a command line calls, such as `vicha-hf data check`, for messages."""
        words = [word for word in argv if not word.startswith("-")]
        commands = self._subparsers._group_actions[0].choices if self._subparsers is not None else {}
        return commands[words[0]].name_of(words[1:]) if words and words[0] in commands else self.prog

    def error(self, message: str) -> NoReturn:
        if wrong := re.search(r"invalid choice: '([^']*)' \(choose from (.+)\)", message):
            message += did_you_mean(wrong[1], re.findall(r"'?([\w-]+)'?", wrong[2]))
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
