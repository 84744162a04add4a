"""Tiny dual encoders of transformers with random weights, on disk as `save_pretrained` leaves them."""

from pathlib import Path

import torch
from tiny_tokenizer import build_tiny_tokenizer
from transformers import (
    AltCLIPConfig,
    AltCLIPModel,
    AltCLIPProcessor,
    BertTokenizerFast,
    ChineseCLIPConfig,
    ChineseCLIPImageProcessorPil,
    ChineseCLIPModel,
    ChineseCLIPProcessor,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    MetaClip2Config,
    MetaClip2Model,
    PreTrainedModel,
    ProcessorMixin,
    Siglip2Config,
    Siglip2ImageProcessorPil,
    Siglip2Model,
    Siglip2Processor,
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


def write_tiny_encoder(folder: Path, kind: str) -> PreTrainedModel:
    """Another dual encoder with its processor; its tokenizer is a BERT's. "siglip2 of one size" has a SigLIP's code."""
    tokenizer = _tokenizer(folder)
    text = _SIZES | {"vocab_size": len(tokenizer), "max_position_embeddings": TEXT_LENGTH}
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    vision = _SIZES | {"image_size": 32, "patch_size": 8}
    size = {"size": {"height": 32, "width": 32}}
    torch.manual_seed(2)
    model: PreTrainedModel
    processor: ProcessorMixin
    if kind == "altclip":
        # Positions of XLM-R begin behind the padding token's.
        text |= special | {"max_position_embeddings": TEXT_LENGTH + 2, "project_dim": 24}
        model = AltCLIPModel(AltCLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
        processor = AltCLIPProcessor(CLIPImageProcessorPil(**size, do_center_crop=False), tokenizer)
    elif kind == "chinese_clip":
        model = ChineseCLIPModel(ChineseCLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
        processor = ChineseCLIPProcessor(ChineseCLIPImageProcessorPil(**size, do_center_crop=False), tokenizer)
    elif kind == "metaclip_2":
        model = MetaClip2Model(MetaClip2Config(text_config=text | special, vision_config=vision, projection_dim=24))
        processor = CLIPProcessor(CLIPImageProcessorPil(**size, do_center_crop=False), tokenizer)
    elif kind == "siglip2":
        # Its processor pads to 64 tokens by itself, and its images keep their aspect ratio.
        vision = _SIZES | {"patch_size": 8, "num_patches": 16}
        model = Siglip2Model(Siglip2Config(text_config=text | {"max_position_embeddings": 64}, vision_config=vision))
        tokenizer.model_max_length = 64
        processor = Siglip2Processor(Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16), tokenizer)
    elif kind == "siglip2 of one size":
        # Published with a tokenizer that names no limit.
        tokenizer.model_max_length = int(1e30)
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
        processor = SiglipProcessor(SiglipImageProcessorPil(**size), tokenizer)
    else:
        raise ValueError(f"no tiny encoder of the kind {kind!r}")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model.eval()


def _tokenizer(folder: Path) -> BertTokenizerFast:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tiny_tokenizer(folder)
    tokenizer.model_max_length = TEXT_LENGTH
    return tokenizer
