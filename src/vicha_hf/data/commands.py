"""The commands `vicha-hf data import`, `vicha-hf data check` and `vicha-hf data pack`."""

import argparse
from pathlib import Path

from ..command_parser import CommandParser, Commands, at_least
from .tasks import TASKS


def register(commands: Commands) -> None:
    """Adds `data` with its commands."""
    parser = commands.add_parser("data", help="import, check and pack annotations and their images")
    own = parser.add_subparsers(dest="data_command", required=True, metavar="COMMAND", parser_class=CommandParser)
    _add_import(own)
    _add_check(own)
    _add_pack(own)


def _add_import(commands: Commands) -> None:
    from .importers.registry import IMPORTERS

    parser = commands.add_parser(
        "import",
        help="convert what the owner of a dataset publishes",
        description="Convert what the owner of a dataset publishes into one JSONL file of annotations, and say how many "
        "records were taken and left out, by cause.",
        epilog="names and files: " + "; ".join(f"{one.name}: {one.files}" for one in IMPORTERS.values()),
    )
    parser.add_argument("name", choices=list(IMPORTERS), metavar="NAME", help=f"one of {', '.join(IMPORTERS)}")
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="the published files")
    parser.add_argument("--images", metavar="DIR", help="folder of the images: each is looked for below it")
    parser.add_argument("--split", nargs="+", metavar="NAME", help="only these splits, where the files name them")
    parser.add_argument("--output", required=True, metavar="FILE.jsonl", help="the annotation file")
    parser.add_argument("--overwrite", action="store_true", help="replace the file where it is there already")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")
    parser.set_defaults(run=_import)


def _import(arguments: argparse.Namespace) -> None:
    from .importers.registry import import_annotations

    account = import_annotations(
        arguments.name,
        arguments.sources,
        arguments.output,
        arguments.images,
        arguments.split,
        progress=not arguments.no_progress,
        overwrite=arguments.overwrite,
    )
    print(account.summary())
    print(f"written to {arguments.output}")


def _add_check(commands: Commands) -> None:
    parser = commands.add_parser(
        "check",
        help="read every record, decode every image, and say what is wrong",
        description="Read every record and decode every image once. Several files are several splits, as are the values "
        "of a field `split`. The exit status is 1 where something is wrong.",
    )
    parser.add_argument("corpus", nargs="+", metavar="CORPUS", help="annotation files, folders, patterns or datasets")
    parser.add_argument("--task", choices=TASKS, default="retrieval", help="default: %(default)s")
    _add_reading(parser)
    parser.add_argument("--fix", type=Path, metavar="FILE.jsonl", help="write the usable records there")
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --fix where it is there already")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page about the corpus there")
    parser.add_argument(
        "--num-workers", type=at_least(0), metavar="N", help="processes that decode (default: one per core)"
    )
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")
    parser.set_defaults(run=_check)


def _check(arguments: argparse.Namespace) -> int:
    import json

    from ..whole_files import require_new, require_result_file, require_writable_file, write_whole_file
    from .corpus_check import NEAR_DUPLICATES, check_corpus, write_clean_copy
    from .corpus_page import write_corpus_page

    for path in filter(None, (arguments.json, arguments.html)):
        require_result_file(path, inputs=arguments.corpus)
    if arguments.fix is not None:
        require_writable_file(arguments.fix, inputs=arguments.corpus)
        require_new(arguments.fix, arguments.overwrite)
    check = check_corpus(
        arguments.corpus,
        arguments.task,
        arguments.num_workers,
        progress=not arguments.no_progress,
        image_root=arguments.image_root,
        allow_outside_root=arguments.allow_outside_root,
        log_report=False,
    )
    print(check.report.summary())
    print(check.facts())
    for split, count in check.splits.items():
        print(f"  {count} usable records in {split}")
    if check.duplicates:
        print(f"{len(check.duplicates)} x {NEAR_DUPLICATES}")
        for pair in check.duplicates[:10]:
            print(f"  e.g. {pair.first} ({pair.first_where}) and {pair.second} ({pair.second_where})")
    if arguments.json is not None:
        write_whole_file(arguments.json, json.dumps(check.as_json(), ensure_ascii=False, indent=2) + "\n")
        print(f"result: {arguments.json}")
    if arguments.html is not None:
        write_corpus_page(check, f"Check of {', '.join(arguments.corpus)}", arguments.html)
        print(f"page: {arguments.html}")
    if arguments.fix is not None:
        count = write_clean_copy(check, arguments.corpus, arguments.fix, arguments.image_root)
        print(f"{count} records written to {arguments.fix}")
    if not check.report.num_read:
        print(f"no records in {', '.join(arguments.corpus)}: write at least one")
    return 1 if check.problems or not check.report.num_read else 0


def _add_pack(commands: Commands) -> None:
    parser = commands.add_parser(
        "pack",
        help="write image-text records as shards, with images no larger than training needs",
        description="Write image-text records as tar shards or Parquet files, with images resized to a shorter side. "
        "Training reads the folder like any other source.",
    )
    parser.add_argument("corpus", nargs="+", metavar="CORPUS", help="annotation files, folders, patterns or datasets")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument(
        "--format", choices=("webdataset", "parquet"), default="webdataset", help="default: %(default)s"
    )
    parser.add_argument(
        "--side",
        type=at_least(0),
        default=384,
        metavar="PIXELS",
        help="shorter side; 0 keeps images as they are (default: 384)",
    )
    parser.add_argument(
        "--records-per-shard", type=at_least(1), default=10_000, metavar="N", help="default: %(default)s"
    )
    parser.add_argument("--quality", type=int, default=92, metavar="N", help="of JPEG (default: %(default)s)")
    parser.add_argument("--on-bad-record", choices=("raise", "skip"), default="raise", help="default: %(default)s")
    _add_reading(parser)
    parser.add_argument(
        "--num-workers", type=at_least(0), metavar="N", help="processes that decode (default: one per core)"
    )
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")
    parser.set_defaults(run=_pack)


def _pack(arguments: argparse.Namespace) -> None:
    from .packing import PackOptions, pack_corpus

    options = PackOptions(
        format=arguments.format,
        side=arguments.side or None,
        records_per_shard=arguments.records_per_shard,
        quality=arguments.quality,
        num_workers=arguments.num_workers,
    )
    packed = pack_corpus(
        arguments.corpus,
        arguments.output,
        options,
        progress=not arguments.no_progress,
        image_root=arguments.image_root,
        on_bad_record=arguments.on_bad_record,
        allow_outside_root=arguments.allow_outside_root,
        log_report=False,
    )
    print(packed.report.summary())
    print(f"{packed.records} records in {len(packed.shards)} shards, written to {arguments.output}")


def _add_reading(parser: CommandParser) -> None:
    parser.add_argument("--image-root", metavar="DIR", help="folder of the images (default: the annotation file's)")
    parser.add_argument(
        "--allow-outside-root", action="store_true", help="take absolute image paths that lead out of the image root"
    )
