"""The command `vicha-hf convert`."""

import argparse
from pathlib import Path

from ..command_parser import Commands


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


def _convert(arguments: argparse.Namespace) -> None:
    from .convert import convert_checkpoint

    overrides = _read_mapping(arguments.config) if arguments.config else {}
    model = convert_checkpoint(
        arguments.source, head=arguments.head, training_state=arguments.training_state, **overrides
    )
    model.save_pretrained(arguments.output, training_state=arguments.training_state)
    if arguments.tokenizer is not None:
        from transformers import AutoTokenizer

        from ..families import PROCESSORS

        image_processor_class, processor_class = PROCESSORS[model.config.model_type]
        side = model.config.vision_config.image_size
        image_processor = image_processor_class(size={"height": side, "width": side})
        tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
        final_sep = "no_final_sep" not in model.config.reference_quirks
        processor_class(image_processor, tokenizer, final_sep=final_sep).save_pretrained(arguments.output)
    print(f"{type(model).__name__} written to {arguments.output}")


def _read_mapping(path: Path) -> dict:
    import yaml

    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no mapping of configuration fields to values")
    return content
