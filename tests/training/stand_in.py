"""A small model with everything that makes resuming hard - dropout, a teacher, a queue - and data to train it on."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from accelerate.state import GradientState
from safetensors.torch import save_file
from torch import nn
from transformers.utils import ModelOutput

from vicha_hf.models.process_group import gather
from vicha_hf.training.accelerator import create_accelerator
from vicha_hf.training.arguments import TrainingArguments
from vicha_hf.training.loop import TrainingLoop


WIDTH = 6


@dataclass
class StandInOutput(ModelOutput):
    loss: torch.Tensor | None = None
    itc_loss: torch.Tensor | None = None
    mlm_loss: torch.Tensor | None = None
    mim_loss: torch.Tensor | None = None


class StandIn(nn.Module):
    def __init__(self, dropout: float = 0.1):
        super().__init__()
        self.config = SimpleNamespace(distillation_alpha=0.4)
        self.encoder = nn.Sequential(nn.Linear(WIDTH, 8), nn.GELU(), nn.Dropout(dropout), nn.Linear(8, WIDTH))
        self.teacher = nn.Linear(8, WIDTH).requires_grad_(False)
        self.temperature = nn.Parameter(torch.tensor([0.07]))
        self.register_buffer("queue", torch.zeros(5, WIDTH))
        self.register_buffer("teacher_updates", torch.zeros(1, dtype=torch.int64))
        self.alphas = []

    def forward(self, inputs, image_ids, distillation_alpha=None, update_teacher=True):
        if self.training and update_teacher:
            self.teacher_updates += 1
            for teacher, online in zip(self.teacher.parameters(), self.encoder[3].parameters(), strict=True):
                teacher.lerp_(online.detach(), 0.1)
        self.alphas.append(distillation_alpha)
        features = self.encoder(inputs)
        target = self.teacher(self.encoder[:2](inputs)).detach()
        noisy = inputs + 0.1 * torch.randn_like(inputs)
        itc = (features - noisy).square().mean()
        mlm = (1 - distillation_alpha) * (features / self.temperature).square().mean() * 0.01
        mlm = mlm + distillation_alpha * (features - target - self.queue.mean(0)).square().mean()
        if self.training:
            # As the real queue: what every process saw, so that it is the same everywhere.
            self.queue.copy_(torch.cat([gather(target[-1:]), self.queue])[: len(self.queue)])
        return StandInOutput(loss=itc + mlm, itc_loss=itc, mlm_loss=mlm)

    def save_pretrained(self, folder, state_dict=None):
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file(dict(self.state_dict() if state_dict is None else state_dict), Path(folder) / "model.safetensors")


class WithoutRandomness(StandIn):
    """Batches of different sizes can only agree where nothing is drawn and no queue moves."""

    def __init__(self):
        super().__init__(dropout=0.0)

    def forward(self, inputs, image_ids, update_teacher=True):
        if self.training and update_teacher:
            self.teacher_updates += 1
        itc = 0.01 * ((self.encoder(inputs) - inputs) / self.temperature).square().mean()
        return {"loss": itc, "itc_loss": itc}


class Samples:
    """Draws depend on seed, epoch and index only, as those of the real datasets."""

    def __init__(self, size: int = 20, bad_index: int | None = None):
        self.size = size
        self.bad_index = bad_index
        self.epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        values = np.random.default_rng([7, self.epoch, index]).standard_normal(WIDTH)
        if index == self.bad_index:
            values[:] = np.nan
        return {"inputs": torch.tensor(values, dtype=torch.float32), "image_id": 1000 + index}


def collate(samples):
    return {
        "inputs": torch.stack([sample["inputs"] for sample in samples]),
        "image_ids": torch.tensor([sample["image_id"] for sample in samples]),
    }


def evaluate(model, accelerator):
    # Draws random numbers on purpose: training must not notice.
    noise = torch.randn(3, WIDTH) + np.random.rand() * 0
    return {"r_mean": float(-model.encoder(noise * 0 + 1).square().mean()), "noise": float(noise.mean())}


def stand_in_arguments(output_dir, **changes) -> TrainingArguments:
    defaults = {
        "output_dir": str(output_dir),
        "num_epochs": 2,
        "per_device_batch_size": 4,
        "learning_rate": 1e-2,
        "min_learning_rate": 1e-3,
        "warmup_learning_rate": 1e-3,
        "warmup_steps": 2,
        "num_workers": 0,
        "logging_steps": 1,
        "trackers": [],
    }
    return TrainingArguments(**{**defaults, **changes})


def stand_in_loop(
    arguments, *, model_class=StandIn, dataset=None, collator=collate, loop_class=TrainingLoop, **options
) -> TrainingLoop:
    # A second accelerator of the same process would keep the accumulation of the first.
    GradientState._reset_state()
    torch.manual_seed(arguments.seed)
    return loop_class(
        model=model_class(),
        arguments=arguments,
        train_dataset=dataset or Samples(),
        collator=collator,
        accelerator=create_accelerator(arguments),
        **options,
    )
