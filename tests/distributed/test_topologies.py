"""The example script under every committed topology, in two real processes, does exactly what it does under DDP.

Weights, teacher, queue, losses and the norm of the gradient after five steps, a run resumed from the middle, and what
DeepSpeed's own tool makes of its checkpoints.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from colour_images import write_colour_images
from tiny_tokenizer import build_tiny_tokenizer

from vicha_hf.training.checkpoints import list_checkpoints
from vicha_hf.training.run_log import MACHINE_FIELDS, read_log


sys.path.insert(0, str(Path(__file__).parent))
from topologies import CONFIGS, OVERRIDES, SHARDED, TOPOLOGIES


ROOT, WORKER = Path(__file__).parents[2], Path(__file__).with_name("topology_worker.py")
STEPS, BATCH = 5, 3
# No dropout; weights so large that what a model attends to matters.
MODEL = [
    "--model.vision_config={hidden_size: 32, intermediate_size: 64, num_hidden_layers: 3, num_attention_heads: 2, "
    "image_size: 32, initializer_range: 0.2}",
    "--model.text_config={hidden_size: 32, intermediate_size: 64, num_hidden_layers: 4, num_attention_heads: 2, "
    "fusion_layer: 2, initializer_range: 0.2, hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}",
    "--model.config.projection_dim=16",
    "--model.config.mim_decoder_hidden_size=32",
    # It wraps within the run.
    "--model.config.queue_size=20",
    "--model.config.queue_warmup_batches=0",
    "--model.config.distillation_alpha=0.4",
    "--model.config.mim_fraction=1",
    # Clamped from the first step on, where it is kept and not only where it is read.
    "--model.config.temperature_init=0.4999",
    "--temperature_lr_scale=1",
    # Muon wants whole matrices.
    "--optimizer=adamw",
]


@dataclass(frozen=True)
class Run:
    reports: list[dict]
    state: dict[str, dict[str, torch.Tensor]]
    log: list[dict]
    checkpoint: Path

    @classmethod
    def read(cls, folder: Path) -> "Run":
        return cls(
            [json.loads((folder / f"report_{rank}.json").read_text()) for rank in range(2)],
            torch.load(folder / "state.pt", weights_only=True),
            read_log(folder),
            list_checkpoints(folder / "run")[0],
        )


@pytest.fixture(scope="module")
def script_arguments(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    records = [
        {
            "image": f"{index}.png",
            "caption": f"a {colour} dog on the grass",
            "concepts": [colour, "dog", "grass"][: index % 4],
        }
        for index, colour in enumerate(write_colour_images(root, 12))
    ]
    (root / "train.json").write_text(json.dumps(records))
    (root / "validation.json").write_text(json.dumps(records[:5]))
    build_tiny_tokenizer(root).save_pretrained(root / "tokenizer")
    return [
        f"--config={ROOT / 'examples/configs/vicha/tiny.yaml'}",
        f"--data.train={root / 'train.json'}",
        f"--data.validation={root / 'validation.json'}",
        f"--data.tokenizer={root / 'tokenizer'}",
        f"--per_device_batch_size={BATCH}",
        f"--max_steps={STEPS}",
        "--logging_steps=1",
        "--checkpoint_steps=3",
        "--evaluation_steps=4",
        # Of five images one process has three, the other two.
        "--data.evaluation_batch_size=1",
        "--learning_rate=1e-3",
        "--warmup_steps=0",
        "--teacher_start_step=0",
        "--hard_negative_steps=0",
        "--float32_matmul_precision=highest",
        "--mixed_precision=null",
        "--trackers=[]",
        *MODEL,
    ]


def start(launcher: list[str], arguments: list[str]) -> None:
    completed = subprocess.run(
        [sys.executable, "-m", *launcher, str(WORKER), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert completed.returncode == 0, completed.stderr[-6000:]


@pytest.fixture(scope="module")
def runs(script_arguments, tmp_path_factory):
    """All topologies one after the other in one pair of processes: starting a pair takes longer than a run."""
    root = tmp_path_factory.mktemp("topologies")
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    start(launcher, [str(root), ",".join(TOPOLOGIES), *script_arguments])
    return {name: Run.read(root / name) for name in TOPOLOGIES}


def differences(observed: dict, expected: dict) -> dict[str, float]:
    assert observed.keys() == expected.keys()
    return {
        name: (value.double() - expected[name].double()).abs().max().item()
        for name, value in observed.items()
        # A key's bias shifts all scores of a query alike, which softmax ignores: its gradient is rounding noise, which
        # Adam blows up to full steps.
        if not name.endswith(("key.bias", "k_proj.bias"))
    }


def assert_equal_runs(run: Run, expected: Run) -> None:
    for record, other in zip(run.log, expected.log, strict=True):
        names = record.keys() - MACHINE_FIELDS
        assert names == other.keys() - MACHINE_FIELDS
        for name in names - {"evaluation"}:
            assert record[name] == pytest.approx(other[name], rel=2e-5, abs=1e-6), (record["step"], name)
        assert record.get("evaluation") == pytest.approx(other.get("evaluation"))
    for end in ("end", "resumed"):
        worst = differences(run.state[end], expected.state["end"])
        assert max(worst.values()) < 2e-5, sorted(worst.items(), key=lambda item: -item[1])[:5]


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_two_processes_took_part_in_the_topology(runs, topology):
    reports = runs[topology].reports
    assert [report["world_size"] for report in reports] == [2, 2]
    assert reports[0]["pid"] != reports[1]["pid"]
    for report in reports:
        assert report["zero_stage"] == (int(topology[-1]) if topology.startswith("deepspeed") else None)
        assert report["fsdp2"] == (topology == "fsdp2")


@pytest.mark.parametrize("topology", SHARDED)
def test_every_topology_equals_ddp(runs, topology):
    assert_equal_runs(runs[topology], runs["multi_gpu"])


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_run_resumed_from_the_middle_ends_as_it_would_have(runs, topology):
    state = runs[topology].state
    assert all(torch.equal(value, state["end"][name]) for name, value in state["resumed"].items())


def test_everything_moved(runs):
    """State that stays put would compare equal to anything."""
    state = runs["multi_gpu"].state["end"]
    assert state["training_state.queue.num_batches"].item() == STEPS
    assert state["training_state.queue.num_filled"].item() == 20
    weight = "vicha.text_projection.weight"
    assert not torch.equal(state[f"training_state.teacher.{weight}"], state[weight])
    assert 0.4 < state["vicha.temperature"].item() <= 0.5


@pytest.mark.parametrize("topology", ["deepspeed_zero3", "fsdp2"])
def test_weights_and_teacher_are_split(runs, topology):
    whole = runs["multi_gpu"].state["end"]
    for report in runs[topology].reports:
        for name in ("vicha.vision_model.layers.1.mlp.fc1.weight", "vicha.text_projection.weight"):
            for prefix in ("", "training_state.teacher."):
                assert report["kept"][prefix + name] == whole[prefix + name].numel() // 2


@pytest.mark.parametrize("topology", ["deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3"])
def test_deepspeed_checkpoints_become_ordinary_weights(runs, topology):
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    folder = runs[topology].checkpoint
    weights = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag="pytorch_model")
    expected = runs["multi_gpu"].checkpoint
    from safetensors.torch import load_file

    expected = load_file(expected / "model.safetensors")
    shared = {name: weights[name] for name in expected if name in weights}
    # The queue's buffers stay in the checkpoint of the model; with ZeRO-1 the teacher does, which gets no gradient.
    left_out = "training_state." if topology == "deepspeed_zero1" else ".queue."
    assert {name for name in expected if left_out not in name} <= shared.keys()
    assert max(differences(shared, {name: expected[name] for name in shared}).values()) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_the_launcher_starts_the_script_from_the_committed_file(runs, script_arguments, tmp_path, topology):
    launcher = ["accelerate.commands.launch", "--config_file", str(CONFIGS / f"{topology}.yaml"), *OVERRIDES]
    start(launcher, [str(tmp_path), "launched", *script_arguments])
    assert_equal_runs(Run.read(tmp_path / "launched"), runs["multi_gpu"])
