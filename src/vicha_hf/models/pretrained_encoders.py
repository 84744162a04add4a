"""Start weights: from an image encoder and a text encoder that were pretrained separately, and whether any weights found their places."""

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM
from transformers.utils import logging

from .configuration_vision_text import TextConfig, VisionConfig
from .encoder_vision import interpolate_positions


logger = logging.get_logger(__name__)
VISION_MODEL_TYPES = ("vit", "deit")
TEXT_MODEL_TYPES = ("bert",)
# Of all names that a source may have left over, those that belong to an encoder.
_ENCODER_WEIGHT = re.compile(r"(^|\.)(embeddings|layers?\.\d+)\.")
# Wrappers of training code put these before every name that they save.
WRAPPER_PREFIXES = ("module.", "_orig_mod.")
_WRAPPED = "^(?:" + "|".join(re.escape(prefix) for prefix in WRAPPER_PREFIXES) + ")+"
# Parts of a model that a folder holds whole or, the last two lines, not at all.
ENCODERS = ("vision_model", "text_model")
OPTIONAL_ENCODERS = ("concept_model", "concept_projection")
OPTIONAL_PARTS = ("answer_decoder.encoder", "image_pair_encoder", "mlm_head.transform")
NAMED_WEIGHTS = 5

LoadingInfo = Mapping[str, Iterable[str]]


def vision_config_from(path: str, config_class: type[VisionConfig], **overrides) -> VisionConfig:
    """
    A family's vision configuration with what a ViT or DeiT checkpoint in Hugging Face format says, single fields
    overridden.
    """
    source = _source_config(path, VISION_MODEL_TYPES, "vision")
    _require_same_size(path, source, overrides, "vision_config", ("patch_size",))
    stem = overrides.get("stem", "patchify")
    if stem != "patchify":
        raise ValueError(
            f"vision_config.stem={stem!r} is not possible: {path} embeds patches by one linear map. Leave the field out; "
            "--model.vision_config {} leaves out all of a recipe's."
        )
    return config_class(**_shared_fields(source, config_class()) | overrides)


def text_config_from(path: str, config_class: type[TextConfig], **overrides) -> TextConfig:
    """
    A family's text configuration with what a BERT checkpoint in Hugging Face format says, single fields overridden; by
    default the upper half of its layers fuses. The checkpoint does not tell the ids of [CLS] and [MASK]: BERT-base's
    are assumed.
    """
    source, family = _source_config(path, TEXT_MODEL_TYPES, "text"), config_class()
    _require_same_size(path, source, overrides, "text_config", ())
    fields = _shared_fields(source, family)
    if hasattr(family, "fusion_layer"):
        fields["fusion_layer"] = source.num_hidden_layers // 2
    if not family.type_vocab_size:
        # A family without token types leaves the checkpoint's behind.
        del fields["type_vocab_size"]
    return config_class(**fields | overrides)


def _source_config(path, model_types, role):
    config = AutoConfig.from_pretrained(path)
    if config.model_type not in model_types:
        raise ValueError(
            f"The {role} encoder {path!r} is of type {config.model_type!r}; supported types are {model_types}."
        )
    return config


def _require_same_size(path: str, source, overrides: Mapping, part: str, further: Iterable[str]) -> None:
    """Raise a `ValueError` for a size that the pretrained weights do not have."""
    for name in ("hidden_size", "intermediate_size", *further):
        own = getattr(source, name)
        if overrides.get(name, own) != own:
            raise ValueError(
                f"{part}.{name}={overrides[name]} is not possible: {path} has {own}. Leave the field out; "
                f"--model.{part} {{}} leaves out all of a recipe's."
            )


def _shared_fields(source, target) -> dict:
    skipped = {"model_type", "architectures", "transformers_version", "dtype", "id2label", "label2id"}
    skipped |= {"fusion_layer", "first_doubled_layer"}
    own = set(target.to_dict()) - skipped
    return {name: getattr(source, name) for name in own if getattr(source, name, None) is not None}


@torch.no_grad()
def load_vision_weights(vision_model: nn.Module, path: str) -> None:
    """Copies a ViT or DeiT checkpoint into a vision encoder; positions are interpolated to its grid."""
    model, info = _load_source(AutoModel, path)
    _require_loaded(path, model, info, optional=("pooler.",))
    source = model.state_dict()
    weights = {}
    for name, tensor in source.items():
        if name.startswith("pooler.") or name.endswith(("distillation_token", "mask_token")):
            continue
        weights[name.replace("patch_embeddings.projection", "patch_embeddings")] = tensor
    positions = weights["embeddings.position_embeddings"]
    if "embeddings.distillation_token" in source:
        positions = torch.cat([positions[:, :1], positions[:, 2:]], dim=1)
    grid = vision_model.config.grid_size
    weights["embeddings.position_embeddings"] = interpolate_positions(positions, (grid, grid))
    _load(vision_model, weights, path, allowed_missing=())


