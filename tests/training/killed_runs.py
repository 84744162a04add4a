"""Real runs of examples/pretrain.py on a few images: started, killed at chosen moments, compared file by file."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch
from accelerate.utils import load
from colour_images import write_colour_images
from safetensors.torch import load_file
from tiny_tokenizer import build_tiny_tokenizer

from vicha_hf.training.checkpoints import PROGRESS_FILE, list_checkpoints
from vicha_hf.training.run_log import LOG_FILE, MACHINE_FIELDS, read_log


ROOT = Path(__file__).parents[2]
NUM_IMAGES = 40
# Everything that makes resuming hard: all objectives, a teacher, a queue longer than an epoch, dropout (of patches, too),
# augmentation, workers, evaluations and checkpoints out of step with each other and with the epochs of 10 steps.
SETTINGS = [
    "--model.vision_config={hidden_size: 32, intermediate_size: 48, num_hidden_layers: 3, num_attention_heads: 2, "
    "image_size: 32, patch_size: 8, initializer_range: 0.05}",
    "--model.text_config={hidden_size: 32, intermediate_size: 48, num_hidden_layers: 4, num_attention_heads: 2, "
    "fusion_layer: 2, max_position_embeddings: 64, hidden_dropout_prob: 0.1, attention_probs_dropout_prob: 0.1}",
    "--model.config={projection_dim: 16, num_concept_layers: 1, hierarchical_itc_levels: 2, queue_size: 48, "
    "mim_decoder_hidden_size: 32, mim_decoder_layers: 1, mim_decoder_heads: 4, distillation_alpha: 0.4, patch_dropout: 0.25}",
    "--learning_rate=1e-3",
    "--min_learning_rate=1e-4",
    "--warmup_learning_rate=1e-4",
    "--warmup_steps=4",
    "--logging_steps=1",
    "--checkpoint_steps=3",
    "--evaluation_steps=7",
    "--keep_last_checkpoints=2",
    "--num_workers=2",
    "--data.rerank_k=3",
    "--trackers=[]",
]


def make_corpus(root: Path) -> Path:
    """Plain images with a caption and concepts each, and a tokenizer."""
    records = [
        {"image": f"{index}.png", "caption": f"a {colour} dog on the grass", "concepts": [colour, "dog", "grass"]}
        for index, colour in enumerate(write_colour_images(root, NUM_IMAGES))
    ]
    (root / "train.json").write_text(json.dumps(records))
    (root / "validation.json").write_text(json.dumps(records[:4]))
    build_tiny_tokenizer(root).save_pretrained(root / "tokenizer")
    return root


class Script:
    """A run of the script in one process or, under `accelerate launch`, in two.

    Args:
        corpus: from [`make_corpus`].
        output_dir: of the run.
        num_processes: 1 or 2; together they see 4 images per step.
        num_epochs: of 10 steps.
    """

    def __init__(self, corpus: Path, output_dir: Path, num_processes: int = 1, num_epochs: int = 3):
        self.output_dir = output_dir
        self.num_processes = num_processes
        self.options = [
            f"--output_dir={output_dir}",
            f"--data.train={corpus / 'train.json'}",
            f"--data.validation={corpus / 'validation.json'}",
            f"--data.tokenizer={corpus / 'tokenizer'}",
            f"--num_epochs={num_epochs}",
            f"--per_device_batch_size={4 // num_processes}",
            *SETTINGS,
            "--resume_from_checkpoint=latest",
        ]

    def start(self) -> subprocess.Popen:
        """Begin, or go on where the last checkpoint is."""
        command = [sys.executable, str(ROOT / "examples/pretrain.py"), *self.options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}
        if self.num_processes > 1:
            launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--main_process_port=0"]
            command[1:1] = [*launcher, f"--num_processes={self.num_processes}"]
        self.output_dir.mkdir(exist_ok=True)
        with (self.output_dir / "output.txt").open("a") as output:
            # A session of its own, so that one signal reaches the whole job, as a cluster sends it.
            return subprocess.Popen(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    def finish(self) -> None:
        """Run to the end."""
        process = self.start()
        try:
            assert process.wait(timeout=900) == 0, self.printed()
        finally:
            kill_everything(process)

    def kill(self, moment: Callable[["Script"], bool], rng: random.Random) -> tuple[list[psutil.Process], bool]:
        """Start, and SIGKILL as soon as `moment` comes.

        Returns:
            The processes that were left on their own, and whether a checkpoint was being written.
        """
        process = self._start_and_wait_for(moment)
        time.sleep(rng.uniform(0, 0.03))
        if self.num_processes > 1:
            kill_everything(process)
            orphans = []
        else:
            # The training process alone: those that load its data must notice by themselves.
            orphans = psutil.Process(process.pid).children(recursive=True)
            process.kill()
        assert process.wait() == -signal.SIGKILL
        return orphans, self.is_saving()

    def terminate(self, moment: Callable[["Script"], bool]) -> int:
        """Start, and SIGTERM as soon as `moment` comes, as a cluster does: to those that train, to those that load data,
        and to the launcher. Returns the exit code."""
        process = self._start_and_wait_for(moment)
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        assert len(family) > 2 * self.num_processes
        try:
            for member in family:
                member.send_signal(signal.SIGTERM)
            return process.wait(timeout=300)
        finally:
            kill_everything(process)

    def _start_and_wait_for(self, moment: Callable[["Script"], bool]) -> subprocess.Popen:
        process = self.start()
        deadline = time.monotonic() + 600
        while not moment(self):
            assert process.poll() is None, f"the run ended before the moment came: {self.printed()}"
            assert time.monotonic() < deadline, self.printed()
            time.sleep(0.002)
        return process

    def is_saving(self) -> bool:
        return any(self.output_dir.glob(".checkpoint-*.unfinished"))

    def num_records(self) -> int:
        path = self.output_dir / LOG_FILE
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def printed(self) -> str:
        return (self.output_dir / "output.txt").read_text()[-6000:]


def kill_everything(process: subprocess.Popen) -> None:
    """A job with all its processes; the launcher gives those that train sessions of their own."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
    psutil.wait_procs(family, timeout=10)


