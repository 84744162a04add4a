"""The command `vicha-hf convert`."""

import argparse
from pathlib import Path

from ..arguments import require
from ..command_parser import Commands
from ..yaml_files import read_yaml_mapping


def register(commands: Commands) -> None:
    """Adds `vicha-hf convert`."""
    parser = commands.add_parser(
        "convert",
        help="turn a published checkpoint (.pth) into a Hugging Face folder",
        description="Turn a published ViCHA, SIMLA or ALBEF checkpoint into a folder for `from_pretrained`. Every tensor must "
        "find its place: one that is missing or left over is an error that names it.",
    )
    parser.set_defaults(run=_convert)
    parser.add_argument("source", type=Path, metavar="SOURCE.pth")
    parser.add_argument("output", type=Path, metavar="OUT_DIR")
    parser.add_argument(
        "--head",
        help="what the checkpoint is for: pretraining, retrieval, vqa, entailment, reasoning, grounding or "
        "text-assignment; by default what its keys say (retrieval and grounding share theirs)",
    )
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that holds something already")
    parser.add_argument("--training-state", action="store_true", help="keep the teacher and the queues")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="YAML or JSON with fields of the family's configuration that the tensors cannot tell and that differ from the published",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="NAME_OR_DIR",
        help="also save a processor with this tokenizer (the published models use bert-base-uncased)",
    )
    parser.add_argument(
        "--verify",
        nargs="?",
        const="",
        metavar="GOLDEN.safetensors",
        help="read the folder back and compare its weights and outputs with the checkpoint's, or with outputs of the published "
        "code in a file",
    )
    parser.add_argument("--push-to-hub", metavar="ORG/NAME", help="upload the folder to the Hub")
    parser.add_argument("--public", action="store_true", help="make a new repository public (default: private)")
    parser.add_argument("--license", metavar="ID", help="licence of the weights for the card, such as bsd-3-clause")


def _convert(arguments: argparse.Namespace) -> None:
    from ..folder_lock import locked_folder
    from ..hub_upload import prepare_repository, upload_folder
    from ..text_tokenizers import load_tokenizer
    from ..weight_files import require_weights
    from ..whole_files import explained_writing, require_new, require_writable
    from .card import write_card
    from .convert import CheckpointConfigError, convert_checkpoint, require_known_head
    from .processor import build_processor
    from .verification import verify_folder

    require_known_head(arguments.head)
    require_new(arguments.output, arguments.overwrite)
    require_weights(arguments.source)
    if arguments.verify:
        require_weights(Path(arguments.verify))
    # Not the folder itself, which a checkpoint that cannot be read leaves unmade.
    output = arguments.output.absolute()
    require_writable(next(path for path in (output, *output.parents) if path.exists()), "OUT_DIR")
    overrides = read_yaml_mapping(arguments.config) if arguments.config else {}
    if arguments.push_to_hub is not None:
        prepare_repository(arguments.push_to_hub, private=not arguments.public)
    # Before the checkpoint is read, which takes long, and before anything is written.
    tokenizer = None if arguments.tokenizer is None else load_tokenizer(arguments.tokenizer, "--tokenizer")
    try:
        model = convert_checkpoint(
            arguments.source, head=arguments.head, training_state=arguments.training_state, **overrides
        )
    except CheckpointConfigError as error:
        raise ValueError(f"{error} (given fields: {arguments.config or 'none'})") from error
    processor = None
    if tokenizer is not None:
        require(
            len(tokenizer) <= model.config.text_config.vocab_size,
            "--tokenizer",
            arguments.tokenizer,
            f"it has {len(tokenizer)} tokens, the model {model.config.text_config.vocab_size}.",
        )
        processor = build_processor(model, tokenizer)
    model_id = arguments.push_to_hub or str(arguments.output)
    # Another conversion may have written there meanwhile.
    require_new(arguments.output, arguments.overwrite)
    require_writable(arguments.output, "OUT_DIR")
    with locked_folder(arguments.output, option="OUT_DIR"), explained_writing(arguments.output):
        model.save_pretrained(arguments.output, training_state=arguments.training_state)
        if processor is not None:
            processor.save_pretrained(arguments.output)
        write_card(model, arguments.source, arguments.output, model_id, arguments.license)
    print(f"{type(model).__name__} written to {arguments.output}")
    if arguments.verify is not None:
        difference = verify_folder(model, arguments.output, arguments.verify or None)
        print(f"Verified: weights are equal, outputs differ by {difference:.1e} at most")
    if arguments.push_to_hub is not None:
        address = upload_folder(arguments.output, arguments.push_to_hub, f"Converted from {arguments.source.name}")
        print(f"Uploaded: {address}")
