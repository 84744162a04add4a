"""What a published checkpoint says about its model: family, head, and configuration."""

import re
from collections.abc import Mapping

import torch

from ..models.configuration_vicha import ALBEF_REFERENCE_QUIRKS, VICHA_REFERENCE_QUIRKS, ViChaConfig
from .key_table import Layout


Tensors = Mapping[str, torch.Tensor]

# The published settings, for what tensors cannot tell and the checkpoint's own `config` leaves out.
PUBLISHED_HEAD_WIDTH = 64
PUBLISHED_MIM_DECODER_HEADS = 16
_OPTIONS = {  # published name -> ours
    "temp": "temperature_init",
    "momentum": "momentum",
    "alpha": "distillation_alpha",
    "mlm_probability": "mlm_probability",
    "mask_ratio": "mim_mask_ratio",
    "ita_hidden_weight": "hierarchical_itc_weight",
    "ita_hidden_weights": "hierarchical_itc_level_weights",
    "queue_size": "queue_size",
    "embed_dim": "projection_dim",
}
HEADS = ("pretraining", "retrieval", "vqa", "entailment", "reasoning", "grounding", "text-assignment")
_PAIR_HEADS = ("reasoning", "text-assignment")


def detect_head(tensors: Tensors) -> tuple[str, ...]:
    """The heads whose checkpoints have these keys; more than one where heads share keys."""
    if any(name.startswith("text_decoder.") for name in tensors):
        return ("vqa",)
    if "ta_head.weight" in tensors:
        return ("text-assignment",)
    if any(name.startswith("cls_head.") for name in tensors):
        return ("reasoning",) if _doubled_layers(tensors) else ("entailment",)
    if any(name.startswith("text_encoder.cls.") for name in tensors):
        return ("pretraining",)
    if "itm_head.weight" in tensors:
        return ("retrieval", "grounding")
    return ()


def _doubled_layers(tensors: Tensors) -> bool:
    keys = sorted(_indices(tensors, r"text_encoder\.encoder\.layer\.(\d+)\.crossattention\.self\.key\.weight"))
    name = "text_encoder.encoder.layer.{}.crossattention.self.key.weight"
    return len(keys) > 1 and torch.equal(tensors[name.format(keys[-2])], tensors[name.format(keys[-1])])


def _indices(tensors: Tensors, pattern: str) -> set[int]:
    return {int(match.group(1)) for name in tensors if (match := re.match(pattern, name))}


def detect_mim_mode(tensors: Tensors) -> str | None:
    """The masked-image-modelling variant whose parameters the checkpoint holds; `None` without any."""
    if "mae_proj_uni.weight" in tensors:
        return "both"
    if "decoder_embed.weight" in tensors:
        return "unimodal"
    return "crossmodal" if "mae_proj.weight" in tensors else None


def detect_layout(tensors: Tensors) -> Layout:
    """What the checkpoint's names mean, see [`Layout`]."""
    first_doubled_layer = None
    if set(detect_head(tensors)) <= set(_PAIR_HEADS):
        first_doubled_layer = min(_cross_attending_layers(tensors))
    return Layout(mim_mode=detect_mim_mode(tensors), first_doubled_layer=first_doubled_layer)


def _cross_attending_layers(tensors: Tensors) -> set[int]:
    return _indices(tensors, r"text_encoder\.(?:bert\.)?encoder\.layer\.(\d+)\.crossattention\.")


