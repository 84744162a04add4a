"""The command `vicha-hf tokenizer`."""

import argparse
from pathlib import Path

from ..command_parser import Commands


# What an earlier run of `vicha-hf tokenizer` left.
_TOKENIZER_FILES = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"}


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
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="a new folder, or that of a tokenizer alone, which is replaced",
    )
    parser.add_argument("--vocab-size", type=int, metavar="N", help="number of tokens (default: from the corpus)")


def _tokenizer(arguments: argparse.Namespace) -> None:
    from ..data.read_report import AnnotationReport
    from ..data.tokenizer_building import build_tokenizer, iterate_raw_texts
    from ..whole_files import explained_writing, require_writable

    held = {path.name for path in arguments.output.iterdir()} if arguments.output.is_dir() else set()
    # A model's folder has a tokenizer too, and its weights know no other.
    if others := sorted(held - _TOKENIZER_FILES):
        raise ValueError(
            f"{arguments.output} holds other things than a tokenizer, such as {others[0]}: name a new folder."
        )
    require_writable(arguments.output, "--output")
    report = AnnotationReport()
    tokenizer = build_tokenizer(iterate_raw_texts(arguments.data, report), arguments.vocab_size)
    with explained_writing(arguments.output):
        tokenizer.save_pretrained(arguments.output)
    if report.num_skipped:
        print(f"{report.summary()}\nThe tokenizer knows the texts of the usable records alone.")
    print(f"{len(tokenizer):,} tokens written to {arguments.output}")
