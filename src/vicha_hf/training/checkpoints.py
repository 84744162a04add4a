"""Checkpoints that are either whole or not there, and everything needed to continue a run exactly.

A checkpoint `checkpoint-00001200` holds what `Accelerator.save_state` writes (weights as safetensors, optimiser,
random states of every process) and `progress.json`. It is written under a name that starts with a dot and renamed
when complete, so that a run which dies while saving leaves nothing that could be taken for a checkpoint.
"""

import dataclasses
import json
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import Accelerator

from .data_order import DataOrder


PROGRESS_FILE = "progress.json"
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass
class Progress:
    """Where a run stands. Everything else about its position follows from `step`.

    Args:
        step: optimiser steps taken.
        total_steps: optimiser steps that the run was to take.
        train_seconds: time spent training, over all interruptions.
        window_sums: sums of the quantities that the next record of the log averages, by name.
        window_steps: optimiser steps in these sums.
        best_metric: best value of the primary metric so far.
        best_step: when it was reached.
        metrics: of the last evaluation.
    """

    step: int = 0
    total_steps: int = 0
    train_seconds: float = 0.0
    window_sums: dict[str, float] = field(default_factory=dict)
    window_steps: int = 0
    best_metric: float | None = None
    best_step: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)


@contextmanager
def complete_folder(folder: Path, accelerator: Accelerator) -> Iterator[Path]:
    """A new folder to write into that takes the place of `folder` when the block ends without an error.

    Every process must enter; all may write.
    """
    unfinished = _unfinished_name(folder)
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    accelerator.wait_for_everyone()
    yield unfinished
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _delete(folder)
        unfinished.rename(folder)
    accelerator.wait_for_everyone()


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
    """
    folder = output_dir / f"checkpoint-{progress.step:08d}"
    with complete_folder(folder, accelerator) as unfinished:
        with _silence_about_tied_weights():
            accelerator.save_state(str(unfinished))
        if accelerator.is_main_process:
            content = {"progress": dataclasses.asdict(progress), "data_order": dataclasses.asdict(order)}
            (unfinished / PROGRESS_FILE).write_text(json.dumps(content, indent=2) + "\n")
    if accelerator.is_main_process:
        others = [other for other in list_checkpoints(output_dir) if other != folder]
        for old in others[: max(0, len(others) - keep_last + 1)]:
            _delete(old)
    return folder


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


def _unfinished_name(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.unfinished")


def _delete(folder: Path) -> None:
    """Delete so that a half-deleted folder is never seen under its name."""
    if folder.exists():
        leaving = _unfinished_name(folder).with_suffix(".deleted")
        shutil.rmtree(leaving, ignore_errors=True)
        folder.rename(leaving)
        shutil.rmtree(leaving)
