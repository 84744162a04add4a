"""Options that the loop passes to a model's forward besides the batch, and the check of the batch's own names."""

import inspect
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from torch import nn

from ..arguments import require
from .arguments import TrainingArguments
from .schedule import ramped_alpha


class ForwardOptions:
    """
    Options of a model's forward that follow from the step. A forward gets those that it names.

    Args:
        model: unwrapped; what prepares it for training may hide its signature.
        arguments: of the run.
        steps_per_epoch: optimiser steps.

    Raises:
        ValueError: an argument that the forward has no use for.
    """

    def __init__(self, model: nn.Module, arguments: TrainingArguments, steps_per_epoch: int):
        self.arguments = arguments
        self.steps_per_epoch = steps_per_epoch
        self._has_teacher = arguments.teacher_start_step is not None
        self._moves_itself = not hasattr(model, "update_teacher")
        self._model = model
        # A decorator may hide a part of it.
        self._parameters = inspect.signature(inspect.unwrap(model.forward)).parameters
        require(
            arguments.hard_negative_steps == 0 or "negative_hardness" in self._parameters,
            "hard_negative_steps",
            arguments.hard_negative_steps,
            f"{type(model).__name__} draws no negatives by their hardness; set it to 0.",
        )
        require(
            arguments.teacher_start_step == 0 or "use_teacher" in self._parameters,
            "teacher_start_step",
            arguments.teacher_start_step,
            f"{type(model).__name__} needs its teacher from the first step; set it to 0.",
        )

    @property
    def moves_teacher_between_steps(self) -> bool:
        """
        Whether `update_teacher` of the model is to be called before each step. Every weight is then where it is kept, also
        where weights are split over the processes. A model without this method moves its teacher in its forward.
        """
        return self._has_teacher and not self._moves_itself

    def of_step(self, step: int) -> dict[str, Any]:
        """Options of every forward pass after `step` optimiser steps."""
        options = {}
        if "distillation_alpha" in self._parameters:
            options["distillation_alpha"] = self._alpha(step)
        if step < self.arguments.hard_negative_steps:
            options["negative_hardness"] = step / self.arguments.hard_negative_steps
        if not self.arguments.teacher_takes_part(step):
            options |= {"use_teacher": False, "distillation_alpha": 0.0}
        return options

    def of_micro_step(self, micro_step: int) -> dict[str, Any]:
        """Options of one forward pass: the teacher moves once in a step, in the first of them."""
        if "update_teacher" not in self._parameters:
            return {}
        return {"update_teacher": self._has_teacher and self._moves_itself and micro_step == 0}

    def require_known(self, names: Iterable[str]) -> None:
        """
        Looks at the names in a batch: a forward with `**kwargs` would swallow a misspelt one, and train without it.

        Raises:
            TypeError: a name that the forward does not take.
        """
        known = [
            name
            for name, parameter in self._parameters.items()
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
        # A wrapper that takes anything says nothing about what the model takes.
        unknown = sorted(set(names) - set(known)) if known else []
        if unknown:
            close = get_close_matches(unknown[0], known, n=1)
            raise TypeError(
                f"the batch holds {unknown[0]!r}, which the forward of {type(self._model).__name__} does not "
                f"take{f' (it takes {close[0]!r})' if close else ''}: rename it in the collator, or leave it out."
            )

    def _alpha(self, step: int) -> float:
        alpha = self._model.config.distillation_alpha
        if not self.arguments.ramp_distillation_alpha:
            return alpha
        return ramped_alpha(alpha, *divmod(step, self.steps_per_epoch), self.steps_per_epoch)
