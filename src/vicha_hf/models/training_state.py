"""State that only training needs (teacher and queue): adding, loading, saving it and leaving it behind."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from torch import nn
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import cached_file, logging

from .feature_queue import FeatureQueue
from .pretrained_encoders import load_unwrapped, require_loaded_encoders
from .teacher import TrainingState, is_sharded


logger = logging.get_logger(__name__)

TRAINING_STATE_PREFIX = "training_state."
TRAINING_STATE_FILE = "training_state.safetensors"
HUB_OPTIONS = ("revision", "token", "cache_dir", "subfolder", "local_files_only", "force_download", "proxies")


class TrainingStateMixin:
    """
    The training state of a head: held in `training_state` (`None` outside training), added by `add_training_state`,
    never part of what is saved for inference. To be mixed in before `PreTrainedModel`.
    """

    def _online_modules(self) -> dict[str, nn.Module]:
        """The modules that the teacher copies and follows; none for a head without teacher."""
        raise TypeError(f"{type(self).__name__} has no training objective and hence no training state.")

    def _new_queue(self) -> FeatureQueue | None:
        """The queue of a contrastive head; heads without contrast have none."""
        return None

    def add_training_state(self) -> None:
        """
        Gives the model what only training needs: a teacher that starts as a copy of the present weights, and, for
        contrastive heads, an empty queue. Call it before preparing the model for distributed training; a second call
        does nothing.
        """
        if self.training_state is None and self._online_modules():
            if any(is_sharded(parameter) for parameter in self.parameters()):
                raise RuntimeError(
                    f"{type(self).__name__} is already split over processes, and a copy of parts is no teacher: call "
                    "`add_training_state()` before preparing it (DeepSpeed: `zero3_init_flag: false`)."
                )
            state = TrainingState(self._online_modules(), self._new_queue())
            self.training_state = state.to(self.device)
            self._tell_what_is_not_saved()

    @property
    def peft_config(self) -> dict:
        """Configurations of the adapters that peft has added to the model, by name, as peft keeps them here."""
        if "_peft_config" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__} has no adapters.")
        return self.__dict__["_peft_config"]

    @peft_config.setter
    def peft_config(self, value: dict) -> None:
        self.__dict__["_peft_config"] = value
        # peft goes by the names of layers, which the teacher's share; it is to follow the model, not to be trained.
        if self.training_state is not None:
            self.training_state.drop_adapters()
            self.training_state.requires_grad_(False)

    @peft_config.deleter
    def peft_config(self) -> None:
        self.__dict__.pop("_peft_config", None)

    def require_whole_training_state(self) -> None:
        """Raises a `RuntimeError` where each process keeps a part of the teacher, which then cannot be resized."""
        if self.training_state is not None and any(map(is_sharded, self.training_state.parameters())):
            raise RuntimeError(
                f"{type(self).__name__} is split over processes with its teacher: resize it before preparing it for "
                "distributed training."
            )

    def teacher_modules(self) -> Mapping[str, nn.Module]:
        """The teacher's modules by name; outside training a model without training state is its own teacher."""
        return self._online_modules() if self.training_state is None else self.training_state.teacher

    def update_teacher(self) -> None:
        """
        Moves the teacher towards the present weights. `forward` does it by itself unless it is called with
        `update_teacher=False`; under FSDP2 it must be called before `forward`, which works on gathered copies.
        """
        if self.training_state is not None:
            self.training_state.update_teacher(self._online_modules(), self.config.momentum)

    def begin_training_step(self, update_teacher: bool) -> None:
        """
        Gives a head in training mode the teacher that it needs, and moves it if `update_teacher` says so. In evaluation
        mode nothing happens.
        """
        if not self.training or not self._online_modules():
            return
        if self.training_state is None and torch.compiler.is_compiling():
            raise RuntimeError("A compiled step cannot make the teacher: call `model.add_training_state()` before it.")
        if self.training_state is None:
            logger.warning_once(
                "Training starts without `add_training_state()`: the teacher copies the present weights."
            )
            self.add_training_state()
        if update_teacher:
            # FSDP2 derives a class of its own from that of every module that it shards.
            if type(self).__name__.startswith("FSDP"):
                raise RuntimeError(
                    "Under FSDP2 the teacher cannot be updated inside `forward`: call `model.update_teacher()` before, and "
                    "give `forward` `update_teacher=False`."
                )
            self.update_teacher()

    def alpha_of(self, distillation_alpha: float | None) -> float:
        """Alpha that a step was given, else the configuration's. Raises a `ValueError` for one that is no share."""
        alpha = self.config.distillation_alpha if distillation_alpha is None else float(distillation_alpha)
        if not 0 <= alpha <= 1:
            raise ValueError(f"`distillation_alpha={alpha}` is not possible: it is a share, from 0 to 1.")
        return alpha

    def _start_missing_weights(self, missing: set[str]) -> None:
        """Gives weights that a folder lacks a better start than random ones; `missing` are parameter names."""

    def _freeze_untrained(self) -> None:
        """Switches off the gradient of parameters that the head never trains; loading switches it on for all of them."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path | None, *model_args, training_state: bool = False, **kwargs
    ) -> PreTrainedModel | tuple[PreTrainedModel, dict]:
        """
        Loads as [`~transformers.PreTrainedModel.from_pretrained`] does. Weights that the folder lacks are named in a
        warning. A head on top of a pretraining folder starts them from the pretrained weights where it can.

        Args:
            training_state: also add teacher and queue, from the folder if it holds them, otherwise as a copy of the
                loaded weights and empty.

        Raises:
            ValueError: a folder that lacks weights of an encoder. With `output_loading_info=True` the caller gets their
                names instead.
        """
        with_info = kwargs.pop("output_loading_info", False)
        model, info = load_unwrapped(
            partial(
                super().from_pretrained, pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
            ),
            pretrained_model_name_or_path,
        )
        # Without a folder the caller gives all weights, or wants a model without any; with the info, the caller judges.
        if pretrained_model_name_or_path is not None and not with_info:
            require_loaded_encoders(model, info, pretrained_model_name_or_path)
        model._freeze_untrained()
        if info["missing_keys"]:
            model._start_missing_weights(set(info["missing_keys"]))
        if training_state:
            model.add_training_state()
        if training_state and model.training_state is not None:
            hub_options = {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs}
            path = cached_file(
                pretrained_model_name_or_path,
                TRAINING_STATE_FILE,
                _raise_exceptions_for_missing_entries=False,
                **hub_options,
            )
            if path is not None:
                model._load_training_state(path)
        return (model, info) if with_info else model

    def load_training_state(self, folder: str | Path) -> None:
        """
        Puts teacher and queue of a folder into the model, which has its training state already.

        Raises:
            FileNotFoundError: a folder without them.
            ValueError: those of another head or configuration.
        """
        path = Path(folder) / TRAINING_STATE_FILE
        if not path.is_file():
            raise FileNotFoundError(f"{folder} has no {TRAINING_STATE_FILE}: it was saved without teacher and queue.")
        self._load_training_state(str(path))

    def save_training_state(self, folder: str | Path) -> None:
        """
        Writes teacher and queue to a file of their own, beside the weights in a folder.

        Raises:
            RuntimeError: they are split over the processes.
        """
        self._saves_training_state = True
        self._write_training_state(Path(folder))

    def _load_training_state(self, path: str) -> None:
        try:
            load_model(self.training_state, path)
        except RuntimeError as error:
            raise ValueError(
                f"{path} is the training state of another head or configuration than this {type(self).__name__}. "
                "To start from the weights alone, load them without `training_state=True` and call "
                f"`add_training_state()`. {error}"
            ) from error

    def save_pretrained(
        self,
        save_directory: str | Path,
        *args,
        state_dict: Mapping[str, torch.Tensor] | None = None,
        training_state: bool = False,
        **kwargs,
    ) -> None:
        """
        Saves as [`~transformers.PreTrainedModel.save_pretrained`] does, without teacher and queue.

        Args:
            training_state: also write them, to a file of their own. Without it such a file of an earlier save goes: it
                would not belong to the new weights.
        """
        state_dict = self.state_dict() if state_dict is None else state_dict
        # peft writes into the configuration that nothing is tied, when input and output embeddings are not tied to each other.
        self.config.tie_word_embeddings |= self._is_tied()
        self._tell_what_is_not_saved()
        inference = {name: value for name, value in state_dict.items() if not name.startswith(TRAINING_STATE_PREFIX)}
        self._saves_training_state = training_state and self.training_state is not None
        super().save_pretrained(save_directory, *args, state_dict=inference, **kwargs)
        if self.should_save_on_this_rank(kwargs.get("is_main_process", args[0] if args else True)):
            self._write_training_state(Path(save_directory))

    def _tell_what_is_not_saved(self) -> None:
        """Lists the names that a saved folder lacks, so that transformers' Trainer does not miss them where it loads one."""
        state = {} if self.training_state is None else self.training_state.state_dict()
        self._keys_to_ignore_on_save = {f"{TRAINING_STATE_PREFIX}{name}" for name in state}
        if self._is_tied():
            self._keys_to_ignore_on_save |= self._tied_weights_keys.keys()

    def _is_tied(self) -> bool:
        """Whether all weights that the head ties are tied now."""
        tied = self._tied_weights_keys or {}
        parameters = dict(self.named_parameters(remove_duplicate=False))
        return bool(tied) and all(
            name in parameters and parameters[name] is parameters.get(source) for name, source in tied.items()
        )

    def _upload_modified_files(self, working_dir, *args, **kwargs):
        """Writes before an upload: with `push_to_hub` it is part of what transformers does to save."""
        self._write_training_state(Path(working_dir))
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    def _write_training_state(self, folder: Path) -> None:
        path = folder / TRAINING_STATE_FILE
        path.unlink(missing_ok=True)
        if not self._saves_training_state:
            return
        if any(is_sharded(parameter) for parameter in self.training_state.parameters()):
            raise RuntimeError(
                "`training_state=True` is not possible while the teacher is split over processes: each would write its "
                "part. A training run's checkpoints hold it."
            )
        save_model(self.training_state, str(path))
