"""The command `vicha-hf demo-page`."""

import argparse
from pathlib import Path

from ..command_parser import Commands


def register(commands: Commands) -> None:
    """Adds `vicha-hf demo-page`."""
    parser = commands.add_parser(
        "demo-page",
        help="a page to try models on, in the browser",
        description="Open a page on this machine: search by text or image, find what a phrase names, ask, compare two images, "
        "see the concepts; whatever the models can do. Needs the extra `page`.",
    )
    parser.set_defaults(run=_demo_page)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="folder or Hub id of a model, of any task")
    parser.add_argument("--images", metavar="DIR_OR_FILE", help="folder of images, or annotation file, to search in")
    parser.add_argument(
        "--index", metavar="DIR", help="keep the index of the images there (default: made at each start)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU where there is one)")
    parser.add_argument(
        "--export", type=Path, metavar="DIR", help="write a folder that runs on its own, such as a Space"
    )


def _demo_page(arguments: argparse.Namespace) -> None:
    from .export import export_page
    from .interface import build_page, image_folders, require_gradio
    from .models import PageModels

    gradio = require_gradio()
    models = PageModels.find(arguments.models, arguments.device)
    if arguments.export is not None:
        export_page(arguments.models, arguments.images, arguments.export, gradio.__version__)
        print(f"Written to {arguments.export}: python {arguments.export / 'app.py'}")
        return
    page = build_page(models, arguments.images, arguments.index)
    page.launch(
        server_name=arguments.host,
        server_port=arguments.port,
        allowed_paths=image_folders(arguments.images),
    )
