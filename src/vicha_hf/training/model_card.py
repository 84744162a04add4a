"""The card that a training run writes beside its model: what was trained on what, for how long, and what it reaches."""

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..data.source_license import common_license
from ..evaluation.card_results import CARD_FILE
from ..families import BEST_MODEL_FOLDER, MODEL_FOLDER, task_of, trained_task
from ..reporting.line_chart import line_chart
from ..reporting.model_card import method_name
from ..reporting.run_card import CURVE_FILE, RunCard, task_name
from ..reporting.run_files import read_log
from .arguments import TrainingArguments
from .evaluation_words import evaluation_words_of_run


_SVG_OPENING = '<svg xmlns="http://www.w3.org/2000/svg" '
_SVG_STYLE = (
    "<style>text{font:11px sans-serif;fill:#666}.grid{stroke:#ddd}.raw{fill:none;stroke:#9bbcf0}"
    ".line{fill:none;stroke:#2563eb;stroke-width:2}.end{fill:#2563eb}.reference{stroke:#888}</style>"
)


def card_files(
    model: PreTrainedModel, arguments: TrainingArguments, folder: Path, metrics: Mapping[str, float], **facts: Any
) -> dict[str, str]:
    """
    The card of a model of a finished run and the curve of the run's loss, by file name.

    Args:
        model: that was trained.
        arguments: of the run.
        folder: of the model, in the run's folder with its log.
        metrics: of the evaluation of these weights.
        facts: measured by the run, `{name: value}`.
    """
    curve = loss_curve(read_log(folder.parent))
    card = card_of_run(model, arguments, run_facts(arguments, **facts), metrics, folder, curve is not None)
    return {CARD_FILE: str(card.build())} | ({} if curve is None else {CURVE_FILE: curve})


def card_of_run(
    model: PreTrainedModel,
    arguments: TrainingArguments,
    facts: Mapping[str, Any],
    metrics: Mapping[str, float],
    folder: Path,
    with_curve: bool,
) -> RunCard:
    """
    The card of a finished run.

    Args:
        model: that was trained.
        arguments: of the run; `data` and `model` are read where they have them.
        facts: measured by the run, `{name: value}`, after the settings in the table of the training.
        metrics: of the evaluation of these weights.
        folder: of the model. A run publishes its last weights: the best model has no name on the Hub.
        with_curve: whether `CURVE_FILE` stands beside the card.
    """
    data, start = getattr(arguments, "data", None), getattr(arguments, "model", None)
    train = _as_list(getattr(data, "train", None))
    validation = _as_list(getattr(data, "validation", None))
    task = trained_task(model)
    starts = [getattr(start, name, None) for name in ("from_pretrained", "vision", "text")]
    starts = [source for source in starts if source]
    purpose = "pretrained on image-text pairs" if task == "pretraining" else f"trained for {task_name(task)}"
    hub_id = None if folder.name == BEST_MODEL_FOLDER else arguments.push_to_hub
    evaluated, command = task_of(model), ""
    if evaluated is not None and validation:
        # A reader of the Hub has neither this machine's folders nor a use for their names.
        named = _name_of if hub_id else _path_of
        sources = [named(source) for source in validation]
        command = shlex.join(
            evaluation_words_of_run(hub_id or str(folder), sources, evaluated, data, own_folders=not hub_id)
        )
    return RunCard(
        model=model,
        model_id=hub_id or str(folder),
        # Every run has a folder `model`: the run's own name tells them apart.
        name="" if hub_id else Path(arguments.output_dir).absolute().name,
        summary=f"A {method_name(model.config)} model with {model.num_parameters():,} parameters, {purpose} with vicha_hf.",
        license=arguments.license,
        base_models=tuple(source for source in starts if _is_hub_id(source)),
        datasets=tuple(dict.fromkeys(path for path in map(_path_of, train) if _is_hub_id(path))),
        data={
            "training": ", ".join(map(_name_of, train)) or "not named",
            "evaluation": ", ".join(map(_name_of, validation)) or "none",
            "licence of the training data": arguments.data_license
            or common_license(train)
            or "not stated; `--data_license TEXT` of the training script states it",
        },
        training={"start": ", ".join(map(_name_of, starts)) or "random weights", **facts},
        results=dict(metrics),
        dataset_name=", ".join(map(_name_of, validation)),
        command=command,
        curve=CURVE_FILE if with_curve else None,
    )


def loss_curve(log: Sequence[Mapping[str, Any]]) -> str | None:
    """The loss over the steps of a log as a whole SVG file; None where there is too little to draw."""
    points = [(entry["step"], entry["loss"]) for entry in log if math.isfinite(entry.get("loss", math.nan))]
    if len(points) < 2:
        return None
    steps, values = zip(*points, strict=True)
    chart = line_chart(steps, values, x_label="step", description="Loss over the training steps")
    opening, rest = chart.split(">", 1)
    return f"{opening.replace('<svg ', _SVG_OPENING, 1)}>{_SVG_STYLE}{rest}\n"


def run_facts(arguments: TrainingArguments, **measured: Any) -> dict[str, Any]:
    """The settings that a reader asks for first, and what was measured: {name: value}."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {
        **measured,
        "device": device,
        "precision": arguments.mixed_precision or "as accelerate launch says",
        "optimizer": arguments.optimizer,
        "peak learning rate": f"{arguments.learning_rate:g}",
        "schedule": f"{arguments.lr_schedule}, warm-up of {arguments.warmup_steps} steps",
        "weight decay": f"{arguments.weight_decay:g}",
        "seed": arguments.seed,
    }


def _as_list(value) -> list:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def _path_of(source) -> str:
    return str(source.get("path", source)) if isinstance(source, Mapping) else str(source)


def _name_of(source) -> str:
    """A source of the Hub as it is called, and one on the disk without its folders."""
    path = _path_of(source)
    if _is_hub_id(path):
        return path
    name, run = Path(path).name, Path(path).absolute().parent.name
    # Every run calls its models so: the run's own name tells them apart.
    return f"{run}/{name}" if name in (MODEL_FOLDER, BEST_MODEL_FOLDER) else name


def _is_hub_id(source: str) -> bool:
    """Whether a source is of the Hub: `organisation/name`, without a suffix, and nothing of that name on the disk."""
    return (
        source.count("/") == 1
        and not source.startswith((".", "/", "~"))
        and "." not in source
        and not Path(source).exists()
    )
