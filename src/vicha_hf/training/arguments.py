"""Arguments that every training script shares, read from YAML and the command line, and checked where they are made."""

import math
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Literal

from ..arguments import require, require_finite
from .matmul_precision import MatmulPrecision
from .optimizer import OptimizerKind
from .schedule import LearningRateSchedule, PublishedSchedule, WarmupCosineSchedule


@dataclass(kw_only=True)
class TrainingArguments:
    """Options of the training. GPUs, nodes and DeepSpeed are options of `accelerate launch`. Defaults are the paper's.

    Args:
        output_dir: Folder of checkpoints, logs, metrics and the final model.
        seed: Of the initial weights, the data order, the augmentation and everything drawn in training.
        num_epochs: Passes over the training data.
        max_steps: Optimiser steps of the run. Where it is given it decides, and num_epochs does not count, as in transformers' Trainer.
        per_device_batch_size: Samples in one forward pass of one process.
        gradient_accumulation_steps: Forward passes of one optimiser step.
        gradient_caching: Let these forward passes contrast with each other, as one large batch would (GradCache); without it each sees its own samples and the queue.
        learning_rate: Peak learning rate.
        min_learning_rate: Where the learning rate would end.
        warmup_learning_rate: Learning rate of the first step.
        warmup_steps: Optimiser steps until the peak; 0 starts there.
        lr_schedule: "cosine" moves with every step; "published" moves as the paper's code did, in jumps of 100 steps and then once per epoch.
        temperature_lr_scale: What the temperature's learning rate is multiplied by. The temperature is one number near 0.07; at learning rates far above the paper's a step of the others' size would throw it about.
        optimizer: "adamw", "adamw_8bit" or "muon". "adamw_8bit" keeps both running means of large matrices in 8 bits
            (bitsandbytes), a quarter of their memory. "muon" moves the matrices of hidden layers by orthogonalised
            momentum and the rest by AdamW.
        muon_learning_rate: Peak learning rate of these matrices; it follows the schedule of the others.
        adam_beta1: Decay of AdamW's running mean of the gradient.
        adam_beta2: Decay of its running mean of the squared gradient; less than the paper's 0.999 suits runs of about a thousand steps.
        weight_decay: Of matrices; biases, norms, positions and single tokens are not decayed.
        max_grad_norm: Gradients of a greater norm are scaled down to it; null does not clip, as the paper.
        on_non_finite_loss: What to do when a loss or the gradient is infinite or NaN: "stop", or "skip" the step, counted in the log.
        max_consecutive_skips: How many steps in a row may be skipped before the run stops after all.
        teacher_start_step: Optimiser steps before the momentum teacher takes part; until then the contrast compares the batch with itself, with gradient on both sides, and nothing is distilled or enqueued. From random weights an early teacher knows nothing. 0 is the papers' way; null leaves the teacher out.
        hard_negative_steps: Optimiser steps until the negatives of matching are as hard as the papers'. Their similarities count for nothing at the first step, and linearly more with each. From random weights, hard negatives alone teach matching nothing for hundreds of steps.
        ramp_distillation_alpha: Raise the teacher's share linearly from 0 over the first epoch.
        mixed_precision: "no", "bf16", "fp16" or "auto", which is bf16 where the device multiplies in it; null leaves it to `accelerate launch`.
        float32_matmul_precision: "highest", "high" or "medium", of matrix products in float32, as torch calls them. "high" lets a
            GPU use TF32. "medium" lets a CPU with bfloat16 arithmetic multiply in bfloat16; weights, gradients and everything
            else stay in float32. Where the hardware has neither, nothing changes.
        gradient_checkpointing: Recompute activations in the backward pass, for less memory and more time.
        num_workers: Processes that load data, per training process; the samples do not depend on it.
        logging_steps: Optimiser steps between two records of the log, each the mean since the last one.
        evaluation_steps: Optimiser steps between two evaluations; null evaluates after every epoch. The end of training is always evaluated.
        early_stopping_evaluations: End the run after so many evaluations in a row without a better primary metric; null trains to the end.
        checkpoint_steps: Optimiser steps between two checkpoints; null saves after every epoch. The end of training is always saved.
        keep_last_checkpoints: How many checkpoints to keep; older ones are deleted.
        resume_from_checkpoint: "latest" or the folder of a checkpoint. With "latest" a run that has none yet starts anew.
        allow_changed_settings: Go on from a checkpoint of a run with other settings or data, with a warning that names them.
        push_to_hub: Repository on the Hub, organisation/name, that receives the model at the end; null keeps it here. It is made before training starts.
        push_checkpoints: Whether the model of every checkpoint is sent too, as the revision `step-N` of that repository.
        hub_private: Whether a new repository is private.
        license: Licence of the weights by the Hub's identifier, such as apache-2.0, for the model's card; null says that it is unknown.
        data_license: Licence of the training data, for the model's card; null takes what stands beside the annotations.
        trackers: Experiment trackers by accelerate's names ("tensorboard", "wandb", ...); [] for none.
    """

    output_dir: str
    seed: int = 42
    num_epochs: int = 11
    max_steps: int | None = None
    per_device_batch_size: int = 32
    gradient_accumulation_steps: int = 1
    gradient_caching: bool = False
    learning_rate: float = 1e-4
    min_learning_rate: float = 1e-5
    warmup_learning_rate: float = 1e-5
    warmup_steps: int = 2000
    lr_schedule: Literal["cosine", "published"] = "cosine"
    temperature_lr_scale: float = 1.0
    optimizer: OptimizerKind = "adamw"
    muon_learning_rate: float = 0.02
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    weight_decay: float = 0.02
    max_grad_norm: float | None = None
    on_non_finite_loss: Literal["stop", "skip"] = "stop"
    max_consecutive_skips: int = 10
    teacher_start_step: int | None = 0
    hard_negative_steps: int = 0
    ramp_distillation_alpha: bool = True
    mixed_precision: Literal["no", "bf16", "fp16", "auto"] | None = None
    float32_matmul_precision: MatmulPrecision = "highest"
    gradient_checkpointing: bool = False
    num_workers: int = 4
    logging_steps: int = 50
    evaluation_steps: int | None = None
    early_stopping_evaluations: int | None = None
    checkpoint_steps: int | None = None
    keep_last_checkpoints: int = 2
    resume_from_checkpoint: str | None = None
    allow_changed_settings: bool = False
    push_to_hub: str | None = None
    push_checkpoints: bool = False
    hub_private: bool = True
    license: str | None = None
    data_license: str | None = None
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])

    def __post_init__(self):
        require_finite(self)
        require(bool(self.output_dir), "output_dir", self.output_dir, "name a folder that this run may write to.")
        for name in (
            "num_epochs",
            "per_device_batch_size",
            "gradient_accumulation_steps",
            "logging_steps",
            "keep_last_checkpoints",
            "max_consecutive_skips",
        ):
            require(getattr(self, name) >= 1, name, getattr(self, name), "it must be at least 1.")
        require(
            not self.gradient_caching or self.gradient_accumulation_steps > 1,
            "gradient_caching",
            self.gradient_caching,
            "one forward pass contrasts all its samples anyway; set gradient_accumulation_steps to 2 or more.",
        )
        require(
            self.teacher_start_step is None or self.teacher_start_step >= 0,
            "teacher_start_step",
            self.teacher_start_step,
            "it must not be negative; null leaves the teacher out.",
        )
        require(
            not self.gradient_caching or self.teacher_start_step == 0,
            "teacher_start_step",
            self.teacher_start_step,
            "gradient_caching contrasts the parts of a batch through the teacher; set it to 0.",
        )
        for name in ("max_steps", "evaluation_steps", "early_stopping_evaluations", "checkpoint_steps"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "it must be at least 1, or null.")
        for name in ("seed", "warmup_steps", "hard_negative_steps", "num_workers", "weight_decay"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "it must not be negative.")
        for name in ("adam_beta1", "adam_beta2"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "choose it within [0, 1).")
        for name in ("learning_rate", "temperature_lr_scale", "muon_learning_rate"):
            require(getattr(self, name) > 0, name, getattr(self, name), "it must be above 0.")
        for name in ("min_learning_rate", "warmup_learning_rate"):
            value = getattr(self, name)
            require(
                0 <= value <= self.learning_rate,
                name,
                value,
                f"it must lie between 0 and the peak, learning_rate={self.learning_rate!r}.",
            )
        require(
            self.optimizer != "adamw_8bit" or find_spec("bitsandbytes") is not None,
            "optimizer",
            self.optimizer,
            'it needs the bitsandbytes library; install it with pip install "vicha_hf[8bit]".',
        )
        require(
            self.push_to_hub is not None or not self.push_checkpoints,
            "push_checkpoints",
            self.push_checkpoints,
            "name the repository with push_to_hub.",
        )
        require(
            self.max_grad_norm is None or self.max_grad_norm > 0,
            "max_grad_norm",
            self.max_grad_norm,
            "it must be above 0, or null for no clipping.",
        )
        # Complains about a warm-up that the schedule cannot follow before any data is read.
        self.learning_rate_schedule(steps_per_epoch=1)

    def teacher_takes_part(self, step: int) -> bool:
        """Whether the momentum teacher takes part in the optimiser step behind `step` others."""
        return self.teacher_start_step is not None and step >= self.teacher_start_step

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimiser steps of the whole run."""
        return self.num_epochs * steps_per_epoch if self.max_steps is None else self.max_steps

    def learning_rate_schedule(self, steps_per_epoch: int) -> LearningRateSchedule:
        """The schedule that `lr_schedule` names, for epochs of `steps_per_epoch` optimiser steps."""
        rates = {
            "learning_rate": self.learning_rate,
            "min_learning_rate": self.min_learning_rate,
            "warmup_learning_rate": self.warmup_learning_rate,
            "warmup_steps": self.warmup_steps,
        }
        if self.lr_schedule == "published":
            # A run of more steps than epochs would leave the cosine, which rises again behind its end.
            num_epochs = max(self.num_epochs, math.ceil(self.total_steps(steps_per_epoch) / steps_per_epoch))
            return PublishedSchedule(steps_per_epoch=steps_per_epoch, num_epochs=num_epochs, **rates)
        return WarmupCosineSchedule(total_steps=self.total_steps(steps_per_epoch), **rates)
