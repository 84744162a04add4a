"""Run by a launcher in two processes: whole, interrupted and resumed runs, and one without randomness.

two_process_worker.py FOLDER
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from stand_in import Samples, StandIn, WithoutRandomness, stand_in_arguments, stand_in_loop


class TerminatedOnOneProcess(Samples):
    """Only one process is told to stop; both must."""

    def __getitem__(self, index):
        if self.epoch == 1 and os.environ.get("RANK") == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return super().__getitem__(index)


# The learning rate does not depend on the length of the run.
SHARED = {"lr_schedule": "published", "warmup_steps": 0, "checkpoint_steps": 2}


def run(folder, dataset=None, model_class=StandIn, **changes):
    arguments = stand_in_arguments(folder, per_device_batch_size=2, **changes)
    loop = stand_in_loop(arguments, dataset=dataset, model_class=model_class)
    return loop, loop.run()


def main(root: Path) -> None:
    whole, _ = run(root / "whole")
    accelerator = whole.accelerator
    _, cut = run(root / "cut", TerminatedOnOneProcess())
    resumed, _ = run(root / "cut", resume_from_checkpoint="latest")
    same = all(
        torch.equal(tensor, resumed.unwrapped_model.state_dict()[name])
        for name, tensor in whole.unwrapped_model.state_dict().items()
    )

    plain, _ = run(root / "plain", model_class=WithoutRandomness, gradient_accumulation_steps=2)
    torch.save(plain.unwrapped_model.state_dict(), root / f"plain_{accelerator.process_index}.pt")
    # For one process to go on with.
    run(root / "shared", model_class=WithoutRandomness, gradient_accumulation_steps=2, max_steps=2, **SHARED)
    report = {
        "num_processes": accelerator.num_processes,
        "stopped_at": cut.step,
        "same_after_resuming": same,
        "losses_seen": len(whole.unwrapped_model.alphas),
    }
    (root / f"report_{accelerator.process_index}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
