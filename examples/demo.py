"""Pretrain a tiny ViCHA on the demo corpus, evaluate it on held-out pictures, and write a model folder and a report.

`make demo` runs this after installing everything:

    python examples/demo.py

It builds the corpus (once), calls `accelerate launch examples/pretrain.py`, and fills outputs/demo with `model/` (for
`from_pretrained`), `metrics.json`, `report.html` and `pretraining/` (the run with its log). Options of the corpus and,
behind `--`, of the pretraining script can be given too:

    python examples/demo.py --corpus num_train=500 miss_rate=0.2 -- --num_epochs 3
"""

import argparse
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
import yaml

from vicha_hf import ViChaForRetrieval, ViChaProcessor
from vicha_hf.data.annotations import Annotations, read_image_text_records
from vicha_hf.data.datasets_retrieval import RetrievalDataset
from vicha_hf.data.demo_corpus import DemoCorpus, build_demo_corpus
from vicha_hf.data.transforms import EvaluationTransform
from vicha_hf.evaluation.retrieval import RetrievalScores, score_retrieval
from vicha_hf.reporting.gallery import CaptionQuery, PictureQuery, best_candidates, evenly_spaced
from vicha_hf.reporting.model_card import architecture_facts, build_model_card
from vicha_hf.reporting.recall_table import format_recall_table
from vicha_hf.reporting.result import Result
from vicha_hf.reporting.run_report import RunReport
from vicha_hf.training.run_log import read_log


ROOT = Path(__file__).parents[1]
QUERIES_SHOWN, CANDIDATES_SHOWN = 6, 5
GALLERIES = {"test": "Held-out pictures", "test_compositional": "Unseen compositions"}
CONDITIONS = {True: "with visual concepts", False: "without concepts"}


def main(argv: Sequence[str] | None = None) -> None:
    started = time.perf_counter()
    arguments = parse_arguments(argv)
    output = arguments.output_dir
    print("== 1. Demo corpus", flush=True)
    corpus = build_demo_corpus(arguments.corpus_dir, **corpus_parameters(arguments.corpus))
    print("== 2. Pretraining", flush=True)
    run = pretrain(arguments, corpus)
    print("== 3. Retrieval on held-out pictures", flush=True)
    model = ViChaForRetrieval.from_pretrained(run / "model").eval()
    processor = ViChaProcessor.from_pretrained(run / "model")
    settings = yaml.safe_load((run / "config.yaml").read_text())
    galleries = {split: Gallery(corpus, split, processor) for split in GALLERIES}
    k = settings["data"]["rerank_k"]
    scores, results = {}, {}
    for split, with_concepts in itertools.product(GALLERIES, CONDITIONS):
        gallery, key = galleries[split], (split, with_concepts)
        print(f"{gallery.title}, {CONDITIONS[with_concepts]}", flush=True)
        scores[key] = score_retrieval(model, processor, gallery.dataset, k=k, with_concepts=with_concepts)
        results[key] = gallery.result(scores[key], with_concepts)
    facts = facts_of_run(model, settings, corpus, run)
    print("== 4. Model folder, metrics and report", flush=True)
    metrics = {
        **results["test", True].metrics,
        "train_seconds": facts["Training"]["seconds"],
        "train_steps": facts["Training"]["steps"],
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "conditions": {result.name: result.metrics for result in results.values()},
        "versions": facts["Software and machine"],
    }
    write_model(output / "model", model, processor, arguments.model_id, facts, corpus, list(results.values()))
    metrics["total_seconds"] = time.perf_counter() - started
    (output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    report = RunReport(
        title="ViCHA on the demo corpus",
        summary=f"A ViCHA of {metrics['num_parameters'] / 1e6:.1f} M parameters, pretrained from random weights on "
        f"{corpus.metadata['splits']['train']['scenes']:,} composed pictures with captions and noisy visual concepts.",
        tiles=tiles(metrics),
        results=list(results.values()),
        log=read_log(run),
        caption_queries=galleries["test"].caption_queries(scores["test", True], k),
        picture_queries=galleries["test"].picture_queries(scores["test", True], k),
        facts=facts,
        config=model.config.to_dict(),
        credits=f"Pictures: {corpus.metadata['attribution']}",
    ).write(output / "report.html")

    print()
    print(format_recall_table({f"{result.title}, {result.remark}": result.metrics for result in results.values()}))
    print(
        f"\nTrained {metrics['train_seconds']:.0f} s, {metrics['total_seconds']:.0f} s in all."
        f"\nModel:   {output / 'model'}\nMetrics: {output / 'metrics.json'}\nReport:  {report}"
    )


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    argv = sys.argv[1:] if argv is None else list(argv)
    own, _, pretraining = partition(argv, "--")
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="What follows -- goes to examples/pretrain.py."
    )
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/demo"), help="default: %(default)s")
    parser.add_argument("--corpus_dir", type=Path, default=Path("outputs/demo_corpus"), help="default: %(default)s")
    parser.add_argument("--config", type=Path, default=ROOT / "examples/configs/vicha/tiny.yaml")
    parser.add_argument("--model_id", default="org/vicha-tiny", help="repository named in the model card")
    parser.add_argument(
        "--corpus", nargs="*", default=[], metavar="NAME=VALUE", help="parameters of build_demo_corpus"
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


def pretrain(arguments: argparse.Namespace, corpus: DemoCorpus) -> Path:
    """Runs `accelerate launch examples/pretrain.py` to its end, its progress on this terminal; returns its folder."""
    run = arguments.output_dir / "pretraining"
    # The run of an earlier demo: a new one must not mix with it.
    shutil.rmtree(run, ignore_errors=True)
    hardware = "single_gpu" if torch.cuda.is_available() else "cpu"
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", ROOT / f"examples/accelerate_configs/{hardware}.yaml"),
        *("--num_cpu_threads_per_process", torch.get_num_threads()),
        *(ROOT / "examples/pretrain.py", "--config", arguments.config, "--output_dir", run),
        *("--data.train", corpus.annotations("train"), "--data.validation", corpus.annotations("validation")),
        *("--data.tokenizer", corpus.tokenizer),
        *arguments.pretraining,
    ]
    command = [str(part) for part in command]
    print("accelerate launch " + " ".join(command[3:]), flush=True)
    subprocess.run(command, check=True)
    return run


