"""Checkpoints that are either whole or not there, and everything needed to continue a run exactly.

A checkpoint `checkpoint-00001200` holds what `Accelerator.save_state` writes (weights as safetensors, optimiser,
random states of every process) and `progress.json`. Configuration and processor lie beside them, for `from_pretrained`.
`manifest.json` holds the checksums of all files. The folder is written under a name that starts with a dot and renamed when complete. A run that
dies while saving therefore leaves nothing that could be taken for a checkpoint.

Weights are safetensors. The optimiser and the random states are pickles, read with `weights_only=True`.
"""

import dataclasses
import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, load, set_seed
from torch import nn

from ..whole_files import complete_folder, delete_folder, free_bytes, readable_size, size_of, write_whole_file
from .checkpoint_manifest import DamagedCheckpointError, find_damage, require_whole, write_manifest
from .data_order import DataOrder
from .run_settings import changed_settings


logger = logging.getLogger(__name__)

PROGRESS_FILE = "progress.json"
# Follows the name of a checkpoint that was found damaged, and is passed over from then on.
DAMAGED = ".damaged"
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
        evaluations_since_best: how many in a row were no better than the best.
        stopped_early: whether validation said that more training is of no use.
        stream_places: of the readers of each process, where the run trains on a stream.
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
    evaluations_since_best: int = 0
    stopped_early: bool = False
    stream_places: list[list[dict]] = field(default_factory=list)


@dataclass(frozen=True)
class Course:
    """Everything that a run which continues from a checkpoint must have in common with the one that made it.

    Args:
        order: the data order.
        settings: from [`~vicha_hf.training.run_settings.run_settings`].
        sharding: how weights and optimiser are split over the processes; their files differ by it.
    """

    order: DataOrder
    settings: dict[str, Any]
    sharding: str

    def as_json(self) -> dict[str, Any]:
        return {"data_order": dataclasses.asdict(self.order), "sharding": self.sharding, "settings": self.settings}


def sharding_of(accelerator: Accelerator) -> str:
    """ "none" where every process holds everything, whatever their number."""
    kind = accelerator.distributed_type
    if kind == DistributedType.DEEPSPEED:
        return f"ZeRO-{accelerator.state.deepspeed_plugin.zero_stage} on {accelerator.num_processes} processes"
    if kind == DistributedType.FSDP:
        return f"FSDP2 on {accelerator.num_processes} processes"
    return "none"


def save_checkpoint(
    accelerator: Accelerator,
    model: nn.Module,
    output_dir: Path,
    progress: Progress,
    course: Course,
    keep_last: int,
    save_companions: Callable[[Path], None] | None = None,
) -> Path:
    """Write a checkpoint of all that `accelerator.prepare` returned, then delete old ones. Every process must call it.

    Args:
        accelerator: holds model and optimiser.
        model: the same, unwrapped; it tells how much will be written.
        output_dir: the run's folder.
        progress: where the run stands.
        course: that the run follows.
        keep_last: how many checkpoints stay, this one included.
        save_companions: writes into the folder what `from_pretrained` needs besides the weights; called on one process.

    Raises:
        OutputFolderError: it could not be written; earlier checkpoints are intact.
    """
    folder = output_dir / f"checkpoint-{progress.step:08d}"
    needed = checkpoint_size(model, output_dir) if accelerator.is_main_process else 0
    with complete_folder(folder, accelerator, needed) as unfinished:
        with _silence_about_tied_weights():
            accelerator.save_state(str(unfinished))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            if save_companions is not None:
                save_companions(unfinished)
            content = {"progress": dataclasses.asdict(progress), **course.as_json()}
            write_whole_file(unfinished / PROGRESS_FILE, json.dumps(content, indent=2) + "\n")
            write_manifest(unfinished)
    if accelerator.is_main_process:
        others = [other for other in list_checkpoints(output_dir) if other != folder]
        for old in others[: max(0, len(others) - keep_last + 1)]:
            delete_folder(old)
    return folder


def checkpoint_size(model: nn.Module, output_dir: Path) -> int:
    """Bytes that the next checkpoint will take: as the last one, or estimated from the weights and AdamW's two moments."""
    if existing := list_checkpoints(output_dir):
        return size_of(existing[-1])
    weights = sum(tensor.numel() * tensor.element_size() for tensor in [*model.parameters(), *model.buffers()])
    trained = sum(
        parameter.numel() * parameter.element_size() for parameter in model.parameters() if parameter.requires_grad
    )
    return weights + 2 * trained


