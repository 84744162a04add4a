"""Run by a launcher in two processes: two_process_worker.py FILES FOLDER."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from test_trainer import whole_and_interrupted


def main(files: Path, folder: Path) -> None:
    tokenizer = folder / f"tokenizer_{os.environ['RANK']}"
    tokenizer.mkdir()
    whole, cut = whole_and_interrupted(files, folder, "vicha", "retrieval", tokenizer, ddp_backend="gloo")
    expected, observed = whole.state_dict(), cut.state_dict()
    report = {
        "processes": dist.get_world_size(),
        "different": [name for name, value in expected.items() if not torch.equal(value, observed[name])],
        "teacher": any("teacher" in name for name in expected),
    }
    (folder / f"report_{dist.get_rank()}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