class Gallery:
    """One split of the corpus: the dataset that is scored, and the pictures and words that a reader sees."""

    def __init__(self, corpus: DemoCorpus, split: str, processor: ViChaProcessor):
        self.split, self.title = split, GALLERIES[split]
        self.records: Annotations = read_image_text_records(corpus.annotations(split))
        transform = EvaluationTransform.from_image_processor(processor.image_processor)
        self.dataset = RetrievalDataset(self.records, transform)

    def result(self, scores: RetrievalScores, with_concepts: bool) -> Result:
        metrics = scores.metrics(self.dataset.captions_of_image, self.dataset.image_of_caption)
        name = self.split if with_concepts else f"{self.split}_without_concepts"
        return Result(name, self.title, CONDITIONS[with_concepts], metrics)

    def caption_queries(self, scores: RetrievalScores, k: int) -> list[CaptionQuery]:
        queries = []
        for caption in evenly_spaced(len(self.dataset.texts), QUERIES_SHOWN):
            own = [self.dataset.image_of_caption[caption]]
            shown, is_right, rank = best_candidates(scores.rerank_t2i[caption], own, CANDIDATES_SHOWN, k)
            pictures = [self.records[image].load_image() for image in shown]
            queries.append(CaptionQuery(self.dataset.texts[caption], pictures, is_right, rank))
        return queries

    def picture_queries(self, scores: RetrievalScores, k: int) -> list[PictureQuery]:
        queries = []
        for image in evenly_spaced(len(self.dataset), QUERIES_SHOWN):
            own = self.dataset.captions_of_image[image]
            shown, is_right, rank = best_candidates(scores.rerank_i2t[image], own, CANDIDATES_SHOWN, k)
            record, captions = self.records[image], [self.dataset.texts[caption] for caption in shown]
            queries.append(PictureQuery(record.load_image(), list(record.concepts), captions, is_right, rank))
        return queries


