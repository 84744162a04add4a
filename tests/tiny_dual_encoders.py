"""Tiny dual encoders of transformers with random weights, on disk as `save_pretrained` leaves them."""

from pathlib import Path

import torch
from tiny_tokenizer import build_tiny_tokenizer
from transformers import (
    BertTokenizerFast,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipProcessor,
)


TEXT_LENGTH = 16
_SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


def write_tiny_clip(folder: Path, projection_dim: int = 24, seed: int = 0) -> CLIPModel:
    """A CLIP of 24 dimensions with its processor; its tokenizer is a BERT's."""
    tokenizer = _tokenizer(folder)
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": TEXT_LENGTH, "bos_token_id": 2, "eos_token_id": 3}
    config = CLIPConfig(
        text_config=_SIZES | text | {"pad_token_id": 0},
        vision_config=_SIZES | {"image_size": 32, "patch_size": 8},
        projection_dim=projection_dim,
    )
    torch.manual_seed(seed)
    model = CLIPModel(config)
    model.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPProcessor(CLIPImageProcessorPil(size=size, do_center_crop=False), tokenizer).save_pretrained(folder)
    return model.eval()


def write_tiny_siglip(folder: Path) -> SiglipModel:
    """A SigLIP of 32 dimensions with its processor; its tokenizer is a BERT's."""
    tokenizer = _tokenizer(folder)
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": TEXT_LENGTH}
    config = SiglipConfig(text_config=_SIZES | text, vision_config=_SIZES | {"image_size": 32, "patch_size": 8})
    torch.manual_seed(1)
    model = SiglipModel(config)
    model.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    SiglipProcessor(SiglipImageProcessorPil(size=size), tokenizer).save_pretrained(folder)
    return model.eval()


def _tokenizer(folder: Path) -> BertTokenizerFast:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tiny_tokenizer(folder)
    tokenizer.model_max_length = TEXT_LENGTH
    return tokenizer
