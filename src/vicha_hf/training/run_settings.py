"""The settings that decide the course of a run, for comparing a resumed run with the one that made the checkpoint."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator
from torch import nn
from torch.utils.data import Dataset

from ..data.stream_dataset import StreamDataset
from .arguments import TrainingArguments


# Arguments that a resumed run may change: they are about where things lie, how often something is written and how fast it
# goes, or they are compared by what they name instead of by the name.
FREE_ARGUMENTS = frozenset(
    {
        "output_dir",
        "num_workers",
        "logging_steps",
        "evaluation_steps",
        "checkpoint_steps",
        "keep_last_checkpoints",
        "resume_from_checkpoint",
        "allow_changed_settings",
        "trackers",
        "push_to_hub",
        "push_checkpoints",
        "hub_private",
        "license",
        "data_license",
        "on_non_finite_loss",
        "max_consecutive_skips",
        "early_stopping_evaluations",
        "gradient_checkpointing",
        # The learning rate then takes another course, which is said when the run goes on.
        "num_epochs",
        "max_steps",
        # The order of the samples decides about these.
        "seed",
        "per_device_batch_size",
        "gradient_accumulation_steps",
        # Resolved by the accelerator, and by the model's configuration.
        "mixed_precision",
        "model.family",
        "model.from_pretrained",
        "model.weights_from",
        "model.vision",
        "model.text",
        "model.image_size",
        "model.config",
        "model.vision_config",
        "model.text_config",
        # Their content is compared.
        "data.train",
        "data.image_root",
        "data.on_bad_record",
        "data.allow_outside_root",
        "data.concept_index",
        "data.tokenizer",
        # They serve the evaluation.
        "data.validation",
        "data.evaluation_batch_size",
        "data.rerank_k",
    }
)
# What transformers writes into a configuration about the file rather than the model.
_ABOUT_THE_FILE = frozenset({"_name_or_path", "transformers_version", "architectures", "auto_map", "dtype"})


def run_settings(
    arguments: TrainingArguments, model: nn.Module, dataset: Dataset, processor: object, accelerator: Accelerator
) -> dict[str, Any]:
    """The settings of a run by dotted name, as JSON holds them.

    Args:
        arguments: of the run.
        model: unwrapped; its `config`, if it is one of transformers, counts.
        dataset: of the training; its `fingerprint()` counts, if it has one.
        processor: its tokenizer's vocabulary counts, if it has one.
        accelerator: tells the precision.
    """
    given = _flatten(dataclasses.asdict(arguments))
    settings = {name: value for name, value in given.items() if not _is_free(name)}
    settings["mixed_precision"] = accelerator.mixed_precision
    if hasattr(getattr(model, "config", None), "to_dict"):
        settings |= _flatten(_without_file_facts(model.config.to_dict()), "model.config.")
    if hasattr(dataset, "fingerprint"):
        settings["fingerprint of the training data"] = dataset.fingerprint()
    if isinstance(dataset, StreamDataset):
        settings["sharing of the stream"] = dataset.sharing
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is not None:
        vocabulary = json.dumps(tokenizer.get_vocab(), sort_keys=True)
        settings["fingerprint of the vocabulary"] = hashlib.sha256(vocabulary.encode()).hexdigest()[:16]
    # As they come back from a file: tuples are lists there.
    return json.loads(json.dumps(settings, default=str))


def changed_settings(before: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """A line for each setting that differs."""
    names = sorted({*before, *present})
    return [
        f"{name} was {_shown(before, name)} and is {_shown(present, name)}"
        for name in names
        if before.get(name) != present.get(name)
    ]


def _shown(settings: Mapping[str, Any], name: str) -> str:
    return repr(settings[name]) if name in settings else "not set"


def _flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in content.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _is_free(name: str) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:count]) in FREE_ARGUMENTS for count in range(1, len(parts) + 1))


def _without_file_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _without_file_facts(value) if isinstance(value, Mapping) else value
        for name, value in config.items()
        if name not in _ABOUT_THE_FILE
    }
