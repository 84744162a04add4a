"""Facts of the demo for its report and its model's card; every number is read from the run itself."""

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from launching import available_cores
from transformers import PreTrainedModel

from vicha_hf.concepts import ConceptSelector
from vicha_hf.data.annotations import read_image_text_records
from vicha_hf.demo_corpus import DemoCorpus
from vicha_hf.demo_corpus.found_concepts import CONCEPTS_PER_IMAGE, concept_quality, nouns_shown
from vicha_hf.reporting.model_card import architecture_facts
from vicha_hf.training.run_log import read_log


FOUND_BY_MODEL = "the model itself"


def concept_qualities(
    found: Sequence[Sequence[str]], given: Sequence[Sequence[str]], corpus: DemoCorpus, steps: int
) -> dict[str, dict[str, float]]:
    """
    Quality, in percent, of the test images' concepts by who has found them.

    Args:
        found: by the model itself, for each image.
        given: that the model trained with; by ALBEF where it trained for `steps` before.
        corpus: of the images.
        steps: of ALBEF; 0 without.
    """
    annotation_file = corpus.annotations("test")
    shown = nouns_shown(annotation_file)
    generated = [record.concepts for record in read_image_text_records(annotation_file)]
    by_finder = {FOUND_BY_MODEL: found, "the corpus's generator": generated}
    if steps:
        by_finder[f"ALBEF after {steps} steps"] = given
    return {finder: concept_quality(concepts, shown) for finder, concepts in by_finder.items()}


def concept_facts(
    quality: Mapping[str, Mapping[str, float]], corpus: DemoCorpus, selector: ConceptSelector
) -> dict[str, object]:
    """The same for a reader, beside a random choice."""
    shown = nouns_shown(corpus.annotations("test"))
    number, words = len(selector.index.concepts), set(selector.index.concepts)
    in_vocabulary = sum(len(nouns & words) for nouns in shown)
    chance = {
        "concept_precision_at_5": 100 * in_vocabulary / (number * len(shown)),
        "concept_recall_at_15": 100 * min(1, 15 / number) * in_vocabulary / sum(map(len, shown)),
    }
    return {"vocabulary": f"{number} nouns of the training captions"} | {
        f"found by {finder}: precision of 5, recall of 15": "{:.1f} %, {:.1f} %".format(*measured.values())
        for finder, measured in {**quality, "chance": chance}.items()
    }


def bootstrap_facts(run: Path, seconds: float) -> dict[str, object]:
    """Cost of the ALBEF run that found the concepts."""
    trained = json.loads((run / "metrics.json").read_text())
    return {
        "steps of ALBEF before": trained["step"],
        "seconds of ALBEF before": trained["train_seconds"],
        "seconds with the bootstrap": seconds + trained["train_seconds"],
    }


def concepts_given(model: PreTrainedModel, corpus: DemoCorpus, steps: int) -> str:
    """A sentence for the model's card."""
    if not model.config.use_concepts:
        return ""
    if steps:
        return (
            f" Each image comes with {CONCEPTS_PER_IMAGE} visual concepts that ALBEF found in it after {steps} steps."
        )
    concept = corpus.metadata["parameters"]["concept"]
    return (
        f" Each image comes with {concept['concepts_per_image']} visual concepts as a noisy extractor would give them "
        f"(miss rate {concept['miss_rate']:g}, look-alike rate {concept['lookalike_rate']:g})."
    )


def described_concepts(model: PreTrainedModel, steps: int) -> str:
    if not model.config.use_concepts:
        return ""
    return (
        f" and visual concepts that ALBEF found in them after {steps} steps" if steps else " and noisy visual concepts"
    )


def optimizer_fact(settings: Mapping) -> str:
    if settings["optimizer"] == "muon":
        return f"Muon for the matrices of hidden layers (learning rate {settings['muon_learning_rate']:g}), else AdamW"
    return {"adamw": "AdamW", "adamw_8bit": "8-bit AdamW"}[settings["optimizer"]]


def teacher_fact(start_step: int | None) -> str:
    if start_step is None:
        return "takes no part"
    return f"from step {start_step}" if start_step else "from the start"


def facts_of_run(
    model: PreTrainedModel, settings: Mapping, corpus: DemoCorpus, run: Path, has_given_concepts: bool
) -> dict[str, dict[str, object]]:
    """Facts that a reader needs to judge, or repeat, the run; every number is read from the run itself."""
    log = [record for record in read_log(run) if "loss" in record]
    trained = json.loads((run / "metrics.json").read_text())
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    parameters, splits = corpus.metadata["parameters"], corpus.metadata["splits"]
    facts = {
        "Training": {
            "steps": trained["step"],
            "epochs": trained["epoch"],
            "seconds": trained["train_seconds"],
            "samples per second (median)": sorted(record["samples_per_second"] for record in log)[len(log) // 2],
            "batch of all processes": trained["samples_per_step"],
            "processes": trained["num_processes"],
            "optimizer": optimizer_fact(settings),
            "learning rate": f"{settings['learning_rate']:g} to {settings['min_learning_rate']:g}",
            "warm-up steps": settings["warmup_steps"],
            "momentum teacher": teacher_fact(settings["teacher_start_step"]),
            "weight decay": settings["weight_decay"],
            "seed": settings["seed"],
            "candidates re-ranked": settings["data"]["rerank_k"],
        },
        "Model": architecture_facts(model.config, num_parameters),
        "Corpus": {
            **{f"{name} images": f"{split['scenes']:,}" for name, split in splits.items()},
            **{name: value for name, value in parameters.items() if not isinstance(value, Mapping | int)},
            "seed": parameters["seed"],
            **parameters["scene"],
            **parameters["caption"],
        },
        "Software and machine": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("vicha_hf", "torch", "transformers", "accelerate", "datasets")},
            "machine": platform.machine(),
            "CPU cores": available_cores(),
            "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        },
    }
    if model.config.use_concepts:
        facts["Training"]["share of the concepts per step"] = settings["data"]["concept_fraction"]
    if model.config.use_concepts and has_given_concepts:
        noise, words_alone = splits["test"]["concept_noise"], splits["test"]["retrieval_by_concepts_alone"]
        facts["Visual concepts"] = {
            **parameters["concept"],
            "share of the shown things that they name (test)": noise["recall"],
            "share of the words that are shown (test)": noise["precision"],
            "R@1 by the words alone, image to captions (test)": words_alone["r1_i2t"],
            "R@1 by the words alone, caption to images (test)": words_alone["r1_t2i"],
        }
    return facts


def tiles(metrics: Mapping) -> list[tuple[str, str]]:
    chance = f"chance {metrics['chance_r1']:.1f} %"
    return [
        (f"{metrics['r1_i2t']:.1f} %", f"R@1, image to captions ({chance})"),
        (f"{metrics['r1_t2i']:.1f} %", f"R@1, caption to images ({chance})"),
        (
            f"{metrics['train_seconds']:.0f} s",
            f"training, {metrics['bootstrap_steps'] + metrics['train_steps']:,} steps",
        ),
        (f"{metrics['num_parameters'] / 1e6:.1f} M", "parameters"),
    ]
