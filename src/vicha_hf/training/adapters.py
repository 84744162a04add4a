"""Training fewer weights than all of them, for small GPUs: frozen parts, and low-rank adapters through the `peft` library.

References:
    [1] Hu et al., LoRA, arXiv 2106.09685.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from ..arguments import require
from ..models.modeling_vision_text import VisionTextPreTrainedModel
from ..models.training_state import TRAINING_STATE_PREFIX


logger = logging.getLogger(__name__)

# What adapters stand for; projections and heads are small, start anew with each task, and train as they are.
ENCODERS = ("vision_model", "text_model", "concept_model")
ADAPTER = "default"


@dataclass(kw_only=True)
class LoraArguments:
    """Low-rank adapters: a product of two thin matrices is trained on top of each weight, in the place of the weight.

    Args:
        r: Width of the thin matrices.
        alpha: The product is multiplied by alpha / r.
        dropout: Share of an adapter's inputs that is dropped in training.
        target_modules: Names of the linear layers that get one. The vision encoder's are q_proj, k_proj, v_proj, o_proj, fc1 and fc2, the text and concept encoders' query, key, value and dense.
        parts: Parts of the model that get adapters, such as text_model, or with dots text_model.encoder.layer.0; null takes every encoder. Other parts train whole, as those with random weights must, unless model.freeze names them.
    """

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: list[str] = field(default_factory=lambda: ["q_proj", "v_proj", "query", "value"])
    parts: list[str] | None = None

    def __post_init__(self):
        require(
            find_spec("peft") is not None,
            "model.lora",
            self,
            'it needs the peft library; install it with pip install "vicha_hf[peft]".',
        )
        require(self.r >= 1, "model.lora.r", self.r, "it must be at least 1.")
        require(self.alpha > 0, "model.lora.alpha", self.alpha, "it must be above 0.")
        require(0 <= self.dropout < 1, "model.lora.dropout", self.dropout, "choose it within [0, 1).")
        require(bool(self.target_modules), "model.lora.target_modules", [], "name at least one kind of linear layer.")
        require(self.parts != [], "model.lora.parts", [], "name at least one part, or null for every encoder.")


@dataclass(kw_only=True)
class TrainedPartsArguments:
    """Choice of the weights that train; all of them by default.

    Args:
        freeze: see the classes that derive from this one.
        lora: likewise.
    """

    freeze: list[str] = field(default_factory=list)
    lora: LoraArguments | None = None


def choose_trained_parts(model: VisionTextPreTrainedModel, arguments: TrainedPartsArguments) -> None:
    """Freezes what `arguments` say and adds adapters. To be called before `add_training_state()`, so that the teacher has the
    same adapters: it follows each of their matrices, and the frozen weights stay what both have in common.

    Args:
        model: with its weights loaded.
        arguments: what trains.

    Raises:
        ValueError: a part or a layer that the model does not have.
    """
    if not arguments.freeze and arguments.lora is None:
        return
    if model.training_state is not None:
        raise ValueError("Choose what trains before `add_training_state`: the teacher copies it.")
    for name in arguments.freeze:
        _part(model.base_model, name).requires_grad_(False)
    if arguments.lora is not None:
        _add_adapters(model, arguments.lora, frozen=arguments.freeze)
    sizes = [(value.numel(), value.requires_grad) for value in model.parameters()]
    trained = sum(size for size, trains in sizes if trains)
    logger.info("%.2f of %.2f million weights are trained.", trained / 1e6, sum(size for size, _ in sizes) / 1e6)


def has_adapters(model: nn.Module) -> bool:
    """Whether adapters were added to a model."""
    return any(".lora_A." in name for name, _ in model.named_parameters())


@torch.no_grad()
def merged_weights(model: nn.Module, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with every adapter added to the weight that it stands on, under the names of a model without adapters.

    Args:
        model: unwrapped; teacher and queue are left out.
        state_dict: its whole weights.
    """
    inference = {name: value for name, value in state_dict.items() if not name.startswith(TRAINING_STATE_PREFIX)}
    if not has_adapters(model):
        return inference
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and not name.startswith(TRAINING_STATE_PREFIX):
            weight = inference[f"{name}.base_layer.weight"]
            inference[f"{name}.base_layer.weight"] = weight + module.get_delta_weight(ADAPTER).to(weight)
    return {name.replace(".base_layer.", "."): value for name, value in inference.items() if ".lora_" not in name}


def _part(base_model: nn.Module, name: str, option: str = "model.freeze") -> nn.Module:
    parts = {path for path, _ in base_model.named_modules() if path}
    near = ", ".join(sorted(path for path in parts if "." not in path))
    require(name in parts, option, name, f"the model has no such part; it has {near}, and parts of them with dots.")
    return base_model.get_submodule(name)


def _add_adapters(model: VisionTextPreTrainedModel, lora: LoraArguments, frozen: Sequence[str]) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    base_model = model.base_model
    encoders = [name for name in ENCODERS if getattr(base_model, name, None) is not None]
    names = lora.parts or encoders
    adapted = {name: _part(base_model, name, option="model.lora.parts") for name in names}
    layers = {name: _linear_layers(part) for name, part in adapted.items()}
    known = set().union(*(_linear_layers(getattr(base_model, name)) for name in encoders))
    unknown = sorted(set(lora.target_modules) - known)
    require(
        not unknown,
        "model.lora.target_modules",
        lora.target_modules,
        f"{', '.join(unknown)} is the name of no linear layer of {', '.join(encoders)}; there are {', '.join(sorted(known))}.",
    )
    chosen = {
        name: [target for target in lora.target_modules if target in layers[name]]
        for name in names
        if not any(f"{name}.".startswith(f"{part}.") for part in frozen)
    }
    require(
        any(chosen.values()),
        "model.freeze",
        list(frozen),
        f"no part is left for the adapters of model.lora.target_modules={lora.target_modules}.",
    )
    for name, targets in chosen.items():
        adapted[name].requires_grad_(False)
        if targets:
            config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets)
            inject_adapter_in_model(config, adapted[name], ADAPTER)
    # Adapters of layers that no objective runs would never get a gradient, nor those inside a part that is to stay as it is.
    model._freeze_untrained()
    for name in frozen:
        base_model.get_submodule(name).requires_grad_(False)


def _linear_layers(encoder: nn.Module) -> set[str]:
    return {name.split(".")[-1] for name, module in encoder.named_modules() if isinstance(module, nn.Linear)}
