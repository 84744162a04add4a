"""The commands `vicha-hf visual-tokenizer` and `vicha-hf visual-tokens`."""

import argparse
from pathlib import Path

from ..command_parser import CommandParser, Commands
from ..models.image_processing_vicha import ViChaImageProcessor
from .configuration import PatchVisualTokenizerConfig


# What the paper pretrains with.
IMAGE_SIZE = 256


def register(commands: Commands) -> None:
    """Adds `vicha-hf visual-tokenizer` and `vicha-hf visual-tokens`."""
    _add_visual_tokenizer(commands)
    _add_visual_tokens(commands)


def _add_visual_tokenizer(commands: Commands) -> None:
    parser = commands.add_parser(
        "visual-tokenizer",
        help="fit a small visual tokenizer to the images of a corpus",
        description="Fit the codes of a small visual tokenizer (k-means over blurred patches) to a corpus and save it as "
        "a folder. The same images and seed give the same codes.",
    )
    parser.set_defaults(run=_fit)
    _add_data_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where the tokenizer goes")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there already")
    defaults = PatchVisualTokenizerConfig()
    parser.add_argument(
        "--patch-size", type=int, default=defaults.patch_size, help="the model's, pixels (default: %(default)s)"
    )
    parser.add_argument(
        "--vocab-size", type=int, default=defaults.vocab_size, help="number of codes (default: %(default)s)"
    )
    parser.add_argument(
        "--code-size",
        type=int,
        default=defaults.code_size,
        help="a patch is averaged down to this many colours each way (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of the fit (default: %(default)s)")
    parser.add_argument(
        "--max-images", type=int, default=2000, help="images that the codes are fitted to (default: %(default)s)"
    )


def _fit(arguments: argparse.Namespace) -> None:
    from ..data.annotations import read_image_text_records
    from ..whole_files import explained_writing, require_new, require_writable
    from .fitting import fit_patch_tokenizer

    require_new(arguments.output, arguments.overwrite)
    require_writable(arguments.output, "--output")
    tokenizer = fit_patch_tokenizer(
        read_image_text_records(arguments.data, arguments.image_root),
        _image_processor(arguments),
        patch_size=arguments.patch_size,
        vocab_size=arguments.vocab_size,
        code_size=arguments.code_size,
        seed=arguments.seed,
        max_images=arguments.max_images,
        num_workers=arguments.num_workers,
    )
    with explained_writing(arguments.output):
        tokenizer.save_pretrained(arguments.output)
    print(
        f"{tokenizer.vocab_size} codes of {tokenizer.patch_size} x {tokenizer.patch_size} pixels written to "
        f"{arguments.output}"
    )


def _add_visual_tokens(commands: Commands) -> None:
    parser = commands.add_parser(
        "visual-tokens",
        help="compute the visual tokens of a corpus beforehand",
        description="Tokenize every image of a corpus once and store the tokens in one file. They are those of whole "
        "images: training can use them where it neither crops nor augments.",
    )
    parser.set_defaults(run=_tokenize)
    parser.add_argument(
        "--tokenizer",
        required=True,
        metavar="FOLDER_OR_HUB_ID",
        help='a visual tokenizer, or a codebook such as "facebook/flava-image-codebook" (DALL-E\'s)',
    )
    _add_data_arguments(parser)
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FILE.safetensors",
        help="the store; keep it where it stands relative to the images",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there already")
    parser.add_argument(
        "--patch-size", type=int, help="the model's, pixels, for a codebook (default: 16); a tokenizer knows its own"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda where there is one)")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")


def _tokenize(arguments: argparse.Namespace) -> None:
    from ..data.annotations import read_image_text_records
    from ..devices import choose_device
    from ..whole_files import require_new
    from .loading import load_visual_tokenizer
    from .storage import write_visual_tokens

    require_new(arguments.output, arguments.overwrite)
    tokenizer = load_visual_tokenizer(arguments.tokenizer, patch_size=arguments.patch_size)
    usage = write_visual_tokens(
        arguments.output,
        tokenizer.to(choose_device(arguments.device)),
        read_image_text_records(arguments.data, arguments.image_root),
        _image_processor(arguments),
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
        progress=not arguments.no_progress,
    )
    rows, columns = tokenizer.grid_size(arguments.image_size, arguments.image_size)
    print(usage.summary())
    print(f"{rows} x {columns} tokens per image written to {arguments.output}")


def _add_data_arguments(parser: CommandParser) -> None:
    parser.add_argument(
        "--data",
        nargs="+",
        required=True,
        metavar="FILE",
        help='annotations, JSON or JSONL with {"image", "caption"} records; an image of several records counts once',
    )
    parser.add_argument("--image-root", help="folder of the images (default: the annotation file's)")
    parser.add_argument(
        "--image-size", type=int, default=IMAGE_SIZE, help="the model's input, pixels (default: %(default)s)"
    )
    parser.add_argument("--num-workers", type=int, default=0, help="processes that load images")


def _image_processor(arguments: argparse.Namespace) -> ViChaImageProcessor:
    return ViChaImageProcessor(size={"height": arguments.image_size, "width": arguments.image_size})
