"""Every task head, and the second family, under the two topologies that split the weights: the same steps as under DDP."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


# Minutes of two processes: `make test-slow`.
pytestmark = pytest.mark.slow

HEADS = ("both reconstructions", "single stream", "retrieval", "entailment", "vqa", "reasoning", "text-assignment")
TOPOLOGIES = ("multi_gpu", "deepspeed_zero3", "fsdp2")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    root = tmp_path_factory.mktemp("heads")
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    worker = str(Path(__file__).with_name("heads_worker.py"))
    completed = subprocess.run(
        [sys.executable, "-m", *launcher, worker, str(root), ",".join(TOPOLOGIES)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert completed.returncode == 0, completed.stderr[-6000:]
    return {name: torch.load(root / f"{name}.pt", weights_only=True) for name in TOPOLOGIES}


@pytest.mark.parametrize("topology", TOPOLOGIES[1:])
@pytest.mark.parametrize("head", HEADS)
def test_equals_ddp(results, topology, head):
    assert results[topology]["world_size"] == 2
    observed, expected = results[topology][head], results["multi_gpu"][head]
    for record, other in zip(observed["log"], expected["log"], strict=True):
        assert record == pytest.approx(other, rel=2e-5, abs=1e-6)
    assert observed["state"].keys() == expected["state"].keys()
    # Where a gradient is not well above AdamW's eps of 1e-8 it is rounding noise, which becomes a visible part of a step.
    for name, size in expected["smallest gradients"].items():
        noise = size < 1e-7
        observed["state"][name][noise] = expected["state"][name][noise]
    worst = {name: (observed["state"][name] - value).abs().max().item() for name, value in expected["state"].items()}
    assert max(worst.values()) < 2e-5, sorted(worst.items(), key=lambda item: -item[1])[:5]


@pytest.mark.parametrize("head", HEADS)
def test_most_gradients_are_no_noise(results, head):
    sizes = torch.cat([size.flatten() for size in results["multi_gpu"][head]["smallest gradients"].values()])
    assert (sizes[sizes > 0] > 1e-7).float().mean() > 0.9
