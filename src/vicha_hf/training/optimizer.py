"""AdamW with the parameter groups of vision-language pretraining."""

import torch
from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Trainable parameters in two groups: decayed, and not decayed.

    Not decayed are biases, every 1-dimensional parameter (norm scales), and what the model itself lists in
    `no_weight_decay()` (temperature, [CLS], positions and mask tokens, unless its configuration reproduces the
    published code). Tied parameters appear once; parameters without gradient (the momentum teacher) not at all.

    Args:
        model: any module; `no_weight_decay()` is optional and returns parameter names.
        weight_decay: of the first group.

    Raises:
        ValueError: `no_weight_decay()` names a parameter that the model does not have.
    """
    # A tied parameter has several names, any of which may be listed.
    every_name = dict(model.named_parameters(remove_duplicate=False))
    listed = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()
    if unknown := sorted(listed - every_name.keys()):
        raise ValueError(f"{type(model).__name__}.no_weight_decay() names parameters that do not exist: {unknown}")
    exempt = {id(every_name[name]) for name in listed}

    decayed, not_decayed = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        # A single number (the temperature) is no norm scale: only the model's own list exempts it.
        vector = parameter.ndim == 1 and parameter.numel() > 1
        without = vector or name.endswith(".bias") or id(parameter) in exempt
        (not_decayed if without else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": not_decayed, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def create_optimizer(
    model: nn.Module, learning_rate: float, weight_decay: float, device: torch.device
) -> torch.optim.AdamW:
    """AdamW with the published betas (0.9, 0.999) and eps 1e-8, in the fastest form that `device` has.

    Args:
        model: its parameters may still be elsewhere; they must be on `device` before the first step.
        learning_rate: overwritten by the schedule at every step.
        weight_decay: see [`parameter_groups`].
        device: where training runs.
    """
    fastest = {"fused": True} if device.type == "cuda" else {"foreach": True}
    return torch.optim.AdamW(parameter_groups(model, weight_decay), lr=learning_rate, **fastest)
