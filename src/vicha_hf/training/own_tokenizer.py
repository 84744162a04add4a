"""The tokenizer of a run that was given none: made from its training texts."""

import logging

from transformers import PreTrainedTokenizerBase

from ..arguments import require
from ..data.stream_shards import wants_streaming
from ..data.tokenizer_building import build_tokenizer, iterate_raw_texts
from ..text_tokenizers import load_tokenizer


logger = logging.getLogger(__name__)


def load_or_make_tokenizer(source: str | None, train: object, name: str = "data.tokenizer") -> PreTrainedTokenizerBase:
    """
    The tokenizer that the arguments name, or one of the training texts' own words. Every process makes the same one.

    Args:
        source: folder or Hub id of a tokenizer or model; None for none.
        train: sources of the training records.
        name: of the option that gave the source, for messages.

    Raises:
        ValueError: no tokenizer there, or one without a token that the objectives need; texts without a word; a stream.
        AnnotationError: training records that cannot be read.
    """
    if source is not None:
        return load_tokenizer(source, name)
    require(
        not wants_streaming(train),
        "data.tokenizer",
        None,
        "a tokenizer is made from all training texts, and a stream never holds them all; name one, or make one of a part "
        "of the corpus with `vicha-hf tokenizer CORPUS --output DIR`.",
    )
    tokenizer = build_tokenizer(iterate_raw_texts(train))
    logger.warning(
        "No tokenizer was given: the run made one of %d tokens from its training texts, and saves it with the model.",
        len(tokenizer),
    )
    return tokenizer
