"""Write the model card of a configuration that has not been trained: what the model is, and that there are no weights.

    python examples/model_card.py --config examples/configs/vicha/base.yaml --model_id org/vicha-base \\
        --summary "ViCHA as published." --output model_cards/vicha-base.md

The card of a trained model is written by the script that trains it, from what it measured.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from vicha_hf.command_parser import CommandParser
from vicha_hf.families import head_class
from vicha_hf.mistakes import run_script
from vicha_hf.reporting.model_card import architecture_facts, build_model_card
from vicha_hf.whole_files import OutputFolderError, require_writable_file
from vicha_hf.yaml_files import read_yaml_mapping


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True, help="YAML of examples/pretrain.py")
    parser.add_argument("--model_id", required=True, help="repository on the Hub, organisation/name")
    parser.add_argument("--summary", required=True, help="what the model is, one paragraph")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args(argv)
    require_writable_file(arguments.output)
    heading = f"# {arguments.model_id.rpartition('/')[2]}\n"
    if arguments.output.exists() and heading not in arguments.output.read_text(encoding="utf-8", errors="replace"):
        raise OutputFolderError(f"{arguments.output} is there already and no card of the model: name another file.")

    model = read_yaml_mapping(arguments.config).get("model") or {}
    if start := model.get("from_pretrained"):
        raise ValueError(
            f"{arguments.config} starts from {start}, which decides the model: give a recipe of pretraining, such as "
            "examples/configs/vicha/base.yaml."
        )
    head = head_class(model.get("family", "vicha"), "pretraining")
    config = head.config_class(
        vision_config=model.get("vision_config"), text_config=model.get("text_config"), **model.get("config", {})
    )
    with torch.device("meta"):
        num_parameters = sum(parameter.numel() for parameter in head(config).parameters())
    architecture = architecture_facts(config, num_parameters)
    architecture["parameters"] += ", heads of pretraining included"
    card = build_model_card(
        model_id=arguments.model_id,
        summary=arguments.summary,
        architecture=architecture,
        family=config.model_type,
        license="apache-2.0",
        language="en",
    )
    card.save(arguments.output)


if __name__ == "__main__":
    sys.exit(run_script(main))