def infer_config(tensors: Tensors, options: Mapping, overrides: Mapping) -> ViChaConfig:
    """
    The configuration of a ViCHA or ALBEF checkpoint.

    Args:
        tensors: the state dict, under its published names.
        options: the checkpoint's own `config`.
        overrides: fields of [`ViChaConfig`] that win over both; nested for `vision_config` and `text_config`.
    """
    text = "text_encoder.bert." if "text_encoder.bert.embeddings.LayerNorm.weight" in tensors else "text_encoder."
    cross_attention = _cross_attending_layers(tensors)
    if not cross_attention:
        raise ValueError("The checkpoint's text encoder (`text_encoder.*`) has no layer with cross-attention.")
    if 0 in cross_attention:
        raise ValueError(
            "The checkpoint's text encoder has cross-attention in its first layer: it is a SIMLA checkpoint, "
            "which this converter does not read; it reads ViCHA and ALBEF."
        )
    concepts = any(name.startswith("kw_encoder.") for name in tensors)
    levels = len(_indices(tensors, r"vision_proj_hidden\.(\d+)\.weight"))
    layout = detect_layout(tensors)
    mim_mode = layout.mim_mode
    fields = {
        "vision_config": _infer_vision(tensors, options),
        "text_config": _infer_text(tensors, text, min(cross_attention), layout),
        "use_concepts": concepts,
        "num_concept_layers": len(_indices(tensors, r"kw_encoder\.encoder\.layer\.(\d+)\.")),
        "reference_quirks": list(VICHA_REFERENCE_QUIRKS if concepts else ALBEF_REFERENCE_QUIRKS),
    }
    if "vision_proj.weight" in tensors:
        fields["projection_dim"] = tensors["vision_proj.weight"].shape[0]
    fields |= {ours: options[published] for published, ours in _OPTIONS.items() if options.get(published) is not None}
    if "image_queue" in tensors:
        fields["queue_size"] = tensors["image_queue"].shape[1]
    if levels:
        fields["hierarchical_itc_levels"] = levels
    else:
        fields |= {"hierarchical_itc_weight": 0.0, "hierarchical_itc_level_weights": None}
    if mim_mode is None:
        fields["mim_weight"] = 0.0
    else:
        fields["mim_mode"] = mim_mode
    if "decoder_embed.weight" in tensors:
        fields |= {
            "mim_decoder_hidden_size": tensors["decoder_embed.weight"].shape[0],
            "mim_decoder_layers": len(_indices(tensors, r"decoder_blocks\.(\d+)\.")),
            "mim_decoder_heads": PUBLISHED_MIM_DECODER_HEADS,
        }
    return ViChaConfig(**_merge(fields, overrides))


def _infer_vision(tensors: Tensors, options: Mapping) -> dict:
    patches = tensors["visual_encoder.patch_embed.proj.weight"]
    width, patch_size = patches.shape[0], patches.shape[-1]
    grid = int((tensors["visual_encoder.pos_embed"].shape[1] - 1) ** 0.5)
    # 380-pixel models have a grid of 23 patches and leave the last 12 pixels unused.
    image_size = options.get("image_res")
    if image_size is None or image_size // patch_size != grid:
        image_size = grid * patch_size
    return {
        "hidden_size": width,
        "num_hidden_layers": len(_indices(tensors, r"visual_encoder\.blocks\.(\d+)\.")),
        "num_attention_heads": max(width // PUBLISHED_HEAD_WIDTH, 1),
        "intermediate_size": tensors["visual_encoder.blocks.0.mlp.fc1.weight"].shape[0],
        "image_size": image_size,
        "patch_size": patch_size,
    }


def _infer_text(tensors: Tensors, prefix: str, fusion_layer: int, layout: Layout) -> dict:
    vocab_size, width = tensors[f"{prefix}embeddings.word_embeddings.weight"].shape
    num_layers = len(_indices(tensors, re.escape(prefix) + r"encoder\.layer\.(\d+)\."))
    if layout.first_doubled_layer is not None:
        num_layers -= (num_layers - layout.first_doubled_layer) // 2
    return {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "num_hidden_layers": num_layers,
        "num_attention_heads": max(width // PUBLISHED_HEAD_WIDTH, 1),
        "intermediate_size": tensors[f"{prefix}encoder.layer.0.intermediate.dense.weight"].shape[0],
        "fusion_layer": fusion_layer,
        "max_position_embeddings": tensors[f"{prefix}embeddings.position_embeddings.weight"].shape[0],
        "type_vocab_size": tensors[f"{prefix}embeddings.token_type_embeddings.weight"].shape[0],
    }


def _merge(fields: dict, overrides: Mapping) -> dict:
    merged = dict(fields)
    for name, value in overrides.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merge(merged[name], value) if nested else value
    return merged
