"""What an evaluation hands back, and the files that it becomes."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


METRICS_FILE = "metrics.json"
PREDICTIONS_FILE = "predictions.json"


@dataclass(frozen=True)
class TaskResult:
    """
    Args:
        metrics: by name; shares in %, 0 to 100. Empty where there was nothing to compare with.
        predictions: what the model answered, in the task's format (docs/evaluation.md).
    """

    metrics: dict[str, float]
    predictions: Any = field(repr=False)

    def write_predictions(self, folder: str | Path) -> Path:
        """Writes `predictions.json` and returns its path."""
        return _write(Path(folder) / PREDICTIONS_FILE, self.predictions)

    def write_metrics(self, folder: str | Path, **further) -> Path:
        """Writes `metrics.json` with the metrics and what else is given, and returns its path."""
        return _write(Path(folder) / METRICS_FILE, {**self.metrics, **further}, indent=2)


def _write(path: Path, content, indent: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False, indent=indent) + "\n", encoding="utf-8")
    return path
