"""Pretrain a tiny model on the demo corpus, evaluate it on held-out images, and write a model folder and a report.

`make demo` runs this after installing everything:

    python examples/demo.py

It builds the corpus (once), calls `accelerate launch examples/pretrain.py`, and fills outputs/demo with `model/` (for
`from_pretrained`), `metrics.json`, `report.html` and `pretraining/` (the run with its log). That is ViCHA with concepts that it
earns: a short ALBEF run (`bootstrap/`) finds them in the images (`concepts/`) and gives its weights. The recipe decides:

    python examples/demo.py --config examples/configs/vicha/albef_tiny.yaml --output_dir outputs/demo_albef
    python examples/demo.py --config examples/configs/simla/tiny.yaml --output_dir outputs/demo_simla

Options of the corpus and, behind `--`, of the pretraining script can be given too:

    python examples/demo.py --corpus num_train=500 miss_rate=0.2 -- --num_epochs 3
"""

import argparse
import itertools
import json
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from demo_facts import (
    FOUND_BY_MODEL,
    bootstrap_facts,
    concept_facts,
    concept_qualities,
    concepts_given,
    described_concepts,
    facts_of_run,
    tiles,
)
from launching import launch_pretraining
from transformers import AutoProcessor, PreTrainedModel

from vicha_hf.arguments import parse_arguments as parse_training_arguments
from vicha_hf.command_parser import CommandParser
from vicha_hf.concepts import ConceptCorpus, ConceptSelector
from vicha_hf.data.annotations import Annotations, read_image_text_records
from vicha_hf.data.datasets_retrieval import RetrievalDataset
from vicha_hf.data.transforms import EvaluationTransform
from vicha_hf.demo_corpus import DemoCorpus, build_demo_corpus
from vicha_hf.demo_corpus.builder import SPLITS
from vicha_hf.demo_corpus.found_concepts import (
    own_selector,
    write_found_concepts,
)
from vicha_hf.evaluation.found_concepts import find_concepts
from vicha_hf.evaluation.recall_table import format_recall_table
from vicha_hf.evaluation.retrieval import RetrievalScores, score_retrieval
from vicha_hf.families import PROCESSORS, head_class, load_finetuned
from vicha_hf.mistakes import run_script
from vicha_hf.models.processing_vision_text import VisionTextProcessor
from vicha_hf.reporting.attention_strip import attend_words, attention_section_html
from vicha_hf.reporting.gallery import CaptionQuery, ImageQuery, best_candidates, evenly_spaced
from vicha_hf.reporting.keyword_table import has_keyword_head, keyword_section_html, predict_keywords
from vicha_hf.reporting.model_card import build_model_card, method_name
from vicha_hf.reporting.result import Result
from vicha_hf.reporting.run_card import CURVE_FILE
from vicha_hf.reporting.run_report import RunReport
from vicha_hf.training.model_card import loss_curve
from vicha_hf.training.pretraining import DEFAULT_FAMILY, PretrainingArguments
from vicha_hf.training.run_log import read_log
from vicha_hf.visual_tokens.fitting import fit_patch_tokenizer
from vicha_hf.whole_files import OutputFolderError, require_writable, write_whole_file
from vicha_hf.yaml_files import read_yaml_mapping


