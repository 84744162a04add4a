"""Result of an evaluation, and the files that it becomes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.read_report import REJECTS_FILE, AnnotationReport
from ..folder_lock import FolderLock
from ..whole_files import (
    require_result_file,
    require_writable,
    require_writable_file,
    write_whole_file,
    write_whole_files,
)


METRICS_FILE = "metrics.json"
PREDICTIONS_FILE = "predictions.json"


@dataclass(frozen=True)
class TaskResult:
    """
    Args:
        metrics: by name; shares in %, 0 to 100. Empty where there was nothing to compare with.
        predictions: what the model answered, in the task's format (docs/evaluation.md).
        reading: how many records were read and left out, where that is known.
    """

    metrics: dict[str, float]
    predictions: Any = field(repr=False)
    reading: AnnotationReport | None = field(default=None, repr=False)

    def write_predictions(self, folder: str | Path) -> Path:
        """Writes `predictions.json` and returns its path."""
        path = Path(folder) / PREDICTIONS_FILE
        write_whole_file(path, _as_json(self.predictions))
        return path


@dataclass
class ResultFiles:
    """
    Destination of an evaluation's result. Making it finds out whether that can be written, before the evaluation, and keeps
    other runs out of the folder until the result is written. Of several processes one may make it.

    Args:
        output_dir: folder of `metrics.json` and `predictions.json`; None writes neither.
        metrics_file: a file for the metrics alone; None writes none.
        inputs: files that the evaluation reads, which a result never replaces.

    Raises:
        OutputFolderError: a place that cannot be written to.
        FolderInUseError: another run writes to the folder.
    """

    output_dir: str | Path | None = None
    metrics_file: str | Path | None = None
    inputs: Sequence[object] = ()
    _lock: FolderLock | None = field(default=None, init=False, repr=False)

    def __post_init__(self):
        if self.output_dir is not None:
            require_writable(Path(self.output_dir))
            self._lock = FolderLock(Path(self.output_dir))
            for name in (METRICS_FILE, PREDICTIONS_FILE):
                require_writable_file(Path(self.output_dir) / name)
        if self.metrics_file is not None:
            require_result_file(Path(self.metrics_file), self.inputs)

    def write(self, result: TaskResult, **facts) -> None:
        """
        Writes all files, each whole, or none: a result that was there before stays as it was.

        Args:
            result: of the evaluation.
            facts: what else `metrics.json` says.

        Raises:
            OutputFolderError: writing failed.
        """
        texts = {}
        if self.output_dir is not None:
            folder = Path(self.output_dir)
            if result.reading is not None and result.reading.num_skipped:
                facts["rejected_records"] = dict(result.reading.causes)
                texts[folder / REJECTS_FILE] = result.reading.rejects_as_jsonl()
            texts[folder / PREDICTIONS_FILE] = _as_json(result.predictions)
            texts[folder / METRICS_FILE] = _as_json({**result.metrics, **facts}, indent=2)
        if self.metrics_file is not None:
            texts[Path(self.metrics_file)] = _as_json(result.metrics, indent=2)
        write_whole_files(texts)
        if self._lock is not None:
            self._lock.release()


def _as_json(content, indent: int | None = None) -> str:
    return json.dumps(content, ensure_ascii=False, indent=indent) + "\n"
