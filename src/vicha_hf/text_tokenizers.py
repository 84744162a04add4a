"""Tokenizers of a model's texts: read from a folder or the Hub, and checked against the model."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .arguments import one_line, require
from .families import require_there
from .models.configuration_vision_text import TextConfig, VisionTextConfig


def load_tokenizer(source: str, name: str = "tokenizer") -> PreTrainedTokenizerBase:
    """
    A BERT-like tokenizer.

    Args:
        source: folder or Hub id.
        name: of the option that gave it, for messages.

    Raises:
        ValueError: no tokenizer, a damaged one, or one that lacks a token which the objectives need.
    """
    try:
        require_there(source)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except Exception as error:
        # The library behind it raises bare exceptions for damaged files.
        if Path(source).expanduser().is_dir():
            fault, cause = "holds no tokenizer that can be read", error
        else:
            fault = "is no folder here, and no tokenizer of that name can be had from the Hub"
            cause = error.__cause__ or error
        raise ValueError(
            f"{name}={source!r} {fault}: give a folder with tokenizer.json, such as `vicha-hf tokenizer` writes, or a Hub "
            f"id. {one_line(cause)}"
        ) from error
    for token in ("pad_token", "cls_token", "sep_token", "mask_token"):
        require(getattr(tokenizer, token) is not None, name, source, f"it has no {token}; use a BERT-like tokenizer.")
    return tokenizer


def special_tokens(
    tokenizer: PreTrainedTokenizerBase, config_class: type[TextConfig] = TextConfig
) -> dict[str, int | None]:
    """The ids that a text configuration must know; a family's own class knows some more."""
    return {name: getattr(tokenizer, name) for name in config_class.special_token_fields}


def require_fitting_vocabulary(config: VisionTextConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise a `ValueError` where a model cannot read what a tokenizer writes."""
    own = config.text_config
    remedy = "use the tokenizer that the model was made for; this one has"
    # A model may have room for more tokens than the tokenizer knows.
    fits = own.vocab_size >= len(tokenizer)
    require(fits, "text_config.vocab_size", own.vocab_size, f"{remedy} {len(tokenizer)} tokens.")
    for name, value in special_tokens(tokenizer, type(own)).items():
        require(getattr(own, name) == value, f"text_config.{name}", getattr(own, name), f"{remedy} {value}.")


def require_fitting_length(config: VisionTextConfig, max_text_length: int) -> None:
    """Raise a `ValueError` where more text tokens are asked for than the text encoder has positions."""
    positions = config.text_config.max_position_embeddings
    require(
        max_text_length <= positions,
        "data.max_text_length",
        max_text_length,
        f"the model has {positions} text positions; lower it, or raise model.text_config.max_position_embeddings of a "
        "model that is trained from random weights.",
    )
