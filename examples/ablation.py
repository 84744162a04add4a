r"""Compare ALBEF, ViCHA in its parts, and SIMLA on one corpus: at equal samples, at equal seconds, and on less data.

On the demo corpus, on a laptop in a night:

    python examples/ablation.py --output_dir outputs/ablation

On a corpus of your own, whose training records have visual concepts (`vicha-hf concepts build` makes them):

    python examples/ablation.py --train train.jsonl --validation validation.jsonl --test test.jsonl \
        --max_steps 20000 --output_dir outputs/ablation

Every run is the ordinary `examples/pretrain.py` with a recipe of its own, in `runs/NAME/recipe.yaml`. A study that was
stopped, in whatever way, goes on when the same command is given again: finished runs are read, the broken one resumes at its
last checkpoint. `ablation.md`, `ablation.json` and `ablation.svg` hold the result. Options of the pretraining script for all
runs stand behind `--`:

    python examples/ablation.py --seeds 1 --max_steps 400 -- --per_device_batch_size 16
"""

import argparse
import hashlib
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import yaml
from ablation_study.corpus import (
    make_tokenizer,
    make_visual_tokenizer,
    write_best_pairs,
    write_random_pairs,
    write_random_records,
    write_with_root,
)
from ablation_study.report import PARTS, draw, markdown
from ablation_study.runs import TRAINING_FOLDER, RunResult, StudyRun, resolve_recipe
from ablation_study.summary import as_json, judge, summarize
from ablation_study.variants import BASELINE, VARIANTS

from vicha_hf.command_parser import CommandParser
from vicha_hf.data.annotations import read_image_text_records
from vicha_hf.demo_corpus import build_demo_corpus
from vicha_hf.folder_lock import locked_folder
from vicha_hf.mistakes import run_script
from vicha_hf.whole_files import require_writable, write_whole_file
from vicha_hf.yaml_files import read_yaml_mapping


CONFIGS = Path(__file__).parent / "configs"
# Of a visual tokenizer fitted to the corpus, unless the recipe says `visual_vocab_size`.
VISUAL_CODES = 256
ALL = "all"
EQUAL_SECONDS_FILE = "equal_seconds.json"


