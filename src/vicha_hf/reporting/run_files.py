"""Files of a run's output folder that a report reads."""

import json
from pathlib import Path


LOG_FILE = "log.jsonl"
# The settings, with every default.
SETTINGS_FILE = "config.yaml"


def read_log(output_dir: str | Path) -> list[dict]:
    """The records of a run, oldest first; a last line cut off by a kill is left out."""
    path = Path(output_dir) / LOG_FILE
    if not path.is_file():
        return []
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), start=1):
        if not line.endswith("\n"):
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}, is no JSON ({error}): take the line out.") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number}, is no record of a run: take the line out.")
        records.append(record)
    return records
