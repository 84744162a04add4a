"""Exact resumption under transformers' `Trainer`, which saves a model as for inference: without teacher and queue."""

from pathlib import Path

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..models.modeling_vision_text import VisionTextPreTrainedModel


class TrainingStateCallback(TrainerCallback):
    """
    Saves teacher and queue with every checkpoint of `Trainer`, and puts them back when training goes on from one. On several
    processes the first one writes, and all read.

    Example:

    ```python
    >>> trainer = Trainer(model, arguments, callbacks=[TrainingStateCallback()], ...)
    >>> trainer.train(resume_from_checkpoint=True)
    ```
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs
    ) -> None:
        """Adds teacher and queue; where training goes on, those of the checkpoint.

        Raises:
            FileNotFoundError: the checkpoint has none.
        """
        head = _head_of(model)
        head.add_training_state()
        if state.global_step > 0 and head.training_state is not None:
            head.load_training_state(_checkpoint(args, state))

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs
    ) -> None:
        """Writes teacher and queue into the checkpoint that `Trainer` has just written."""
        head = _head_of(model)
        if args.should_save and head.training_state is not None:
            head.save_training_state(Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    named = args.resume_from_checkpoint
    if isinstance(named, str) and Path(named).is_dir():
        return Path(named)
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def _head_of(model: nn.Module) -> VisionTextPreTrainedModel:
    """The head inside what peft may have put around it."""
    for module in model.modules():
        if isinstance(module, VisionTextPreTrainedModel):
            return module
    raise TypeError(f"{type(model).__name__} holds no model of this library: it has no teacher to save.")
