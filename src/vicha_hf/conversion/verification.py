"""A check of a converted folder: it is read back, and its model computes what it should on golden inputs."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..models.modeling_vision_text import VisionTextPreTrainedModel


INPUTS = ("pixel_values", "input_ids", "attention_mask", "concept_input_ids", "concept_attention_mask")
OUTPUTS = ("image_embeds", "text_embeds", "last_hidden_state")
RELATIVE, ABSOLUTE = 1e-4, 1e-5


class VerificationError(ValueError):
    """A folder whose model computes something else; the message says what."""


@torch.no_grad()
def verify_folder(model: VisionTextPreTrainedModel, folder: str | Path, golden: str | Path | None = None) -> float:
    """
    Compares a saved folder with the model that was saved, weight by weight, and its outputs with what they should be.

    Args:
        model: what the checkpoint was converted to.
        folder: where it was saved.
        golden: safetensors file with inputs of the bare model, and with outputs of the published code by the names of
            `OUTPUTS`. These are normalised projections and fused states [n, T, d_t]. None takes fixed inputs and the
            outputs of `model`.

    Returns:
        The largest difference of an output.

    Raises:
        VerificationError: a weight or an output that differs, a file without inputs or outputs.
    """
    read_back = type(model).from_pretrained(folder).eval()
    weights = read_back.state_dict()
    changed = [name for name, value in weights.items() if not torch.equal(value, model.state_dict()[name])]
    if changed:
        raise VerificationError(f"{folder}: {changed[0]} is not what was saved ({len(changed)} weights differ)")
    given = golden_inputs(model) if golden is None else load_file(golden)
    inputs = {name: given[name] for name in INPUTS if name in given}
    observed = _outputs(read_back, inputs, golden)
    expected = (
        _outputs(model, inputs, golden) if golden is None else {name: given[name] for name in OUTPUTS if name in given}
    )
    if not expected:
        raise VerificationError(f"{golden} holds none of the outputs {', '.join(OUTPUTS)}")
    for name, wanted in expected.items():
        if name not in observed:
            raise VerificationError(f"{golden}: the model gives no {name} for these inputs")
        found = observed[name]
        if found.shape != wanted.shape or not torch.allclose(found, wanted, rtol=RELATIVE, atol=ABSOLUTE):
            worst = (found - wanted).abs().max() if found.shape == wanted.shape else f"shape {tuple(found.shape)}"
            raise VerificationError(f"{folder}: {name} is not that of {golden or 'the checkpoint'} (off by {worst})")
    return max((observed[name] - wanted).abs().max().item() for name, wanted in expected.items())


def golden_inputs(model: VisionTextPreTrainedModel) -> dict[str, Tensor]:
    """Two images and two texts that depend on nothing but the model's sizes."""
    vision, text = model.config.vision_config, model.config.text_config
    count = 2 * vision.num_channels * vision.image_size**2
    pixels = torch.linspace(-40, 40, count).sin().reshape(2, vision.num_channels, vision.image_size, vision.image_size)
    length = min(12, text.max_position_embeddings)
    ids = (torch.arange(2 * length).reshape(2, length) * 7919) % text.vocab_size
    ids[:, 0] = text.cls_token_id
    mask = torch.ones_like(ids)
    mask[1, length // 2 :] = 0
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask}


def _outputs(model: VisionTextPreTrainedModel, inputs: dict[str, Tensor], golden) -> dict[str, Tensor]:
    missing = [name for name in INPUTS[:3] if name not in inputs]
    if missing:
        raise VerificationError(f"{golden} holds no {missing[0]}; it needs {', '.join(INPUTS[:3])}")
    base = getattr(model, model.config.model_type)
    images = base.encode_images(
        inputs["pixel_values"], inputs.get("concept_input_ids"), inputs.get("concept_attention_mask")
    )
    texts = base.encode_texts(inputs["input_ids"], inputs["attention_mask"])
    fused = base.fuse(images, texts)
    # Heads that were trained for a task alone have no projections.
    outputs = {
        "image_embeds": images.embeds,
        "text_embeds": texts.embeds,
        "last_hidden_state": fused.last_hidden_state,
    }
    return {name: value for name, value in outputs.items() if value is not None}
