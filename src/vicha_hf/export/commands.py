"""The command `vicha-hf export`."""

import argparse
from pathlib import Path

from ..command_parser import Commands


def register(commands: Commands) -> None:
    """Adds `vicha-hf export`."""
    parser = commands.add_parser(
        "export",
        help="write a model as ONNX files for other runtimes",
        description="Write image_encoder.onnx, text_encoder.onnx and pair_scorer.onnx with free batch size and lengths. Every file "
        "is run by onnxruntime and compared with the model. Needs the extra `onnx`.",
    )
    parser.set_defaults(run=_export)
    parser.add_argument("model", help="folder or Hub id of a model for retrieval, or of a pretraining run")
    parser.add_argument("output", type=Path, metavar="DIR")
    parser.add_argument("--format", choices=("onnx",), default="onnx", help="default: %(default)s")
    parser.add_argument("--int8", action="store_true", help="keep the weights of linear layers in 8 bits")


def _export(arguments: argparse.Namespace) -> None:
    from transformers import AutoProcessor

    from ..families import find_model_folder, load_finetuned
    from .onnx_files import export_onnx

    folder = find_model_folder(arguments.model)
    model = load_finetuned("retrieval", folder)
    found = export_onnx(model, arguments.output, int8=arguments.int8)
    AutoProcessor.from_pretrained(folder).save_pretrained(arguments.output)
    what = "smallest cosine with the model's" if arguments.int8 else "largest difference from the model's"
    for name, value in found.items():
        size = (arguments.output / f"{name}.onnx").stat().st_size / 2**20
        print(f"{name}.onnx  {size:7.1f} MiB  {what} outputs: {value:.4g}")
