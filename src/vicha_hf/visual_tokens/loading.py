"""Loading whichever visual tokenizer a folder or a Hub repository holds."""

from transformers import FlavaImageCodebook, FlavaImageCodebookConfig
from transformers.configuration_utils import PreTrainedConfig

from ..families import find_model_folder
from .codebook import CodebookVisualTokenizer
from .patches import PatchVisualTokenizer
from .tokenizer import VisualTokenizer


TOKENIZERS = {cls.config_class.model_type: cls for cls in (CodebookVisualTokenizer, PatchVisualTokenizer)}


def load_visual_tokenizer(source: str, patch_size: int | None = None, **hub_options) -> VisualTokenizer:
    """
    A visual tokenizer by its folder or Hub id.

    Args:
        source: what `save_pretrained` of a tokenizer wrote, or a `FlavaImageCodebook`
            ("facebook/flava-image-codebook": DALL-E's codes).
        patch_size: pixels per token for a `FlavaImageCodebook` (None: 16); other folders know their own, which must agree.
        hub_options: `revision`, `cache_dir`, `token`, ... as for `from_pretrained`.

    Raises:
        ValueError: the source holds another kind of model, or a tokenizer with another `patch_size`.
        FileNotFoundError: a folder that is not there, or that holds no model.
        OSError: there is nothing to load.
    """
    source = find_model_folder(source)
    model_type = PreTrainedConfig.get_config_dict(source, **hub_options)[0].get("model_type")
    if model_type == FlavaImageCodebookConfig.model_type:
        codebook = FlavaImageCodebook.from_pretrained(source, **hub_options)
        return CodebookVisualTokenizer.from_codebook(codebook, patch_size=16 if patch_size is None else patch_size)
    if model_type not in TOKENIZERS:
        known = ", ".join([*TOKENIZERS, FlavaImageCodebookConfig.model_type])
        raise ValueError(f"{source} holds a model of type {model_type!r}, not a visual tokenizer ({known})")
    tokenizer = TOKENIZERS[model_type].from_pretrained(source, **hub_options)
    if patch_size is not None and tokenizer.patch_size != patch_size:
        raise ValueError(
            f"the visual tokenizer of {source} makes one token per {tokenizer.patch_size} pixels, not per "
            f"patch_size={patch_size}"
        )
    return tokenizer


__all__ = ["load_visual_tokenizer"]
