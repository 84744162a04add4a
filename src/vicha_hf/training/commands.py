"""The command `vicha-hf tokenizer`."""

import argparse
from pathlib import Path

from ..command_parser import Commands


def register(commands: Commands) -> None:
    """Adds `vicha-hf tokenizer`."""
    parser = commands.add_parser(
        "tokenizer",
        help="make a tokenizer for the texts of a corpus",
        description="Train a BERT-like WordPiece tokenizer on captions, questions, answers and concepts. Without "
        "--vocab-size it has as many tokens as leave 3 % of the words in pieces.",
    )
    parser.set_defaults(run=_tokenizer)
    parser.add_argument("data", nargs="+", metavar="CORPUS", help="annotations of any task")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--vocab-size", type=int, metavar="N", help="number of tokens (default: from the corpus)")


def _tokenizer(arguments: argparse.Namespace) -> None:
    from ..data.tokenizer_building import build_tokenizer, iterate_raw_texts
    from ..whole_files import require_writable

    holds_other_things = arguments.output.is_dir() and any(arguments.output.iterdir())
    if holds_other_things and not (arguments.output / "tokenizer.json").is_file():
        raise ValueError(f"{arguments.output} holds other things than a tokenizer: name a new folder.")
    require_writable(arguments.output, "--output")
    tokenizer = build_tokenizer(iterate_raw_texts(arguments.data), arguments.vocab_size)
    tokenizer.save_pretrained(arguments.output)
    print(f"{len(tokenizer):,} tokens written to {arguments.output}")