def warn_of_little_space(model: nn.Module, output_dir: Path, keep_last: int) -> None:
    """Say at the beginning that the disk will not hold what the run is going to save."""
    # An old checkpoint goes when the new one is whole. The weights of the end and of the best evaluation come on top.
    missing = max(1, keep_last + 1 - len(list_checkpoints(output_dir)))
    needed, free = missing * checkpoint_size(model, output_dir), free_bytes(output_dir)
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
    """The checkpoint that `--resume_from_checkpoint` means, with every file as it was saved; None to start anew.

    Args:
        output_dir: the run's folder.
        resume_from: "latest", a folder, or None. "latest" is the newest whole one: newer ones that are damaged get a name
            that ends in `.damaged`, and a warning.

    Raises:
        FileNotFoundError: the folder is not a complete checkpoint.
        FileExistsError: a new run would mix its checkpoints with those of an earlier one.
        DamagedCheckpointError: the checkpoint, or every checkpoint of the run, is damaged.
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
        return _newest_whole(output_dir, existing)
    folder = Path(resume_from)
    if not (folder / PROGRESS_FILE).is_file():
        fault = f"it has no {PROGRESS_FILE}" if folder.is_dir() else "it is not there"
        run = folder if (own := list_checkpoints(folder)) else output_dir
        known = ", ".join(str(path) for path in own or existing) or "none"
        raise FileNotFoundError(
            f"resume_from_checkpoint={resume_from!r} is not a complete checkpoint ({fault}): name one, or give latest for "
            f"the newest of --output_dir. Checkpoints in {run}: {known}."
        )
    require_whole(folder)
    return folder


def _newest_whole(output_dir: Path, existing: list[Path]) -> Path | None:
    damaged: dict[Path, str] = {}
    for folder in reversed(existing):
        damage = find_damage(folder)
        if damage is None:
            for other, what in damaged.items():
                logger.warning(
                    "%s is damaged: %s. It is passed over, and kept as %s.", other, what, other.name + DAMAGED
                )
                _set_aside(other)
            return folder
        damaged[folder] = damage
    if damaged:
        found = "; ".join(f"{folder.name}: {what}" for folder, what in damaged.items())
        raise DamagedCheckpointError(
            f"No checkpoint in {output_dir} is whole ({found}): choose another --output_dir to start anew."
        )
    return None


def _set_aside(folder: Path) -> None:
    """Under its own name it would count as the newest checkpoint until the run has come as far again."""
    target = folder.with_name(folder.name + DAMAGED)
    delete_folder(target)
    folder.rename(target)


def load_checkpoint(
    accelerator: Accelerator, folder: Path, course: Course, allow_changed_settings: bool = False
) -> Progress:
    """Put model, optimiser and random states back and return where the run stood. Every process must call it.

    The number of processes, the batch size and the accumulation may change as long as every optimiser step has the same
    samples. What is drawn in them then differs: the random states belong to the processes that there were.

    Args:
        accelerator: holds model and optimiser, prepared as they were when the checkpoint was made.
        folder: from [`find_checkpoint`].
        course: of the present run.
        allow_changed_settings: go on with a warning where settings or data differ.

    Raises:
        ValueError: the present run differs from the one that made the checkpoint; the message names all differences.
        RuntimeError: the random states could not be restored.
    """
    content = json.loads((folder / PROGRESS_FILE).read_text())
    _require_same_sharding(folder, content["sharding"], course.sharding)
    before = DataOrder(**content["data_order"])
    changes = course.order.changes_since(before) + changed_settings(content["settings"], course.settings)
    if changes and not allow_changed_settings:
        raise ValueError(
            f"{folder} belongs to a run with other settings: {'; '.join(changes)}. Use those of the interrupted run, go on "
            f"with the new ones by --allow_changed_settings true, or {_new_start(folder)}."
        )
    if changes:
        logger.warning("Going on with other settings than those of %s: %s.", folder, "; ".join(changes))
    same_processes = before.num_processes == course.order.num_processes
    accelerator.load_state(str(folder))
    progress = Progress(**content["progress"])
    if same_processes:
        random_states = folder / f"random_states_{accelerator.process_index}.pkl"
        # accelerate swallows every error while it restores them.
        saved = load(random_states, weights_only=True)["torch_manual_seed"]
        if not torch.equal(saved, torch.get_rng_state()):
            raise RuntimeError(f"the random states in {random_states} could not be restored: the file is damaged.")
    else:
        logger.warning(
            "%s was made by %d processes, and %d go on: the samples of each step are the same, what is drawn in them is not.",
            folder,
            before.num_processes,
            course.order.num_processes,
        )
        set_seed(course.order.seed + progress.step, device_specific=True)
    return progress


def _require_same_sharding(folder: Path, before: str, present: str) -> None:
    if before != present:
        raise ValueError(
            f"{folder} cannot be continued: its weights were split over the processes by {before!r}, and now it is {present!r}. "
            f"Launch as the interrupted run was launched, or {_new_start(folder)}."
        )


def _new_start(folder: Path) -> str:
    if (folder / "config.json").is_file():
        return f"start a new run from its weights (--model.from_pretrained {folder})"
    return "start a new run from the folder model/ or best_model/ (--model.from_pretrained)"


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
