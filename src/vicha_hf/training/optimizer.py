"""AdamW and its relatives, with the parameter groups of vision-language pretraining."""

from typing import Literal

import torch
from torch import nn

from .muon import Muon, hidden_matrices


OptimizerKind = Literal["adamw", "adamw_8bit", "muon"]


def parameter_groups(
    model: nn.Module, weight_decay: float, temperature_lr_scale: float = 1.0, matrix_lr_scale: float | None = None
) -> list[dict]:
    """Trainable parameters in groups: decayed, not decayed, those within bounds, the temperature, and Muon's matrices.

    Not decayed are biases, every 1-dimensional parameter (norm scales), and what the model itself lists in
    `no_weight_decay()` (temperature, [CLS], positions and mask tokens, unless its configuration reproduces the
    published code). Tied parameters appear once; parameters without gradient (the momentum teacher) not at all.

    Args:
        model: any module; `no_weight_decay()` is optional and returns parameter names.
        weight_decay: of the first group.
        temperature_lr_scale: `lr_scale` of the temperature's group, by which its learning rate is multiplied; 1 elsewhere.
        matrix_lr_scale: the same for the matrices of hidden layers, in a group with `orthogonal=True`; `None` makes no such
            group.

    A group's `bounds` are what the model says in `parameter_bounds()`, or `None`.

    Raises:
        ValueError: `no_weight_decay()` names a parameter that the model does not have.
    """
    # A tied parameter has several names, any of which may be listed.
    every_name = dict(model.named_parameters(remove_duplicate=False))
    listed = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()
    if unknown := sorted(listed - every_name.keys()):
        raise ValueError(f"{type(model).__name__}.no_weight_decay() names parameters that do not exist: {unknown}")
    exempt = {id(every_name[name]) for name in listed}

    matrices = set() if matrix_lr_scale is None else hidden_matrices(model)
    bounds = model.parameter_bounds() if hasattr(model, "parameter_bounds") else {}
    grouped: dict[tuple, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        # A single number (the temperature) is no norm scale: only the model's own list exempts it.
        vector = parameter.ndim == 1 and parameter.numel() > 1
        without = vector or name.endswith(".bias") or id(parameter) in exempt
        scale = temperature_lr_scale if name.split(".")[-1] == "temperature" else 1.0
        orthogonal = id(parameter) in matrices
        if orthogonal:
            scale = matrix_lr_scale
        kind = (0.0 if without else weight_decay, scale, bounds.get(name, ()), orthogonal)
        grouped.setdefault(kind, []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": decay,
            "lr_scale": scale,
            "bounds": limits or None,
            "orthogonal": orthogonal,
        }
        for (decay, scale, limits, orthogonal), parameters in sorted(
            grouped.items(), key=lambda item: item[0], reverse=True
        )
    ]


def create_optimizer(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    device: torch.device,
    temperature_lr_scale: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    kind: OptimizerKind = "adamw",
    matrix_lr_scale: float = 1.0,
) -> torch.optim.Optimizer:
    """AdamW with the published eps of 1e-8, fused where `device` has a fused form.

    Args:
        model: its parameters may still be elsewhere; they must be on `device` before the first step.
        learning_rate: overwritten by the schedule at every step.
        weight_decay, temperature_lr_scale: see [`parameter_groups`].
        device: where training runs.
        betas: decay of the running means of the gradient and of its square; the default is the published one.
        kind: "adamw_8bit" keeps these means in 8 bits, in blocks with a scale each (Dettmers et al., arXiv
            2110.02861), for parameters of 4096 numbers or more. "muon" moves the matrices of hidden layers by
            orthogonalised momentum and the rest by AdamW ([`Muon`]).
        matrix_lr_scale: of "muon", see [`parameter_groups`].
    """
    groups = parameter_groups(model, weight_decay, temperature_lr_scale, matrix_lr_scale if kind == "muon" else None)
    if kind == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit

        optimizer = AdamW8bit(groups, lr=learning_rate, betas=betas)
    else:
        fastest = {"fused": True} if device.type in ("cuda", "cpu") else {"foreach": True}
        optimizer = (Muon if kind == "muon" else torch.optim.AdamW)(groups, lr=learning_rate, betas=betas, **fastest)
    optimizer.register_step_post_hook(_keep_within_bounds)
    return optimizer


@torch.no_grad()
def _keep_within_bounds(optimizer: torch.optim.Optimizer, args, kwargs) -> None:
    """
    Keeps parameters within bounds here, and not only in the model's forward: ZeRO steps on copies that forward never
    sees.
    """
    for group in optimizer.param_groups:
        if group["bounds"] is not None:
            for parameter in group["params"]:
                parameter.clamp_(*group["bounds"])
