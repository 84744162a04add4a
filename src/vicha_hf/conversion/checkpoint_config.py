"""Family, head and configuration of a published checkpoint, read from its tensors."""

import logging
import re
from collections.abc import Mapping

import torch

from ..models.configuration_simla import SIMLA_REFERENCE_QUIRKS, SimlaConfig
from ..models.configuration_vicha import ALBEF_REFERENCE_QUIRKS, VICHA_REFERENCE_QUIRKS, ViChaConfig
from ..models.configuration_vision_text import VisionTextConfig, require_known_fields
from .key_table import Layout


logger = logging.getLogger(__name__)

Tensors = Mapping[str, torch.Tensor]

# The published settings, for what tensors cannot tell and the checkpoint's own `config` leaves out.
PUBLISHED_HEAD_WIDTH = 64
PUBLISHED_MIM_DECODER_HEADS = 16
PUBLISHED_MASKED_SHARE = 75 / 256
PUBLISHED_BLOCK_SHARE = 16 / 256
_OPTIONS = {  # published name -> ours
    "temp": "temperature_init",
    "momentum": "momentum",
    "alpha": "distillation_alpha",
    "mlm_probability": "mlm_probability",
    "queue_size": "queue_size",
    "embed_dim": "projection_dim",
}
_VICHA_OPTIONS = {
    "mask_ratio": "mim_mask_ratio",
    "ita_hidden_weight": "hierarchical_itc_weight",
    "ita_hidden_weights": "hierarchical_itc_level_weights",
}
HEADS = ("pretraining", "retrieval", "vqa", "entailment", "reasoning", "grounding", "text-assignment")
_PAIR_HEADS = ("reasoning", "text-assignment")


def detect_family(tensors: Tensors) -> str:
    """
    `"simla"` where the first text layer already has a cross-attention, else `"vicha"` (ALBEF's checkpoints too).

    Raises:
        ValueError: no layer has one.
    """
    cross_attention = _cross_attending_layers(tensors)
    if not cross_attention:
        raise ValueError("The checkpoint's text encoder (`text_encoder.*`) has no layer with cross-attention.")
    return "simla" if 0 in cross_attention else "vicha"


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
    keys = _cross_attending_layers(tensors)
    return len(keys) > 1 and _share_keys(tensors, max(keys))


def _share_keys(tensors: Tensors, layer: int) -> bool:
    """Whether a layer's cross-attention has the same keys and values as that of the layer before it."""
    names = [
        f"text_encoder.encoder.layer.{{}}.crossattention.self.{part}.{kind}"
        for part in ("key", "value")
        for kind in ("weight", "bias")
    ]
    return all(
        name.format(layer - 1) in tensors and torch.equal(tensors[name.format(layer - 1)], tensors[name.format(layer)])
        for name in names
    )


def _first_doubled_layer(tensors: Tensors) -> int:
    """
    First of the doubled layers. In ViCHA it is the first with cross-attention. In SIMLA all layers have that, so it is
    the first of the pairs, counted from the last, that share their keys.
    """
    cross_attention = _cross_attending_layers(tensors)
    if detect_family(tensors) == "vicha":
        return min(cross_attention)
    num_layers = start = max(cross_attention) + 1
    while start >= 2 and _share_keys(tensors, start - 1):
        start -= 2
    published = num_layers // 3
    if start == num_layers:
        return published
    if start != published:
        logger.warning(
            "Of the %d layers those from %d on share their keys in pairs; in the published models, with a third of single "
            "layers, it would be those from %d on.",
            num_layers,
            start,
            published,
        )
    return start


def _indices(tensors: Tensors, pattern: str) -> set[int]:
    return {int(match.group(1)) for name in tensors if (match := re.match(pattern, name))}


def detect_mim_mode(tensors: Tensors) -> str | None:
    """The masked-image-modelling variant whose parameters the checkpoint holds; `None` without any."""
    if "mim_head.weight" in tensors:
        return "image-tokens"
    if "mae_proj_uni.weight" in tensors:
        return "both"
    if "decoder_embed.weight" in tensors:
        return "unimodal"
    return "crossmodal" if "mae_proj.weight" in tensors else None


def detect_layout(tensors: Tensors, overrides: Mapping | None = None) -> Layout:
    """Reads the meaning of the checkpoint's names, see [`Layout`]; `overrides` as in [`infer_config`]."""
    first_doubled_layer = None
    if set(detect_head(tensors)) <= set(_PAIR_HEADS):
        first_doubled_layer = (overrides or {}).get("text_config", {}).get("first_doubled_layer")
        if first_doubled_layer is None:
            first_doubled_layer = _first_doubled_layer(tensors)
    return Layout(
        family=detect_family(tensors), mim_mode=detect_mim_mode(tensors), first_doubled_layer=first_doubled_layer
    )


def _cross_attending_layers(tensors: Tensors) -> set[int]:
    return _indices(tensors, r"text_encoder\.(?:bert\.)?encoder\.layer\.(\d+)\.crossattention\.")


