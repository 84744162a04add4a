"""The command line `vicha-hf`: a registry of the packages' commands, each importing what it needs only when it runs."""

import sys
from collections.abc import Sequence

from . import __version__
from .command_parser import CommandParser
from .concepts import commands as concept_commands
from .console_log import hide_progress_bars
from .conversion import commands as conversion_commands
from .data import commands as data_commands
from .demo_corpus import commands as demo_commands
from .demo_page import commands as page_commands
from .evaluation import commands as evaluation_commands
from .export import commands as export_commands
from .mistakes import run_command
from .reporting import commands as reporting_commands
from .search import commands as search_commands
from .training import commands as training_commands
from .visual_tokens import commands as visual_token_commands


# In the order of `vicha-hf --help`. Each registers its subcommands with `register(commands)`.
COMMAND_FILES = (
    conversion_commands,
    export_commands,
    evaluation_commands,
    data_commands,
    reporting_commands,
    search_commands,
    training_commands,
    page_commands,
    visual_token_commands,
    concept_commands,
    demo_commands,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand and returns the process's exit status; a mistake in the input is one line, not a traceback."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = build_parser()

    def run(words: list[str]) -> int | None:
        arguments = parser.parse_args(words)
        if getattr(arguments, "no_progress", False):
            hide_progress_bars()
        return arguments.run(arguments)

    return run_command(parser.name_of(argv), run, argv)


def build_parser() -> CommandParser:
    """The parser with every command; `--help` and shell completion read it."""
    parser = CommandParser(
        prog="vicha-hf",
        description="ViCHA, ALBEF and SIMLA models with Hugging Face tools.",
        epilog="`vicha-hf COMMAND --help` explains a command; --debug shows the full trace of an error.",
    )
    parser.add_argument("--version", action="version", version=f"vicha_hf {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for commands_file in COMMAND_FILES:
        commands_file.register(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