@torch.no_grad()
def load_text_weights(
    text_model: nn.Module, path: str, concept_model: nn.Module | None = None, mlm_head: nn.Module | None = None
) -> None:
    """
    Copies a BERT checkpoint into the text encoder; its cross-attention stays new. The concept encoder takes BERT's
    embeddings and first layers (ViCHA section 4.1). The masked-language head is copied where the checkpoint has one.
    Where the text encoder is deeper, so that all of BERT reads text alone, its further layers copy BERT's last ones again.

    Raises:
        ValueError: a checkpoint that does not fit, or has less than half the layers.
    """
    model, info = _load_source(AutoModelForMaskedLM, path)
    _require_loaded(path, model, info, optional=("bert.pooler.", "cls."))
    source = model.state_dict()
    weights = {name.removeprefix("bert."): tensor for name, tensor in source.items() if name.startswith("bert.")}
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith("pooler.")}
    depth = len(text_model.encoder.layer)
    if text_model.embeddings.token_type_embeddings is None:
        del weights["embeddings.token_type_embeddings.weight"]
    available = model.config.num_hidden_layers
    if depth > 2 * available:
        raise ValueError(
            f"text_config.num_hidden_layers={depth} is not possible: {path} has {available} layers to start from, "
            f"enough for {2 * available}."
        )
    repeated = _last_layers_again(weights, available, depth - available)
    _load(text_model, _first_layers(weights | repeated, depth), path, allowed_missing=("crossattention",))
    if concept_model is not None:
        _load(concept_model, _first_layers(weights, len(concept_model.encoder.layer)), path, allowed_missing=())
    if mlm_head is not None:
        transform = {name for name in source if name.startswith("cls.predictions.transform")}
        lost = transform.intersection(info["missing_keys"])
        require_no_gaps(path, "BERT's masked-language head", lost if lost != transform else (), ())
        if lost:
            logger.warning(f"{path} holds no masked-language head: the model's own starts from random weights.")
            return
        head = {
            name.removeprefix("cls.predictions."): tensor
            for name, tensor in source.items()
            if name.startswith("cls.predictions.") and name != "cls.predictions.bias"
        }
        _load(mlm_head, head, path, allowed_missing=())


def _load_source(auto_class: type, path: str) -> tuple[nn.Module, LoadingInfo]:
    """Loads a checkpoint without the library's table of gaps: those that matter here are told by the callers."""

    def load(**options) -> tuple[nn.Module, LoadingInfo]:
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()
        try:
            return auto_class.from_pretrained(path, output_loading_info=True, **options)
        finally:
            logging.set_verbosity(verbosity)

    return load_unwrapped(load, path)


def _require_loaded(path: str, model: nn.Module, info: LoadingInfo, optional: tuple[str, ...]) -> None:
    """Raises where an encoder's weights did not load: `from_pretrained` has filled every gap with random ones."""
    missing = [name for name in info["missing_keys"] if not name.startswith(optional)]
    left_over = [name for name in info["unexpected_keys"] if _ENCODER_WEIGHT.search(name)]
    require_no_gaps(path, type(model).__name__, missing, left_over)


def _first_layers(weights: dict, depth: int) -> dict:
    return {
        name: tensor
        for name, tensor in weights.items()
        if not name.startswith("encoder.layer.") or int(name.split(".")[2]) < depth
    }


def _last_layers_again(weights: dict, depth: int, count: int) -> dict:
    """The last `count` of `depth` layers under the numbers that follow them; none for a negative count."""
    repeated = {}
    for number in range(depth, depth + count):
        source, target = f"encoder.layer.{number - count}.", f"encoder.layer.{number}."
        repeated |= {
            target + name.removeprefix(source): value for name, value in weights.items() if name.startswith(source)
        }
    return repeated


def _load(module: nn.Module, weights: dict, path: str, allowed_missing: tuple[str, ...]) -> None:
    missing, unexpected = module.load_state_dict(weights, strict=False)
    missing = [name for name in missing if not any(part in name for part in allowed_missing)]
    if missing or unexpected:
        raise ValueError(
            f"{path} does not fit {type(module).__name__}: missing {missing or 'nothing'}, left over {unexpected or 'nothing'}."
        )


@torch.no_grad()
def copy_matching_weights(source: nn.Module, target: nn.Module) -> list[str]:
    """
    Copies the parameters of `source` into those of `target` that have the same name and shape. Returns the names of
    the others: they stay as they are.
    """
    source, unmatched = dict(source.named_parameters()), []
    for name, parameter in target.named_parameters():
        if name in source and source[name].shape == parameter.shape:
            parameter.copy_(source[name])
        else:
            unmatched.append(name)
    return unmatched


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