ROOT = Path(__file__).parents[1]
QUERIES_SHOWN, CANDIDATES_SHOWN, CAPTIONS_ATTENDED = 6, 5, 3
# Of a visual tokenizer fitted to the corpus, unless the recipe's configuration says `visual_vocab_size`.
VISUAL_CODES = 256
# The folder of the run that finds the concepts, and its usual length.
BOOTSTRAP, BOOTSTRAP_STEPS = "bootstrap", 200
# The folder of the run whose model is the demo's.
PRETRAINING = "pretraining"
GALLERIES = {"test": "Held-out images", "test_compositional": "Unseen compositions"}
# What the model reads besides the image, and how the metrics call it.
CONDITIONS = {
    "given": ("", "with visual concepts"),
    "found": ("_found_concepts", "with concepts that it finds itself"),
    "none": ("_without_concepts", "without concepts"),
}


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    started = time.perf_counter()
    arguments = parse_arguments(argv, prog)
    output = arguments.output_dir
    require_writable(output)
    require_own(output)
    # A recipe that is not there is told before the corpus is built.
    read_yaml_mapping(arguments.config)
    print("== 1. Demo corpus", flush=True)
    corpus = build_demo_corpus(arguments.corpus_dir, **corpus_parameters(arguments.corpus))
    print("== 2. Pretraining", flush=True)
    annotations = {split: corpus.annotations(split) for split in SPLITS}
    steps = bootstrap_steps(arguments, corpus)
    if steps:
        annotations = bootstrap_concepts(arguments, corpus, steps)
    run = pretrain(arguments, corpus, annotations)
    print("== 3. Retrieval on held-out images", flush=True)
    model = load_finetuned("retrieval", str(run / "model"))
    processor = AutoProcessor.from_pretrained(run / "model")
    # What the model reads at its best comes first.
    conditions = tuple(CONDITIONS) if model.config.use_concepts else ("none",)
    best = ("test", conditions[0])
    settings = yaml.safe_load((run / "config.yaml").read_text())
    selector = own_selector(read_image_text_records(annotations["train"]), model, processor)
    if model.config.use_concepts:
        # The model's folder carries it: `processor(images=..., concepts="auto")`.
        model.concept_index = selector.index
    galleries = {
        split: Gallery(annotations[split], split, processor, model.config.use_concepts, selector)
        for split in GALLERIES
    }
    k = settings["data"]["rerank_k"]
    scores, results = {}, {}
    for split, condition in itertools.product(GALLERIES, conditions):
        gallery, key = galleries[split], (split, condition)
        print(f"{gallery.title}, {CONDITIONS[condition][1]}", flush=True)
        dataset = gallery.found_dataset if condition == "found" else gallery.dataset
        scores[key] = score_retrieval(model, processor, dataset, k=k, with_concepts=condition != "none")
        results[key] = gallery.result(scores[key], condition)
    facts = facts_of_run(model, settings, corpus, run, has_given_concepts=not steps)
    print("== 4. Model folder, metrics and report", flush=True)
    quality = concept_qualities(galleries["test"].found_concepts, galleries["test"].given_concepts, corpus, steps)
    facts["Concepts against the objects of the test images"] = concept_facts(quality, corpus, selector)
    if steps:
        facts["Training"] |= bootstrap_facts(arguments.output_dir / BOOTSTRAP, facts["Training"]["seconds"])
    metrics = {
        **results[best].metrics,
        **quality[FOUND_BY_MODEL],
        "concepts": quality,
        "bootstrap_steps": steps,
        "train_seconds": facts["Training"].get("seconds with the bootstrap", facts["Training"]["seconds"]),
        "train_steps": facts["Training"]["steps"],
        "train_processes": facts["Training"]["processes"],
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "conditions": {result.name: result.metrics for result in results.values()},
        "versions": facts["Software and machine"],
    }
    sections = model_sections(run / "model", processor, galleries["test"])
    method = method_name(model.config)
    model_id = arguments.model_id or f"org/{method.lower()}-tiny"
    command = shlex.join(["python", "examples/demo.py", *(sys.argv[1:] if argv is None else argv)])
    curve = loss_curve(read_log(run))
    write_model(
        output / "model", model, processor, model_id, facts, corpus, list(results.values()), steps, command, curve
    )
    metrics["total_seconds"] = time.perf_counter() - started
    write_whole_file(output / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    report = RunReport(
        title=f"{method} on the demo corpus",
        summary=f"{method} with {metrics['num_parameters'] / 1e6:.1f} M parameters, pretrained from random weights on "
        f"{corpus.metadata['splits']['train']['scenes']:,} composed images with captions"
        f"{described_concepts(model, steps)}.",
        tiles=tiles(metrics),
        results=list(results.values()),
        log=read_log(run),
        caption_queries=galleries["test"].caption_queries(scores[best], k),
        image_queries=galleries["test"].image_queries(scores[best], k),
        sections=sections,
        facts=facts,
        config=model.config.to_dict(),
        credits=f"Images: {corpus.metadata['attribution']}",
    ).write(output / "report.html")

    print()
    print(format_recall_table({f"{result.title}, {result.remark}": result.metrics for result in results.values()}))
    print(
        f"\nTrained {metrics['train_seconds']:.0f} s, {metrics['total_seconds']:.0f} s in all."
        f"\nModel:   {output / 'model'}\nMetrics: {output / 'metrics.json'}\nReport:  {report}"
    )


def parse_arguments(argv: Sequence[str] | None, prog: str | None = None) -> argparse.Namespace:
    argv = sys.argv[1:] if argv is None else list(argv)
    own, _, pretraining = partition(argv, "--")
    parser = CommandParser(
        prog=prog, description=__doc__.splitlines()[0], epilog="What follows -- goes to examples/pretrain.py."
    )
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/demo"), help="default: %(default)s")
    parser.add_argument("--corpus_dir", type=Path, default=Path("outputs/demo_corpus"), help="default: %(default)s")
    parser.add_argument("--config", type=Path, default=ROOT / "examples/configs/vicha/tiny.yaml")
    parser.add_argument(
        "--model_id", help="repository named in the model card (default: org/METHOD-tiny, such as org/vicha-tiny)"
    )
    parser.add_argument("--num_processes", type=int, default=1, help="that train together (default: %(default)s)")
    parser.add_argument(
        "--corpus", nargs="*", default=[], metavar="NAME=VALUE", help="parameters of build_demo_corpus"
    )
    parser.add_argument(
        "--bootstrap_steps",
        type=int,
        metavar="STEPS",
        help="first train ALBEF so many steps, let it find the concepts in the images, and go on from its weights "
        f"(default: {BOOTSTRAP_STEPS} for a model that reads concepts); 0 reads the corpus's own",
    )
    arguments = parser.parse_args(own)
    arguments.pretraining = pretraining
    return arguments


def partition(items: list[str], separator: str) -> tuple[list[str], list[str], list[str]]:
    at = items.index(separator) if separator in items else len(items)
    return items[:at], items[at : at + 1], items[at + 1 :]


def corpus_parameters(assignments: Sequence[str]) -> dict[str, object]:
    """`["num_train=500", "miss_rate=0.2"]` -> `{"num_train": 500, "miss_rate": 0.2}`."""
    return {name: yaml.safe_load(value) for name, _, value in (item.partition("=") for item in assignments)}


def bootstrap_steps(arguments: argparse.Namespace, corpus: DemoCorpus) -> int:
    """Steps of ALBEF before the training; none where they are not asked for and the model reads no concepts."""
    if arguments.bootstrap_steps is not None:
        return arguments.bootstrap_steps
    given = {split: corpus.annotations(split) for split in SPLITS}
    options = pretraining_options(arguments, corpus, given, arguments.output_dir, num_processes=1)
    model = parse_training_arguments(PretrainingArguments, options)[0].model
    starts_new = model.from_pretrained is None and model.weights_from is None
    reads_concepts = model.family in (None, "vicha") and model.config.get("use_concepts", True)
    return BOOTSTRAP_STEPS if starts_new and reads_concepts else 0


def bootstrap_concepts(arguments: argparse.Namespace, corpus: DemoCorpus, steps: int) -> dict[str, Path]:
    """
    Has a briefly trained ALBEF find the concepts of every split, as a lab without CLIP would. The training goes on from
    its weights.

    Returns:
        The annotation file of each split.
    """
    first = argparse.Namespace(**vars(arguments) | {"config": ROOT / "examples/configs/vicha/albef_tiny.yaml"})
    first.pretraining = [*arguments.pretraining, "--max_steps", str(steps)]
    first.pretraining += ["--evaluation_steps", str(steps)]
    given = {split: corpus.annotations(split) for split in SPLITS}
    run = pretrain(first, corpus, given, BOOTSTRAP)
    arguments.pretraining = [*arguments.pretraining, "--model.weights_from", str(run / "model")]
    model = load_finetuned("retrieval", str(run / "model"))
    processor = AutoProcessor.from_pretrained(run / "model")
    selector = own_selector(read_image_text_records(given["train"]), model, processor)
    print(f"Concepts out of {len(selector.index.concepts)} nouns of the captions", flush=True)
    folder = arguments.output_dir / "concepts"
    return {split: write_found_concepts(file, folder / f"{split}.jsonl", selector) for split, file in given.items()}


def pretrain(
    arguments: argparse.Namespace, corpus: DemoCorpus, annotations: Mapping[str, Path], name: str = PRETRAINING
) -> Path:
    """Runs `accelerate launch examples/pretrain.py` to its end, its progress on this terminal; returns its folder."""
    run = arguments.output_dir / name
    options = pretraining_options(arguments, corpus, annotations, run, arguments.num_processes)
    settings, _ = parse_training_arguments(PretrainingArguments, options)
    if settings.data.visual_tokenizer == str(corpus.visual_tokenizer) and not corpus.visual_tokenizer.exists():
        fit_visual_tokenizer(settings, corpus)
    # The run of an earlier demo: a new one must not mix with it.
    shutil.rmtree(run, ignore_errors=True)
    status = launch_pretraining(options, arguments.num_processes)
    if status:
        sys.exit(status)
    return run


def pretraining_options(
    arguments: argparse.Namespace,
    corpus: DemoCorpus,
    annotations: Mapping[str, Path],
    run: Path,
    num_processes: int,
) -> list[str]:
    """The command line of examples/pretrain.py."""
    recipe = read_yaml_mapping(arguments.config)
    batch_size = recipe["per_device_batch_size"]
    if batch_size % num_processes:
        raise ValueError(
            f"per_device_batch_size={batch_size} of {arguments.config} cannot be shared by {num_processes} processes: "
            "choose another --num_processes"
        )
    options = {
        "config": arguments.config,
        "output_dir": run,
        # The recipe's batch is that of all processes.
        "per_device_batch_size": batch_size // num_processes,
        "data.train": annotations["train"],
        "data.validation": annotations["validation"],
        "data.tokenizer": corpus.tokenizer,
    }
    if recipe["model"].get("family") == "simla":
        options["data.visual_tokenizer"] = corpus.visual_tokenizer
    named = itertools.chain.from_iterable((f"--{name}", str(value)) for name, value in options.items())
    return [*named, *arguments.pretraining]


def fit_visual_tokenizer(settings: PretrainingArguments, corpus: DemoCorpus) -> None:
    """Fits a visual tokenizer as `vicha-hf visual-tokenizer` does, for the model's images and patches."""
    family = settings.model.family or DEFAULT_FAMILY
    config_class = head_class(family, "pretraining").config_class
    vision = config_class.sub_configs["vision_config"](**settings.model.vision_config)
    image_processor = PROCESSORS[family][0](size={"height": vision.image_size, "width": vision.image_size})
    tokenizer = fit_patch_tokenizer(
        read_image_text_records(corpus.annotations("train")),
        image_processor,
        patch_size=vision.patch_size,
        vocab_size=settings.model.config.get("visual_vocab_size", VISUAL_CODES),
    )
    tokenizer.save_pretrained(corpus.visual_tokenizer)
    print(f"{tokenizer.vocab_size} visual codes fitted: {corpus.visual_tokenizer}", flush=True)


class Gallery:
    """One split of the corpus: the dataset that is scored, and the images and words that a reader sees."""

    def __init__(
        self,
        annotation_file: Path,
        split: str,
        processor: VisionTextProcessor,
        use_concepts: bool,
        selector: ConceptSelector,
    ):
        self.split, self.title = split, GALLERIES[split]
        self.use_concepts = use_concepts
        self.records: Annotations = read_image_text_records(annotation_file)
        transform = EvaluationTransform.from_image_processor(processor.image_processor)
        self.dataset = RetrievalDataset(self.records, transform, use_concepts=use_concepts)
        found = find_concepts(self.records, selector, progress=False)
        self.given_concepts = [record.concepts for record in self.records]
        self.found_concepts = [record.concepts for record in found]
        self.found_dataset = RetrievalDataset(found, transform, use_concepts=use_concepts)
        described = [record.fields for record in ConceptCorpus(str(annotation_file)).records]
        # For each image what it shows, such as ["red car", "tree"], whatever its captions and concepts name.
        self.shown = [
            sorted({" ".join(filter(None, (item["colour"], item["noun"]))) for item in record["objects"]})
            for record in described
        ]

    def result(self, scores: RetrievalScores, condition: str) -> Result:
        metrics = scores.metrics(self.dataset.captions_of_image, self.dataset.image_of_caption)
        suffix, remark = CONDITIONS[condition]
        return Result(f"{self.split}{suffix}", self.title, remark, metrics)

    def caption_queries(self, scores: RetrievalScores, k: int) -> list[CaptionQuery]:
        queries = []
        for caption in evenly_spaced(len(self.dataset.texts), QUERIES_SHOWN):
            own = [self.dataset.image_of_caption[caption]]
            shown, is_right, rank = best_candidates(scores.rerank_t2i[caption], own, CANDIDATES_SHOWN, k)
            images = [self.records[image].load_image() for image in shown]
            queries.append(CaptionQuery(self.dataset.texts[caption], images, is_right, rank))
        return queries

    def image_queries(self, scores: RetrievalScores, k: int) -> list[ImageQuery]:
        queries = []
        for image in evenly_spaced(len(self.dataset), QUERIES_SHOWN):
            own = self.dataset.captions_of_image[image]
            shown, is_right, rank = best_candidates(scores.rerank_i2t[image], own, CANDIDATES_SHOWN, k)
            captions = [self.dataset.texts[caption] for caption in shown]
            concepts = self.concepts(image) or []
            queries.append(ImageQuery(self.records[image].load_image(), concepts, captions, is_right, rank))
        return queries

    def concepts(self, image: int) -> list[str] | None:
        """The visual concepts that the model reads with an image; None for a model that reads none."""
        return list(self.records[image].concepts) if self.use_concepts else None


def model_sections(folder: Path, processor: VisionTextProcessor, gallery: Gallery) -> list[str]:
    """Sections of the report about the pretrained model, besides retrieval."""
    sections = []
    pretrained = load_finetuned("pretraining", str(folder))
    if has_keyword_head(pretrained):
        rows = evenly_spaced(len(gallery.dataset), QUERIES_SHOWN)
        images = [gallery.records[row].load_image() for row in rows]
        shown = [gallery.shown[row] for row in rows]
        sections.append(keyword_section_html(predict_keywords(pretrained, processor, images, shown)))
    rows = evenly_spaced(len(gallery.dataset), CAPTIONS_ATTENDED)
    strips = attend_words(
        load_finetuned("grounding", str(folder)),
        processor,
        [gallery.records[row].load_image() for row in rows],
        [gallery.dataset.texts[gallery.dataset.captions_of_image[row][0]] for row in rows],
        [gallery.concepts(row) for row in rows] if gallery.use_concepts else None,
    )
    return [*sections, attention_section_html(strips)]


def require_own(output: Path) -> None:
    """Raises an `OutputFolderError` for results that the demo, which would replace them, has not made."""
    others = [name for name in ("model", "metrics.json", "report.html") if (output / name).exists()]
    if others and not (output / PRETRAINING).is_dir():
        raise OutputFolderError(
            f"{output}/{others[0]} is there already and not the demo's: name another --output_dir."
        )


def write_model(
    folder: Path,
    model: PreTrainedModel,
    processor: VisionTextProcessor,
    model_id: str,
    facts: Mapping[str, Mapping[str, object]],
    corpus: DemoCorpus,
    results: list[Result],
    steps: int,
    command: str,
    curve: str | None,
) -> None:
    """The folder that `from_pretrained` and `push_to_hub` want, without teacher and queue."""
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    train = corpus.metadata["splits"]["train"]
    method = method_name(model.config)
    card = build_model_card(
        model_id=model_id,
        summary=f"A tiny {method}, pretrained from random weights on the demo corpus of the library `vicha_hf`. It "
        "demonstrates that all objectives work together, and is of no use on photographs.",
        architecture=facts["Model"],
        data=f"{train['scenes']:,} composed images with {train['captions']:,} captions."
        f"{concepts_given(model, corpus, steps)} Drawings: {corpus.metadata['attribution']}.",
        training=facts["Training"] | facts["Software and machine"],
        dataset_type="vicha-demo-corpus",
        dataset_name="the demo corpus",
        results=results,
        family=method.lower(),
        # The drawings ask for more, which the card says where it names them.
        license="apache-2.0",
        language="en",
        command=command,
        curve=None if curve is None else CURVE_FILE,
    )
    card.save(folder / "README.md")
    if curve is not None:
        (folder / CURVE_FILE).write_text(curve, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run_script(main))
