"""Checkpoints that are either whole or not there, and everything needed to continue a run exactly.

A checkpoint `checkpoint-00001200` holds what `Accelerator.save_state` writes (weights as safetensors, optimiser,
random states of every process) and `progress.json`. It is written under a name that starts with a dot and renamed when
complete. A run that dies while saving therefore leaves nothing that could be taken for a checkpoint.

Weights are safetensors. The optimiser and the random states are pickles, read with `weights_only=True`.
"""

import dataclasses
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import load

from ..whole_files import complete_folder, delete_folder, free_bytes, readable_size, size_of, write_whole_file
from .data_order import DataOrder


logger = logging.getLogger(__name__)

PROGRESS_FILE = "progress.json"
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass
class Progress:
    """Position of a run. Everything else about it follows from `step`.

    Args:
        step: optimiser steps taken.
        total_steps: optimiser steps that the run was to take.
        train_seconds: time spent training, over all interruptions.
        window_sums: sums of the quantities that the next record of the log averages, by name.
        window_steps: optimiser steps in these sums.
        best_metric: best value of the primary metric so far.
        best_step: when it was reached.
        metrics: of the last evaluation.
        skipped_steps: steps whose gradient was thrown away because it or a loss was not finite.
        consecutive_skips: how many of them were the last ones.
    """

    step: int = 0
    total_steps: int = 0
    train_seconds: float = 0.0
    window_sums: dict[str, float] = field(default_factory=dict)
    window_steps: int = 0
    best_metric: float | None = None
    best_step: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    skipped_steps: int = 0
    consecutive_skips: int = 0


def save_checkpoint(
    accelerator: Accelerator, output_dir: Path, progress: Progress, order: DataOrder, keep_last: int
) -> Path:
    """Write a checkpoint of all that `accelerator.prepare` returned, then delete old ones. Every process must call it.

    Args:
        accelerator: holds model and optimiser.
        output_dir: the run's folder.
        progress: where the run stands.
        order: the data order that the run follows.
        keep_last: how many checkpoints stay, this one included.

    Raises:
        OutputFolderError: it could not be written; earlier checkpoints are intact.
    """
    folder = output_dir / f"checkpoint-{progress.step:08d}"
    needed = checkpoint_size(accelerator, output_dir) if accelerator.is_main_process else 0
    with complete_folder(folder, accelerator, needed) as unfinished:
        with _silence_about_tied_weights():
            accelerator.save_state(str(unfinished))
        if accelerator.is_main_process:
            content = {"progress": dataclasses.asdict(progress), "data_order": dataclasses.asdict(order)}
            write_whole_file(unfinished / PROGRESS_FILE, json.dumps(content, indent=2) + "\n")
    if accelerator.is_main_process:
        others = [other for other in list_checkpoints(output_dir) if other != folder]
        for old in others[: max(0, len(others) - keep_last + 1)]:
            delete_folder(old)
    return folder


def checkpoint_size(accelerator: Accelerator, output_dir: Path) -> int:
    """Bytes that the next checkpoint will take: as the last one, or estimated from the weights and AdamW's two moments."""
    if existing := list_checkpoints(output_dir):
        return size_of(existing[-1])
    models = [accelerator.unwrap_model(model) for model in accelerator._models]
    weights = sum(
        tensor.numel() * tensor.element_size()
        for model in models
        for tensor in [*model.parameters(), *model.buffers()]
    )
    trained = sum(
        parameter.numel() * parameter.element_size()
        for model in models
        for parameter in model.parameters()
        if parameter.requires_grad
    )
    return weights + 2 * trained


def warn_of_little_space(accelerator: Accelerator, output_dir: Path, keep_last: int) -> None:
    """Say at the beginning that the disk will not hold what the run is going to save."""
    # An old checkpoint goes when the new one is whole. The weights of the end and of the best evaluation come on top.
    missing = max(1, keep_last + 1 - len(list_checkpoints(output_dir)))
    needed, free = missing * checkpoint_size(accelerator, output_dir), free_bytes(output_dir)
    if free < needed:
        logger.warning(
            "%s has %s free; %d more checkpoints will need about %s.",
            output_dir,
            readable_size(free),
            missing,
            readable_size(needed),
        )


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    if not output_dir.is_dir():
        return []
    found = [(int(match[1]), path) for path in output_dir.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found) if (path / PROGRESS_FILE).is_file()]


def find_checkpoint(output_dir: Path, resume_from: str | None) -> Path | None:
    """The checkpoint that `--resume_from_checkpoint` means; None to start anew.

    Args:
        output_dir: the run's folder.
        resume_from: "latest", a folder, or None.

    Raises:
        FileNotFoundError: the folder is not a complete checkpoint.
        FileExistsError: a new run would mix its checkpoints with those of an earlier one.
    """
    existing = list_checkpoints(output_dir)
    if resume_from is None:
        if existing:
            raise FileExistsError(
                f"{output_dir} holds checkpoints of an earlier run ({existing[-1].name} and others): continue it with "
                "--resume_from_checkpoint latest, or choose another --output_dir."
            )
        return None
    if resume_from == "latest":
        return existing[-1] if existing else None
    folder = Path(resume_from)
    if not (folder / PROGRESS_FILE).is_file():
        known = ", ".join(path.name for path in existing) or "none"
        raise FileNotFoundError(
            f"resume_from_checkpoint={resume_from!r} is not a complete checkpoint (it has no {PROGRESS_FILE}). "
            f"Checkpoints in {output_dir}: {known}."
        )
    return folder


def load_checkpoint(accelerator: Accelerator, folder: Path, order: DataOrder) -> Progress:
    """Put model, optimiser and random states back and return where the run stood. Every process must call it.

    Args:
        accelerator: holds model and optimiser, prepared as they were when the checkpoint was made.
        folder: a complete checkpoint.
        order: the data order of the present run.

    Raises:
        ValueError: the present run would see its data in another order than the one that made the checkpoint.
        FileNotFoundError: the random states of a process are missing.
        RuntimeError: they could not be restored.
    """
    content = json.loads((folder / PROGRESS_FILE).read_text())
    present = dataclasses.asdict(order)
    changed = [
        f"{name} was {before!r} and is {present[name]!r}"
        for name, before in content["data_order"].items()
        if before != present[name]
    ]
    if changed:
        raise ValueError(
            f"{folder} cannot be continued, because the data would come in another order: {'; '.join(changed)}. "
            "Use the settings of the interrupted run, or start a new one from its weights (model.from_pretrained)."
        )
    random_states = folder / f"random_states_{accelerator.process_index}.pkl"
    # accelerate itself goes on without a word when this file is missing.
    if not random_states.is_file():
        raise FileNotFoundError(f"{random_states} is missing: {folder} is not a complete checkpoint.")
    accelerator.load_state(str(folder))
    # accelerate also swallows every error while it restores them.
    saved = load(random_states, weights_only=True)["torch_manual_seed"]
    if not torch.equal(saved, torch.get_rng_state()):
        raise RuntimeError(f"the random states in {random_states} could not be restored: the file is damaged.")
    return Progress(**content["progress"])


@contextmanager
def _silence_about_tied_weights() -> Iterator[None]:
    """Accelerate warns at every checkpoint that tied weights are written once; loading is strict and would notice."""
    source = logging.getLogger("accelerate.utils.other")
    level = source.level
    source.setLevel(logging.ERROR)
    try:
        yield
    finally:
        source.setLevel(level)
