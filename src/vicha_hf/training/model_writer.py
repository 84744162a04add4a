"""Folders for `from_pretrained`: a run's weights for inference, and what makes its checkpoints such folders."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path

from accelerate import Accelerator
from torch import nn

from ..whole_files import complete_folder
from .adapters import has_adapters, merged_weights
from .checkpoints import sharding_of
from .non_finite import require_finite


class ModelWriter:
    """
    Writer of a run's model and processor.

    Args:
        accelerator: that prepared the model.
        model: as it was prepared.
        processor: saved beside the weights; None without.
    """

    def __init__(self, accelerator: Accelerator, model: nn.Module, processor):
        self.accelerator = accelerator
        self.model = model
        self.processor = processor

    def write_model(self, folder: Path, notes: Mapping[str, Mapping | str] | None = None) -> None:
        """
        Writes the weights for inference, and the processor. Every process must call it.

        Args:
            folder: replaced as a whole.
            notes: further files, by name: texts, and what is written as JSON.

        Raises:
            NonFiniteLossError: a weight is not finite. Nothing is written.
        """
        state_dict = self.accelerator.get_state_dict(self.model)
        if self.accelerator.is_main_process:
            require_finite(state_dict, f"{folder} was not written")
        with complete_folder(folder, self.accelerator) as unfinished:
            if self.accelerator.is_main_process:
                model = self.accelerator.unwrap_model(self.model)
                model.save_pretrained(unfinished, state_dict=merged_weights(model, state_dict))
                self._write_processor(unfinished)
                for name, content in (notes or {}).items():
                    text = content if isinstance(content, str) else json.dumps(content, indent=2) + "\n"
                    (unfinished / name).write_text(text, encoding="utf-8")

    def write_companions(self, folder: Path) -> None:
        """Makes a checkpoint a folder for `from_pretrained`, where its weights are whole and have the model's names."""
        model = self.accelerator.unwrap_model(self.model)
        split = sharding_of(self.accelerator) != "none"
        if split or has_adapters(model) or not hasattr(model.config, "save_pretrained"):
            return
        config = copy.deepcopy(model.config)
        config.architectures = [type(model).__name__]
        config.save_pretrained(folder)
        self._write_processor(folder)

    def _write_processor(self, folder: Path) -> None:
        if self.processor is not None:
            self.processor.save_pretrained(folder)
