"""AdamW with the parameter groups of vision-language pretraining."""

import torch
from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float, temperature_lr_scale: float = 1.0) -> list[dict]:
    """Trainable parameters in groups: decayed, not decayed, and the temperature where it learns at a rate of its own.

    Not decayed are biases, every 1-dimensional parameter (norm scales), and what the model itself lists in
    `no_weight_decay()` (temperature, [CLS], positions and mask tokens, unless its configuration reproduces the
    published code). Tied parameters appear once; parameters without gradient (the momentum teacher) not at all.

    Args:
        model: any module; `no_weight_decay()` is optional and returns parameter names.
        weight_decay: of the first group.
        temperature_lr_scale: `lr_scale` of the temperature's group, by which its learning rate is multiplied; 1 elsewhere.

    Raises:
        ValueError: `no_weight_decay()` names a parameter that the model does not have.
    """
    # A tied parameter has several names, any of which may be listed.
    every_name = dict(model.named_parameters(remove_duplicate=False))
    listed = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()
    if unknown := sorted(listed - every_name.keys()):
        raise ValueError(f"{type(model).__name__}.no_weight_decay() names parameters that do not exist: {unknown}")
    exempt = {id(every_name[name]) for name in listed}

    grouped: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        # A single number (the temperature) is no norm scale: only the model's own list exempts it.
        vector = parameter.ndim == 1 and parameter.numel() > 1
        without = vector or name.endswith(".bias") or id(parameter) in exempt
        scale = temperature_lr_scale if name.split(".")[-1] == "temperature" else 1.0
        grouped.setdefault((0.0 if without else weight_decay, scale), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale}
        for (decay, scale), parameters in sorted(grouped.items(), key=lambda item: item[0], reverse=True)
    ]


def create_optimizer(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    device: torch.device,
    temperature_lr_scale: float = 1.0,
) -> torch.optim.AdamW:
    """AdamW with the published betas (0.9, 0.999) and eps 1e-8, in the fastest form that `device` has.

    Args:
        model: its parameters may still be elsewhere; they must be on `device` before the first step.
        learning_rate: overwritten by the schedule at every step.
        weight_decay, temperature_lr_scale: see [`parameter_groups`].
        device: where training runs.
    """
    fastest = {"fused": True} if device.type == "cuda" else {"foreach": True}
    return torch.optim.AdamW(parameter_groups(model, weight_decay, temperature_lr_scale), lr=learning_rate, **fastest)