def infer_config(tensors: Tensors, options: Mapping, overrides: Mapping) -> VisionTextConfig:
    """
    The configuration of a published checkpoint, of its family.

    Args:
        tensors: the state dict, under its published names.
        options: the checkpoint's own `config`.
        overrides: fields of the family's configuration that win over both; nested for `vision_config` and `text_config`.

    Raises:
        ValueError: an override that the family's configuration does not have.
    """
    layout = detect_layout(tensors, overrides)
    simla = layout.family == "simla"
    config_class = SimlaConfig if simla else ViChaConfig
    require_known_fields(config_class, overrides)
    fields = {
        "vision_config": _infer_vision(tensors, options),
        "text_config": _infer_text(tensors, layout),
    }
    if "vision_proj.weight" in tensors:
        fields["projection_dim"] = tensors["vision_proj.weight"].shape[0]
    known = _OPTIONS if simla else _OPTIONS | _VICHA_OPTIONS
    fields |= {ours: options[published] for published, ours in known.items() if options.get(published) is not None}
    if "image_queue" in tensors:
        fields["queue_size"] = tensors["image_queue"].shape[1]
    fields |= _simla_fields(tensors, fields["vision_config"]) if simla else _vicha_fields(tensors, layout)
    return config_class(**_merge(fields, overrides))


def _vicha_fields(tensors: Tensors, layout: Layout) -> dict:
    concepts = any(name.startswith("kw_encoder.") for name in tensors)
    fields = {
        "use_concepts": concepts,
        "num_concept_layers": len(_indices(tensors, r"kw_encoder\.encoder\.layer\.(\d+)\.")),
        "reference_quirks": list(VICHA_REFERENCE_QUIRKS if concepts else ALBEF_REFERENCE_QUIRKS),
    }
    levels = len(_indices(tensors, r"vision_proj_hidden\.(\d+)\.weight"))
    if levels:
        fields["hierarchical_itc_levels"] = levels
    else:
        fields |= {"hierarchical_itc_weight": 0.0, "hierarchical_itc_level_weights": None}
    if layout.mim_mode is None:
        fields["mim_weight"] = 0.0
    else:
        fields["mim_mode"] = layout.mim_mode
    if "decoder_embed.weight" in tensors:
        fields |= {
            "mim_decoder_hidden_size": tensors["decoder_embed.weight"].shape[0],
            "mim_decoder_layers": len(_indices(tensors, r"decoder_blocks\.(\d+)\.")),
            "mim_decoder_heads": PUBLISHED_MIM_DECODER_HEADS,
        }
    return fields


def _simla_fields(tensors: Tensors, vision: Mapping) -> dict:
    fields = {"reference_quirks": list(SIMLA_REFERENCE_QUIRKS)}
    if "concept_head.weight" not in tensors:
        fields["psl_weight"] = 0.0
    if "mim_head.weight" not in tensors:
        return fields | {"mim_weight": 0.0}
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    return fields | {
        "visual_vocab_size": tensors["mim_head.weight"].shape[0],
        "mim_max_masked_patches": max(round(patches * PUBLISHED_MASKED_SHARE), 1),
        "mim_min_block_patches": max(round(patches * PUBLISHED_BLOCK_SHARE), 1),
    }


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


def _infer_text(tensors: Tensors, layout: Layout) -> dict:
    prefix = "text_encoder.bert." if "text_encoder.bert.embeddings.LayerNorm.weight" in tensors else "text_encoder."
    vocab_size, width = tensors[f"{prefix}embeddings.word_embeddings.weight"].shape
    num_layers = len(_indices(tensors, re.escape(prefix) + r"encoder\.layer\.(\d+)\."))
    if layout.first_doubled_layer is not None:
        num_layers -= (num_layers - layout.first_doubled_layer) // 2
    token_types = tensors.get(f"{prefix}embeddings.token_type_embeddings.weight")
    fields = {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "num_hidden_layers": num_layers,
        "num_attention_heads": max(width // PUBLISHED_HEAD_WIDTH, 1),
        "intermediate_size": tensors[f"{prefix}encoder.layer.0.intermediate.dense.weight"].shape[0],
        "max_position_embeddings": tensors[f"{prefix}embeddings.position_embeddings.weight"].shape[0],
        "type_vocab_size": 0 if token_types is None else token_types.shape[0],
    }
    if layout.family == "vicha":
        return fields | {"fusion_layer": min(_cross_attending_layers(tensors))}
    answer_layers = len(_indices(tensors, r"text_decoder\.bert\.encoder\.layer\.(\d+)\."))
    if layout.first_doubled_layer is not None:
        fields["first_doubled_layer"] = layout.first_doubled_layer
    elif answer_layers:
        fields["first_doubled_layer"] = num_layers - answer_layers
    return fields


def _merge(fields: dict, overrides: Mapping) -> dict:
    merged = dict(fields)
    for name, value in overrides.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merge(merged[name], value) if nested else value
    return merged
