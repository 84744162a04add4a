"""The command line `vicha-hf`: one subcommand per job, each importing what it needs only when it runs."""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand and returns the process's exit status; a mistake in the input is one line, not a traceback."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = build_parser()
    # The demo's options, --help and -- among them, are its script's own.
    known, demo_options = (argv[:1], argv[1:]) if argv[:1] == ["demo"] else (argv, [])
    arguments = parser.parse_args(known)
    arguments.demo_options = demo_options
    from huggingface_hub.errors import StrictDataclassError

    from .data.image_files import ImageReadError

    try:
        return arguments.run(arguments) or 0
    except (ValueError, OSError, ImageReadError, StrictDataclassError) as error:
        print(f"vicha-hf {arguments.command}: {error}", file=sys.stderr)
        return 1


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vicha-hf", description="ViCHA, ALBEF and SIMLA models with Hugging Face tools."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_convert(commands)
    _add_evaluate(commands)
    _add_demo_corpus(commands)
    _add_easy_vqa(commands)
    _add_visual_tokenizer(commands)
    _add_visual_tokens(commands)
    _add_demo(commands)
    return parser


def _add_convert(commands) -> None:
    parser = commands.add_parser(
        "convert",
        help="turn a published checkpoint (.pth) into a Hugging Face folder",
        description="Turn a published ViCHA, SIMLA or ALBEF checkpoint into a folder for `from_pretrained`. Every tensor must "
        "find its place: one that is missing or left over is an error that names it.",
    )
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
    parser.set_defaults(run=_convert)


def _convert(arguments: argparse.Namespace) -> None:
    from .conversion import convert_checkpoint

    overrides = _read_mapping(arguments.config) if arguments.config else {}
    model = convert_checkpoint(
        arguments.source, head=arguments.head, training_state=arguments.training_state, **overrides
    )
    model.save_pretrained(arguments.output, training_state=arguments.training_state)
    if arguments.tokenizer is not None:
        from transformers import AutoTokenizer

        from .families import PROCESSORS

        image_processor_class, processor_class = PROCESSORS[model.config.model_type]
        side = model.config.vision_config.image_size
        image_processor = image_processor_class(size={"height": side, "width": side})
        tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
        final_sep = "no_final_sep" not in model.config.reference_quirks
        processor_class(image_processor, tokenizer, final_sep=final_sep).save_pretrained(arguments.output)
    print(f"{type(model).__name__} written to {arguments.output}")


