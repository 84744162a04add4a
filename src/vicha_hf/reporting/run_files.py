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
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