def while_training(records: int) -> Callable[[Script], bool]:
    """The moment when the log has grown by so many records, what a resumed run drops of it not counted."""
    fewest = []

    def come(script: Script) -> bool:
        count = script.num_records()
        if not fewest or count < fewest[0]:
            fewest[:] = [count]
        return count >= fewest[0] + records

    return come


def while_saving(after: int) -> Callable[[Script], bool]:
    """The moment when a checkpoint is being written, once the log has grown by `after` records, at least 1."""
    grown = while_training(after)
    # Before it trains, a run tidies up what a killed one had half written.
    return lambda script: grown(script) and script.is_saving()


def after_seconds(seconds: float) -> Callable[[Script], bool]:
    """Any moment, also while the run starts or loads its checkpoint."""
    start = []

    def come(script: Script) -> bool:
        start.append(time.monotonic()) if not start else None
        return time.monotonic() >= start[0] + seconds

    return come


def wait_until_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive, f"left behind: {alive}"


def assert_same_run(expected: Path, actual: Path, num_processes: int) -> None:
    """Every loss, the teacher, the queue, the optimiser, the random states and the weights, bit for bit."""
    assert _reproducible(read_log(actual)) == _reproducible(read_log(expected))
    assert [path.name for path in list_checkpoints(actual)] == [path.name for path in list_checkpoints(expected)]
    assert not list(actual.glob(".*")), "something half-written was left behind"
    for checkpoint in list_checkpoints(expected):
        other = actual / checkpoint.name
        content = [json.loads((folder / PROGRESS_FILE).read_text()) for folder in (checkpoint, other)]
        assert content[0]["data_order"]["num_processes"] == num_processes
        for progress in content:
            del progress["progress"]["train_seconds"]
        assert content[0] == content[1]
        weights = load_file(checkpoint / "model.safetensors")
        assert any("queue.image_ids" in name for name in weights) and any(".teacher." in name for name in weights)
        _assert_equal(weights, load_file(other / "model.safetensors"), "model")
        for name in ("optimizer.bin", *(f"random_states_{rank}.pkl" for rank in range(num_processes))):
            _assert_equal(*(load(folder / name, weights_only=True) for folder in (checkpoint, other)), name)
    for folder in ("model", "best_model"):
        _assert_equal(*(load_file(run / folder / "model.safetensors") for run in (expected, actual)), folder)
    notes = [json.loads((run / "best_model/evaluation.json").read_text()) for run in (expected, actual)]
    assert notes[0] == notes[1]
    metrics = [json.loads((run / "metrics.json").read_text()) for run in (expected, actual)]
    assert _reproducible(metrics[:1]) == _reproducible(metrics[1:])


def _reproducible(records):
    return [{name: value for name, value in record.items() if name not in MACHINE_FIELDS} for record in records]


def _assert_equal(expected, actual, where):
    assert type(expected) is type(actual), where
    if isinstance(expected, dict):
        assert expected.keys() == actual.keys(), where
        for name, value in expected.items():
            _assert_equal(value, actual[name], f"{where}.{name}")
    elif isinstance(expected, list | tuple):
        assert len(expected) == len(actual), where
        for number, pair in enumerate(zip(expected, actual, strict=True)):
            _assert_equal(*pair, f"{where}.{number}")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(expected, actual), where
    elif isinstance(expected, np.ndarray):
        assert np.array_equal(expected, actual), where
    else:
        assert expected == actual, where
