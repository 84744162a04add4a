"""The command `vicha-hf demo-corpus`: builds the demo corpus in a folder."""

import argparse
import logging
from pathlib import Path

from .builder import DemoCorpus, build_demo_corpus
from .parameters import DemoCorpusParameters


logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--output`, `--no-progress` and one option for every parameter of `DemoCorpusParameters`."""
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the corpus")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")
    for name, parameter in DemoCorpusParameters.options().items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(parameter.default),
            default=parameter.default,
            metavar="N" if isinstance(parameter.default, int) else "X",
            help=f"{parameter.metadata['help']} (default: %(default)s)",
        )


def main(arguments: argparse.Namespace) -> DemoCorpus:
    """Builds the corpus that the parsed arguments describe, or finds it in place; raises as `build_demo_corpus`."""
    values = {name: getattr(arguments, name) for name in DemoCorpusParameters.options()}
    corpus = build_demo_corpus(arguments.output, progress=not arguments.no_progress, **values)
    logger.info("The demo corpus is in %s", corpus.root)
    return corpus
