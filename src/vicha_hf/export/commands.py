"""The command `vicha-hf export`."""

import argparse
from pathlib import Path

from ..command_parser import Commands


def register(commands: Commands) -> None:
    """Adds `vicha-hf export`."""
    parser = commands.add_parser(
        "export",
        help="write a model as files for other runtimes",
        description="Write image_encoder, text_encoder and pair_scorer, or question_encoder and answer_decoder of a model for "
        "question answering, with free batch size and lengths. Every file is run and compared with the model. The format "
        "onnx needs the extra `onnx`.",
    )
    parser.set_defaults(run=_export)
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="folder or Hub id of a model for retrieval, grounding or question answering, or of a pretraining run",
    )
    parser.add_argument(
        "output", type=Path, metavar="DIR", help="a new folder, or an earlier export, which is replaced"
    )
    parser.add_argument(
        "--format",
        choices=("onnx", "torch_export"),
        default="onnx",
        help="files .onnx, or .pt2 of torch.export (default: %(default)s)",
    )
    parser.add_argument("--int8", action="store_true", help="keep the weights of linear layers in 8 bits (onnx)")


def _export(arguments: argparse.Namespace) -> None:
    from ..families import find_model_folder, load_finetuned, load_processor, read_config
    from ..models.concept_selector import CONCEPT_INDEX_FOLDER
    from .exporting import FORMATS, export_model

    folder = find_model_folder(arguments.model)
    config = read_config(folder)
    answers = any(name.endswith("ForVQA") for name in config.architectures or ())
    model = load_finetuned("vqa" if answers else "retrieval", folder, config)
    if getattr(model, "backend", "torch") != "torch":
        raise ValueError(f"{folder} is an export already: give the folder of the model.")
    processor = load_processor(folder)

    def companions(output: Path) -> None:
        processor.save_pretrained(output)
        # Without the code of the model, which the files stand for.
        plain = type(config).from_dict(
            {name: value for name, value in config.to_dict().items() if name not in ("auto_map", "custom_pipelines")}
        )
        plain.save_pretrained(output)
        index = getattr(model, "concept_index", None)
        if index is not None:
            # An export is no encoder for it: the torch model goes on finding the concepts.
            revision = getattr(config, "_commit_hash", None)
            index.for_another_folder(folder, revision).save_pretrained(output / CONCEPT_INDEX_FOLDER)
        for name in model.companion_files:
            if (Path(folder) / name).is_file():
                (output / name).write_bytes((Path(folder) / name).read_bytes())

    found = export_model(model, arguments.output, arguments.format, arguments.int8, companions=companions)
    what = "smallest cosine with the model's" if arguments.int8 else "largest difference from the model's"
    for name, value in found.items():
        path = arguments.output / f"{name}{FORMATS[arguments.format][0]}"
        print(f"{path.name}  {path.stat().st_size / 2**20:7.1f} MiB  {what} outputs: {value:.4g}")