@dataclass(frozen=True)
class Sources:
    """
    Data of a study, as absolute paths.

    Attributes:
        train, validation, tests: annotation files.
        tokenizer: folder.
        visual_tokenizer: folder of SIMLA's; None where SIMLA is left out.
    """

    train: str
    validation: str
    tests: list[str]
    tokenizer: str
    visual_tokenizer: str | None


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    if find_spec("matplotlib") is None:
        raise ImportError('the plot needs matplotlib: pip install "vicha_hf[ablation]"')
    require_writable(arguments.output_dir)
    with locked_folder(arguments.output_dir, True):
        Study(arguments).run()


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    argv = list(argv)
    at = argv.index("--") if "--" in argv else len(argv)
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output_dir", type=Path, default=Path("outputs/ablation"), help="default: %(default)s")
    add("--train", type=Path, metavar="FILE", help="annotations (default: the demo corpus)")
    add("--validation", type=Path, metavar="FILE", help="chooses the weight of the similarity in re-ranking")
    add("--test", type=Path, nargs="+", metavar="FILE", help="annotations; the plot shows the first")
    add("--image_root", type=Path, metavar="FOLDER", help="that image paths start from (default: each file's own)")
    add("--tokenizer", metavar="FOLDER", help="of the texts (default: made from the training texts)")
    add("--visual_tokenizer", metavar="FOLDER", help="of SIMLA (default: fitted to the training images)")
    add("--recipe", type=Path, default=CONFIGS / "vicha/tiny.yaml", help="of ViCHA (default: %(default)s)")
    add("--simla_recipe", type=Path, default=CONFIGS / "simla/tiny.yaml", help="of SIMLA (default: %(default)s)")
    add("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="default: all")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="of the study (default: all)")
    add("--seeds", type=int, default=3, help="runs of everything (default: %(default)s)")
    add("--max_steps", type=int, help="of every run (default: the recipe's)")
    add(
        "--shares",
        type=float,
        nargs="+",
        default=[10, 25, 50],
        metavar="PERCENT",
        help="less data (default: 10 25 50)",
    )
    add("--data_variants", nargs="+", choices=VARIANTS, help="trained on less data (default: albef vicha)")
    add(
        "--keep", type=float, default=50, metavar="PERCENT", help="of the pairs, best or random (default: %(default)s)"
    )
    add("--encoder", help="that finds the best pairs (default: the baseline's model of the first seed)")
    add("--num_processes", type=int, default=1, help="that train together (default: %(default)s)")
    add("--corpus", nargs="*", default=[], metavar="NAME=VALUE", help="parameters of the demo corpus")
    add("--corpus_dir", type=Path, default=Path("outputs/demo_corpus"), help="default: %(default)s")
    arguments = parser.parse_args(argv[:at])
    arguments.options = argv[at + 1 :]
    own = [arguments.train, arguments.validation, arguments.test]
    if any(own) and not all(own):
        parser.error("--train, --validation and --test belong together: give all three, or none for the demo corpus")
    if arguments.image_root is not None and arguments.train is None:
        parser.error("--image_root belongs to --train, --validation and --test")
    if arguments.seeds < 1:
        parser.error("--seeds must be at least 1")
    if arguments.max_steps is not None and arguments.max_steps < 1:
        parser.error("--max_steps must be at least 1")
    if not all(0 < share < 100 for share in [*arguments.shares, arguments.keep]):
        parser.error("--shares and --keep are percentages above 0 and below 100")
    if arguments.data_variants is None:
        arguments.data_variants = [name for name in (BASELINE, "vicha") if name in arguments.variants]
    if "seconds" in arguments.parts and not ("samples" in arguments.parts and BASELINE in arguments.variants):
        parser.error(
            f"--parts seconds needs the part samples, and {BASELINE} among --variants: they say how many seconds"
        )
    if "filtered" in arguments.parts and arguments.encoder is None and "samples" not in arguments.parts:
        parser.error("--parts filtered needs --encoder, or the part samples, whose first model ranks the pairs")
    return arguments


class Study:
    """The runs that the command line asks for, one after the other, and the report after each."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments = arguments
        self.folder = arguments.output_dir
        self.recipes = {"vicha": read_yaml_mapping(arguments.recipe)}
        if "simla" in (*arguments.variants, *arguments.data_variants):
            self.recipes["simla"] = read_yaml_mapping(arguments.simla_recipe)
        self.steps = self._equal_steps()
        self.sources = self._find_sources()
        self.results: list[RunResult] = []

    def run(self) -> None:
        """Makes or reads every run, and writes the report."""
        self._require_concepts()
        total = self._number_of_runs()
        for number, run in enumerate(self._runs(), 1):
            known = run.finished_result() is not None
            print(f"== {number} of {total}: {run.folder.name}{', done' if known else ''}", flush=True)
            self.results.append(run.complete())
            if not known:
                self._write_report(total - number)
        self._write_report(0)
        print((self.folder / "ablation.md").read_text(encoding="utf-8"))
        print(f"Report: {self.folder / 'ablation.md'}\nPlot:   {self.folder / 'ablation.svg'}")

    def _find_sources(self) -> Sources:
        arguments = self.arguments
        if arguments.train is None:
            parameters = {
                name: yaml.safe_load(value) for name, _, value in (item.partition("=") for item in arguments.corpus)
            }
            corpus = build_demo_corpus(arguments.corpus_dir, **parameters)
            train, validation = corpus.annotations("train"), corpus.annotations("validation")
            tests = [corpus.annotations("test"), corpus.annotations("test_compositional")]
            tokenizer = arguments.tokenizer or corpus.tokenizer
        else:
            train, validation, tests = arguments.train, arguments.validation, arguments.test
            for path in (train, validation, *tests):
                if not path.is_file():
                    raise FileNotFoundError(f"{path} is not there: name an annotation file")
            if len({path.stem for path in tests}) < len(tests):
                raise ValueError(f"--test {' '.join(map(str, tests))}: files of one name; rename one")
            if arguments.image_root is not None:
                train, validation, *tests = (
                    write_with_root(
                        path, self.folder / "corpora" / f"given_{name}" / f"{path.stem}.jsonl", arguments.image_root
                    )
                    for name, path in [
                        ("train", train),
                        ("validation", validation),
                        *(("test", path) for path in tests),
                    ]
                )
            tokenizer = arguments.tokenizer or make_tokenizer(str(train), self.folder / "tokenizer")
        visual_tokenizer = None
        if "simla" in self.recipes:
            visual_tokenizer = arguments.visual_tokenizer or self._make_visual_tokenizer(str(train))
        paths = [str(Path(path).resolve()) for path in (train, validation, *tests)]
        named = [_absolute(source) for source in (tokenizer, visual_tokenizer)]
        return Sources(paths[0], paths[1], paths[2:], *named)

    def _make_visual_tokenizer(self, train: str) -> Path:
        model = self.recipes["simla"]["model"]
        vision = model["vision_config"]
        codes = model.get("config", {}).get("visual_vocab_size", VISUAL_CODES)
        return make_visual_tokenizer(
            train, self.folder / "visual_tokenizer", vision["image_size"], vision["patch_size"], codes
        )

    def _require_concepts(self) -> None:
        wanted = [name for name in self.arguments.variants if VARIANTS[name].reads_concepts]
        records = read_image_text_records(self.sources.train)
        if wanted and not any(record.concepts for record in records):
            raise ValueError(
                f"{self.sources.train} has no visual concepts, which {', '.join(wanted)} train with: make them with "
                "`vicha-hf concepts build`, or choose other --variants"
            )

    def _number_of_runs(self) -> int:
        arguments = self.arguments
        variants, less = len(arguments.variants), len(arguments.data_variants)
        numbers = {
            "samples": variants,
            "seconds": variants,
            "data": less * (len(arguments.shares) + 1),
            "filtered": 2 * less,
        }
        return arguments.seeds * sum(numbers[part] for part in arguments.parts)

    def _runs(self) -> Iterator[StudyRun]:
        """The runs in order. All methods of one seed come before the next seed, so that they see the machine alike."""
        arguments = self.arguments
        seeds = range(arguments.seeds)
        if "samples" in arguments.parts:
            for seed in seeds:
                for variant in arguments.variants:
                    yield self._planned("samples", variant, seed, self._steps(variant))
        if "seconds" in arguments.parts:
            steps = self._steps_in_equal_seconds()
            for seed in seeds:
                for variant in arguments.variants:
                    yield self._planned("seconds", variant, seed, steps[variant])
        if "data" in arguments.parts:
            for seed in seeds:
                for variant in arguments.data_variants:
                    for share in sorted(arguments.shares):
                        part = self.folder / "corpora" / f"random_{share:g}_records_seed_{seed}.jsonl"
                        train = write_random_records(self.sources.train, part, share, seed)
                        yield self._planned(
                            "data", variant, seed, self._steps(variant), f"random records {share:g} %", train
                        )
                    yield self._planned("data", variant, seed, self._steps(variant))
        if "filtered" in arguments.parts:
            yield from self._filtered_runs()

    def _filtered_runs(self) -> Iterator[StudyRun]:
        arguments, keep = self.arguments, self.arguments.keep
        encoder = arguments.encoder or self._planned("samples", self._first(), 0, self._steps(self._first())).folder
        if arguments.encoder is None:
            encoder = encoder / TRAINING_FOLDER / "model"
        best = write_best_pairs(self.sources.train, self.folder / "corpora", keep, str(encoder))
        for seed in range(arguments.seeds):
            file = self.folder / "corpora" / f"random_{keep:g}_pairs_seed_{seed}.jsonl"
            random = write_random_pairs(self.sources.train, file, keep, seed)
            for variant in arguments.data_variants:
                for data, train in ((f"random pairs {keep:g} %", random), (f"best pairs {keep:g} %", best)):
                    yield self._planned("filtered", variant, seed, self._steps(variant), data, train)

    def _first(self) -> str:
        return BASELINE if BASELINE in self.arguments.variants else self.arguments.variants[0]

    def _equal_steps(self) -> dict[str, int]:
        """Steps of every family's runs that see equal samples, each with the batch of its recipe."""
        arguments = self.arguments
        steps = arguments.max_steps or self.recipes["vicha"].get("max_steps")
        if steps is None:
            raise ValueError(
                f"{arguments.recipe} counts epochs, and equal samples are counted in steps: give --max_steps"
            )
        batches = {
            family: recipe["per_device_batch_size"] * recipe.get("gradient_accumulation_steps", 1)
            for family, recipe in self.recipes.items()
        }
        return {family: max(1, round(steps * batches["vicha"] / batch)) for family, batch in batches.items()}

    def _steps(self, variant: str) -> int:
        return self.steps[VARIANTS[variant].family]

    def _planned(
        self, part: str, variant: str, seed: int, steps: int, data: str = ALL, train: Path | None = None
    ) -> StudyRun:
        kind = VARIANTS[variant]
        recipe, sources = self.recipes[kind.family], self.sources
        changes = {
            **kind.changes,
            "seed": seed,
            "data.train": sources.train if train is None else str(train.resolve()),
            "data.validation": sources.validation,
            "data.tokenizer": sources.tokenizer,
        }
        if kind.family == "simla":
            changes["data.visual_tokenizer"] = sources.visual_tokenizer
        processes = self.arguments.num_processes
        if recipe["per_device_batch_size"] % processes:
            raise ValueError(
                f"per_device_batch_size={recipe['per_device_batch_size']} cannot be shared by {processes} processes: "
                "choose another --num_processes"
            )
        # The recipe's batch is that of all processes.
        changes["per_device_batch_size"] = recipe["per_device_batch_size"] // processes
        # One training on all data serves every part that has it with as many steps.
        name = "_".join([variant, *data.removesuffix(" %").split(), f"{steps}_steps", f"seed_{seed}"])
        return StudyRun(
            folder=self.folder / "runs" / name,
            variant=variant,
            part=part,
            data=data,
            seed=seed,
            recipe=resolve_recipe(recipe, changes, steps, recipe.get("max_steps") or steps),
            tests=sources.tests,
            reads_concepts=kind.reads_concepts,
            num_processes=processes,
            options=self.arguments.options,
        )

    def _steps_in_equal_seconds(self) -> dict[str, int]:
        """Steps of each method that take the seconds of the baseline's steps; decided once for a study."""
        file = self.folder / EQUAL_SECONDS_FILE
        decided = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        seconds = {(run.variant, run.seed): run.seconds_per_step for run in self.results if run.part == "samples"}
        for variant in self.arguments.variants:
            if variant not in decided:
                ratio = statistics.median(
                    seconds[variant, seed] / seconds[BASELINE, seed] for seed in range(self.arguments.seeds)
                )
                decided[variant] = max(1, round(self._steps(BASELINE) / ratio))
        write_whole_file(file, json.dumps(decided, indent=2) + "\n")
        return decided

    def _write_report(self, num_missing: int) -> None:
        rows = summarize(self.results)
        verdicts = [verdict for part in ("samples", "seconds") for verdict in judge(self.results, part)]
        settings = {
            "corpus": ", ".join(f"{name} {_shown(path)}" for name, path in self._named_sources()),
            "seeds": self.arguments.seeds,
            "recipes": ", ".join(
                str(path)
                for family, path in (("vicha", self.arguments.recipe), ("simla", self.arguments.simla_recipe))
                if family in self.recipes
            ),
        }
        if self.arguments.options:
            settings["further options"] = " ".join(self.arguments.options)
        page = markdown(rows, verdicts, settings, num_missing)
        write_whole_file(self.folder / "ablation.md", page)
        content = {
            "settings": settings,
            "runs_missing": num_missing,
            **as_json(rows, verdicts),
            "runs": [asdict(result) for result in self.results],
        }
        write_whole_file(self.folder / "ablation.json", json.dumps(content, indent=2) + "\n")
        draw(rows, Path(self.sources.tests[0]).stem, self.folder / "ablation.svg")

    def _named_sources(self) -> list[tuple[str, str]]:
        sources = self.sources
        return [
            ("train", sources.train),
            ("validation", sources.validation),
            *(("test", path) for path in sources.tests),
        ]


def _absolute(source) -> str | None:
    """A folder as an absolute path; a name on the Hub as it is."""
    return None if source is None else str(Path(source).resolve() if Path(source).exists() else source)


def _shown(path: str) -> str:
    """A file by its name and the beginning of its digest."""
    return f"{Path(path).name} ({hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]})"


if __name__ == "__main__":
    sys.exit(run_script(main))
