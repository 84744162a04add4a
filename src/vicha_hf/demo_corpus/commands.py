"""The commands `vicha-hf demo-corpus`, `vicha-hf easy-vqa` and `vicha-hf demo`."""

import argparse
import importlib.util
import sys
from pathlib import Path

from ..command_parser import CommandParser, Commands
from .parameters import DemoCorpusParameters


# Belongs to a source checkout, beside the configurations that it reads.
DEMO_SCRIPT = Path(__file__).parents[3] / "examples" / "demo.py"


def register(commands: Commands) -> None:
    """Adds the three commands."""
    _add_demo_corpus(commands)
    _add_easy_vqa(commands)
    # Its options, --help and -- among them, are the script's own.
    commands.add_parser(
        "demo",
        help="pretrain a tiny model on the demo corpus and evaluate it (what `make demo` runs)",
        reads_own_options=True,
    ).set_defaults(run=_demo)


def _add_demo_corpus(commands: Commands) -> None:
    parser = commands.add_parser(
        "demo-corpus",
        help="write the demo corpus: composed images with captions and visual concepts",
        description="Write the demo corpus (images, annotation files, tokenizer). The same parameters give the same "
        "files; a corpus that is already there is kept.",
    )
    parser.set_defaults(run=_demo_corpus)
    _add_output(parser)
    for name, parameter in DemoCorpusParameters.options().items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(parameter.default),
            default=parameter.default,
            metavar="N" if isinstance(parameter.default, int) else "X",
            help=f"{parameter.metadata['help']} (default: %(default)s)",
        )


def _demo_corpus(arguments: argparse.Namespace) -> None:
    from .builder import build_demo_corpus

    values = {name: getattr(arguments, name) for name in DemoCorpusParameters.options()}
    corpus = build_demo_corpus(arguments.output, progress=not arguments.no_progress, **values)
    for name, split in corpus.metadata["splits"].items():
        print(f"{name:20s} {split['scenes']:6d} images {split['captions']:6d} captions")
    print(f"written to {corpus.root}")


def _add_easy_vqa(commands: Commands) -> None:
    parser = commands.add_parser(
        "easy-vqa",
        help="write the easy-VQA questions about simple shapes as annotation files",
        description="Write the data of the package `easy-vqa` (`pip install vicha_hf[easy-vqa]`) as images, annotation "
        "files, answer list and tokenizer.",
    )
    parser.set_defaults(run=_easy_vqa)
    _add_output(parser)


def _easy_vqa(arguments: argparse.Namespace) -> None:
    from .easy_vqa import build_easy_vqa

    built = build_easy_vqa(arguments.output, progress=not arguments.no_progress)
    for name, number in built.metadata["questions"].items():
        print(f"{name:12s} {number:6d} questions {built.metadata['pictures'][name]:6d} images")
    print(f"written to {built.root}")


def _demo(arguments: argparse.Namespace) -> None:
    if not DEMO_SCRIPT.is_file():
        raise FileNotFoundError(
            f"{DEMO_SCRIPT} is not there: the demo belongs to a source checkout; install the package from one with "
            "`pip install -e .[demo]`"
        )
    # At the end: `evaluate` is a library, and a script of that name stands beside the demo, which imports its neighbours.
    sys.path.append(str(DEMO_SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("vicha_hf_demo", DEMO_SCRIPT)
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    demo.main(arguments.argv, prog="vicha-hf demo")


def _add_output(parser: CommandParser) -> None:
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="a new folder, or one of this command"
    )
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")