def _add_evaluate(commands) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="a model on an annotation file: retrieval, question answering, entailment, reasoning or grounding",
        description="What examples/evaluate.py does, on one process. Retrieval: recall at 1, 5 and 10 in both directions, "
        "of the similarity, and after the matching head has re-ranked the best candidates.",
    )
    parser.add_argument("model", help="folder or Hub name of a model with its processor")
    parser.add_argument("data", nargs="+", metavar="annotations", help="JSON or JSONL with the task's records")
    parser.add_argument(
        "--task",
        choices=("retrieval", "vqa", "entailment", "reasoning", "grounding"),
        default="retrieval",
        help="default: %(default)s",
    )
    parser.add_argument("--image-root", help="folder of the images (default: the annotation file's)")
    parser.add_argument("--on-bad-record", choices=("raise", "skip"), default="raise", help="default: %(default)s")
    parser.add_argument(
        "--k", type=int, default=128, help="candidates that the second stage re-ranks (default: %(default)s)"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda where there is one)")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that load images")
    parser.add_argument("--no-concepts", action="store_true", help="leave the visual concepts out")
    parser.add_argument("--answer-list", metavar="FILE", help="answers to choose from (default: the model's)")
    parser.add_argument("--splits", nargs="+", help="splits of a grounding file (default: all)")
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="write metrics.json and predictions.json there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the metrics there")
    parser.set_defaults(run=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> None:
    import torch

    from .evaluation.task_evaluation import EvaluationArguments, evaluate_task, format_metrics
    from .evaluation.task_result import ResultFiles

    own = (
        "task",
        "model",
        "data",
        "image_root",
        "on_bad_record",
        "k",
        "batch_size",
        "num_workers",
        "answer_list",
        "splits",
    )
    settings = EvaluationArguments(
        **{name: getattr(arguments, name) for name in own}, use_concepts=not arguments.no_concepts
    )
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    files = ResultFiles(arguments.output_dir, arguments.json)
    result = evaluate_task(settings, device)
    print(format_metrics(arguments.task, result.metrics))
    files.write(result, task=arguments.task, model=arguments.model)


def _add_demo_corpus(commands) -> None:
    from .demo_corpus.command import add_arguments

    parser = commands.add_parser(
        "demo-corpus",
        help="write the demo corpus: composed images with captions and visual concepts",
        description="Write the demo corpus (images, annotation files, tokenizer). The same parameters give the same "
        "files; a corpus that is already there is kept.",
    )
    add_arguments(parser)
    parser.set_defaults(run=_demo_corpus)


def _demo_corpus(arguments: argparse.Namespace) -> None:
    from .demo_corpus.command import main as build

    corpus = build(arguments)
    for name, split in corpus.metadata["splits"].items():
        print(f"{name:20s} {split['scenes']:6d} images {split['captions']:6d} captions")
    print(f"written to {corpus.root}")


def _add_visual_tokenizer(commands) -> None:
    from .visual_tokens.commands import add_fit_arguments

    parser = commands.add_parser(
        "visual-tokenizer",
        help="fit a small visual tokenizer to the images of a corpus",
        description="Fit the codes of a small visual tokenizer (k-means over blurred patches) to a corpus and save it as "
        "a folder. The same images and seed give the same codes.",
    )
    add_fit_arguments(parser)
    parser.set_defaults(run=_visual_tokenizer)


def _visual_tokenizer(arguments: argparse.Namespace) -> None:
    from .visual_tokens.commands import fit

    print(fit(arguments))


def _add_visual_tokens(commands) -> None:
    from .visual_tokens.commands import add_token_arguments

    parser = commands.add_parser(
        "visual-tokens",
        help="compute the visual tokens of a corpus beforehand",
        description="Tokenize every image of a corpus once and store the tokens in one file. They are those of whole "
        "images: training can use them where it neither crops nor augments.",
    )
    add_token_arguments(parser)
    parser.set_defaults(run=_visual_tokens)


def _visual_tokens(arguments: argparse.Namespace) -> None:
    from .visual_tokens.commands import tokenize

    usage, message = tokenize(arguments)
    print(usage.summary())
    print(message)


def _add_easy_vqa(commands) -> None:
    parser = commands.add_parser(
        "easy-vqa",
        help="write the easy-VQA questions about simple shapes as annotation files",
        description="Write the data of the package `easy-vqa` (`pip install vicha_hf[easy-vqa]`) as images, annotation "
        "files, answer list and tokenizer.",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")
    parser.set_defaults(run=_easy_vqa)


def _easy_vqa(arguments: argparse.Namespace) -> None:
    from .demo_corpus.easy_vqa import build_easy_vqa

    built = build_easy_vqa(arguments.output, progress=not arguments.no_progress)
    for name, number in built.metadata["questions"].items():
        print(f"{name:12s} {number:6d} questions {built.metadata['pictures'][name]:6d} images")
    print(f"written to {built.root}")


def _add_demo(commands) -> None:
    parser = commands.add_parser(
        "demo",
        help="pretrain a tiny model on the demo corpus and evaluate it (what `make demo` runs)",
    )
    parser.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    script = Path(__file__).parents[2] / "examples" / "demo.py"
    if not script.is_file():
        raise FileNotFoundError(
            f"{script} is not there: the demo belongs to a source checkout; install the package from one with "
            "`pip install -e .[demo]`"
        )
    return subprocess.run([sys.executable, script, *arguments.demo_options], check=False).returncode


def _read_mapping(path: Path) -> dict:
    import yaml

    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no mapping of configuration fields to values")
    return content


if __name__ == "__main__":
    sys.exit(main())
