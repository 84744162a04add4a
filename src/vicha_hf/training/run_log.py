"""Log of a run's numbers: `log.jsonl` in the output folder, and accelerate's experiment trackers."""

import json
from pathlib import Path

from accelerate import Accelerator

from ..evaluation.beside_chance import changing
from ..reporting.run_files import LOG_FILE, read_log
from ..whole_files import append_line, write_whole_file


# What a record says of the machine rather than of the training; the rest is reproducible.
MACHINE_FIELDS = ("samples_per_second", "eta_seconds", "memory_gib", "train_seconds")


class RunLog:
    """One JSON object per line. Training records hold every loss by name; evaluations stand under `evaluation`.

    Args:
        accelerator: its trackers must have been initialised; only the main process writes.
        output_dir: folder of `log.jsonl`.
        step: optimiser steps already taken; records after it, left by an interrupted run, are dropped.
    """

    def __init__(self, accelerator: Accelerator, output_dir: Path, step: int):
        self.accelerator = accelerator
        self.path = output_dir / LOG_FILE
        if accelerator.is_main_process:
            kept = [record for record in read_log(output_dir) if record["step"] <= step]
            write_whole_file(self.path, "".join(json.dumps(record) + "\n" for record in kept))

    def training(self, step: int, epoch: float, values: dict[str, float]) -> None:
        """Record means since the last record."""
        self._append({"step": step, "epoch": epoch, **values})
        self.accelerator.log({f"train/{name}": value for name, value in values.items()}, step=step)

    def evaluation(self, step: int, epoch: float, metrics: dict[str, float]) -> None:
        """Record the metrics of an evaluation; the trackers get those that can change in a run."""
        self._append({"step": step, "epoch": epoch, "evaluation": metrics})
        self.accelerator.log({f"evaluation/{name}": value for name, value in changing(metrics).items()}, step=step)

    def _append(self, record: dict) -> None:
        if self.accelerator.is_main_process:
            append_line(self.path, json.dumps(record))
