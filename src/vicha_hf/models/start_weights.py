"""Whether the weights of a folder found their places in the model that loads them."""

import re
from collections.abc import Callable, Iterable, Mapping

from torch import nn
from transformers.utils import logging


logger = logging.get_logger(__name__)

# Wrappers of training code put these before every name that they save.
WRAPPER_PREFIXES = ("module.", "_orig_mod.")
_WRAPPED = "^(?:" + "|".join(re.escape(prefix) for prefix in WRAPPER_PREFIXES) + ")+"
# Parts of a model that a folder holds whole or, the last two lines, not at all.
ENCODERS = ("vision_model", "text_model")
OPTIONAL_ENCODERS = ("concept_model", "concept_projection")
OPTIONAL_PARTS = ("answer_decoder.encoder", "image_pair_encoder", "mlm_head.transform")
NAMED_WEIGHTS = 5

LoadingInfo = Mapping[str, Iterable[str]]


def load_unwrapped(load: Callable[..., tuple[nn.Module, LoadingInfo]], path: object) -> tuple[nn.Module, LoadingInfo]:
    """
    Loads weights whose names may begin with what a wrapper put there (`module.`, `_orig_mod.`). Removing it is announced.

    Args:
        load: a `from_pretrained` that returns the model and its loading info; called once more with `key_mapping` where
            names begin like that.
        path: of the weights, for messages.
    """
    model, info = load()
    wrapped = [name for name in info["unexpected_keys"] if name.startswith(WRAPPER_PREFIXES)]
    if wrapped:
        prefix = re.match(_WRAPPED, wrapped[0]).group()
        model, info = load(key_mapping={_WRAPPED: ""})
        logger.warning(f"{path}: the prefix {prefix!r} was removed from the names of {len(wrapped)} weights.")
    return model, info


def require_loaded_encoders(model: nn.Module, info: LoadingInfo, path: object) -> None:
    """
    Raises a `ValueError` where weights of an encoder are missing or left over: it would train, or answer, at random.

    Heads may be missing whole, for another task starts its own. A part that is there must be complete.

    Args:
        model: a family's, just loaded.
        info: its missing and unexpected names.
        path: of the folder, for the message.
    """
    base = f"{model.base_model_prefix}."
    missing = {name.removeprefix(base) for name in info["missing_keys"]}
    left_over = [
        name
        for name in info["unexpected_keys"]
        if any(name.removeprefix(base).startswith(f"{part}.") for part in _encoders_of(model))
    ]
    gaps = []
    for part in (*ENCODERS, *OPTIONAL_ENCODERS, *OPTIONAL_PARTS):
        own = {name.removeprefix(base) for name, _ in model.named_parameters(remove_duplicate=False)}
        own = {name for name in own if name.startswith(f"{part}.")}
        if part in ENCODERS or not own <= missing:
            gaps += own & missing
    require_no_gaps(path, type(model).__name__, gaps, left_over)


def require_no_gaps(path: object, name: str, missing: Iterable[str], left_over: Iterable[str]) -> None:
    """Raises a `ValueError` that names weights which are missing or left over, unless there are none."""
    missing, left_over = sorted(missing), sorted(left_over)
    if missing or left_over:
        raise ValueError(
            f"{path} does not fit {name}: missing {_listed(missing)}, left over {_listed(left_over)}. It would not be "
            "the model that was trained. Compare the names in its weights' file and the numbers of layers in its config.json."
        )


def _encoders_of(model: nn.Module) -> list[str]:
    """The encoders that a model has: one that its configuration leaves out may be left over."""
    optional = [part for part in OPTIONAL_ENCODERS if getattr(model.base_model, part, None) is not None]
    return [*ENCODERS, *optional]


def _listed(names: list[str]) -> str:
    if len(names) <= NAMED_WEIGHTS:
        return ", ".join(names) or "nothing"
    return f"{', '.join(names[:NAMED_WEIGHTS])} and {len(names) - NAMED_WEIGHTS} more"