def facts_of_run(
    model: ViChaForRetrieval, settings: Mapping, corpus: DemoCorpus, run: Path
) -> dict[str, dict[str, object]]:
    """What a reader needs to judge, or repeat, the run; every number is read from the run itself."""
    log = [record for record in read_log(run) if "loss" in record]
    trained = json.loads((run / "metrics.json").read_text())
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    parameters, splits = corpus.metadata["parameters"], corpus.metadata["splits"]
    noise, words_alone = splits["test"]["concept_noise"], splits["test"]["retrieval_by_concepts_alone"]
    return {
        "Training": {
            "steps": trained["step"],
            "epochs": trained["epoch"],
            "seconds": trained["train_seconds"],
            "samples per second (median)": sorted(record["samples_per_second"] for record in log)[len(log) // 2],
            "batch": settings["per_device_batch_size"] * settings["gradient_accumulation_steps"],
            "learning rate": f"{settings['learning_rate']:g} to {settings['min_learning_rate']:g}",
            "warm-up steps": settings["warmup_steps"],
            "weight decay": settings["weight_decay"],
            "seed": settings["seed"],
            "share of the concepts per step": settings["data"]["concept_fraction"],
            "candidates re-ranked": settings["data"]["rerank_k"],
        },
        "Model": architecture_facts(model.config, num_parameters),
        "Corpus": {
            **{f"{name} pictures": f"{split['scenes']:,}" for name, split in splits.items()},
            **{name: value for name, value in parameters.items() if not isinstance(value, Mapping | int)},
            "seed": parameters["seed"],
            **parameters["scene"],
            **parameters["caption"],
        },
        "Visual concepts": {
            **parameters["concept"],
            "share of the shown things that they name (test)": noise["recall"],
            "share of the words that are shown (test)": noise["precision"],
            "R@1 by the words alone, picture to captions (test)": words_alone["r1_i2t"],
            "R@1 by the words alone, caption to pictures (test)": words_alone["r1_t2i"],
        },
        "Software and machine": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("vicha_hf", "torch", "transformers", "accelerate", "datasets")},
            "machine": platform.machine(),
            "CPU cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        },
    }


def tiles(metrics: Mapping) -> list[tuple[str, str]]:
    chance = f"chance {metrics['chance_r1']:.1f} %"
    return [
        (f"{metrics['r1_i2t']:.1f} %", f"R@1, picture to captions ({chance})"),
        (f"{metrics['r1_t2i']:.1f} %", f"R@1, caption to pictures ({chance})"),
        (f"{metrics['train_seconds']:.0f} s", f"training, {metrics['train_steps']:,} steps"),
        (f"{metrics['num_parameters'] / 1e6:.1f} M", "parameters"),
    ]


def write_model(
    folder: Path,
    model: ViChaForRetrieval,
    processor: ViChaProcessor,
    model_id: str,
    facts: Mapping[str, Mapping[str, object]],
    corpus: DemoCorpus,
    results: list[Result],
) -> None:
    """The folder that `from_pretrained` and `push_to_hub` want, without teacher and queue."""
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    train, concept = corpus.metadata["splits"]["train"], corpus.metadata["parameters"]["concept"]
    card = build_model_card(
        ROOT / "model_cards/template.md",
        model_id=model_id,
        summary="A tiny ViCHA, pretrained from random weights on the demo corpus of the library `vicha_hf`: a "
        "demonstration that every objective works together, of no use on photographs.",
        architecture=facts["Model"],
        data=f"{train['scenes']:,} composed pictures with {train['captions']:,} captions. Each picture comes with "
        f"{concept['concepts_per_image']} visual concepts as a noisy extractor would give them (miss rate "
        f"{concept['miss_rate']:g}, look-alike rate {concept['lookalike_rate']:g}). Drawings: "
        f"{corpus.metadata['attribution']}.",
        training=facts["Training"] | facts["Software and machine"],
        dataset_type="vicha-demo-corpus",
        dataset_name="the demo corpus",
        results=results,
    )
    card.save(folder / "README.md")


if __name__ == "__main__":
    main()
