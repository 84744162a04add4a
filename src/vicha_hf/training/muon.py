"""Muon: matrices of hidden layers move by orthogonalised momentum, everything else by AdamW.

Source: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024
(https://kellerjordan.github.io/posts/muon/). `torch.optim.Muon` takes one matrix after another, in bfloat16 wherever it runs,
and knows no other parameters. A CPU without bfloat16 arithmetic needs about 30 times as long for that. On one that has it,
`torch.optim.Muon` takes 0.8 times as long as this one, and the whole training step 0.97 times (examples/benchmarks/muon.py). Here
matrices of one shape go together, in float32 on a CPU unless `float32_matmul_precision` allows bfloat16, by polynomials that need four rounds instead of five. One optimizer holds
all parameters, as Accelerate and the checkpoints expect.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from .matmul_precision import multiplies_in_bfloat16


# x -> a x + b x^3 + c x^5, one after the other: each brings the interval that the one before leaves as close to 1 as a quintic can
# (N. Amsel et al., "The Polar Express", arXiv 2505.16932, section 3). Singular values from 0.003 to 1 end between 0.78 and 1.20, with
# four rounds; five rounds of the post's one polynomial leave 0.68 to 1.20.
_QUINTICS = (
    (8.3837, -24.7659, 18.3571),
    (4.0434, -3.0114, 0.5695),
    (3.5056, -2.6267, 0.5257),
    (2.4901, -1.8343, 0.4368),
)
# Beyond its interval a quintic grows fast: room for the rounding errors of bfloat16.
_ROOM = 1.01


def hidden_matrices(model: nn.Module) -> set[int]:
    """The ids of the weights of all linear maps inside lists of modules.

    These are the stacked layers, and the projections of hierarchical ITC, one per level; not embeddings, heads and the projections
    to the joint space.
    """
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return {id(m.weight) for stack in stacks for m in stack.modules() if isinstance(m, nn.Linear)}


@torch.no_grad()
def orthogonalise(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """About U V^T of each matrix U S V^T, by polynomials of it.

    Args:
        matrices: `(number, rows, columns)`.
        dtype: computed in; bfloat16 suffices.

    Returns:
        The shape and dtype of `matrices`.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.to(dtype)
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for a, b, c in _QUINTICS:
        x = x / _ROOM
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(Optimizer):
    """Muon for the groups with `orthogonal=True`, AdamW for the others.

    A matrix of `(out, in)` moves by `lr * sqrt(max(1, out / in))` times its orthogonalised Nesterov momentum; weight decay is
    decoupled, as AdamW's.

    Args:
        groups: parameter groups, each with `orthogonal`, its `weight_decay`, and, where it differs from the others', its `lr`.
        lr: of groups that name none.
        momentum: decay of the running mean of the gradient of a matrix.
        betas, eps, fused: of AdamW.
    """

    def __init__(
        self,
        groups: list[dict],
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        fused: bool | None = None,
        foreach: bool | None = None,
    ):
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "fused": fused, "foreach": foreach}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["orthogonal"]:
                self._step_matrices(parameters, group)
            else:
                self._step_others(parameters, group)
        return loss

    def _step_matrices(self, parameters: list[nn.Parameter], group: dict) -> None:
        by_shape: dict[torch.Size, list[nn.Parameter]] = {}
        for parameter in parameters:
            by_shape.setdefault(parameter.shape, []).append(parameter)
        for (rows, columns), alike in by_shape.items():
            gradients = [parameter.grad for parameter in alike]
            means = [self._state(parameter, "momentum_buffer")["momentum_buffer"] for parameter in alike]
            torch._foreach_lerp_(means, gradients, 1 - group["momentum"])
            nesterov = torch.stack(torch._foreach_lerp(gradients, means, group["momentum"]))
            updates = orthogonalise(nesterov, self._dtype(nesterov.device))
            torch._foreach_mul_(alike, 1 - group["lr"] * group["weight_decay"])
            scale = max(1.0, rows / columns) ** 0.5
            torch._foreach_add_(alike, updates.unbind(), alpha=-group["lr"] * scale)

    @staticmethod
    def _dtype(device: torch.device) -> torch.dtype:
        """A CPU computes in float32, unless it may multiply in bfloat16, and can."""
        may = device.type != "cpu" or torch.get_float32_matmul_precision() == "medium"
        return torch.bfloat16 if may and multiplies_in_bfloat16(device) else torch.float32

    def _step_others(self, parameters: list[nn.Parameter], group: dict) -> None:
        states = [self._state(parameter, "exp_avg", "exp_avg_sq") for parameter in parameters]
        for parameter, state in zip(parameters, states, strict=True):
            state.setdefault("step", torch.zeros((), device=parameter.device))
        adamw(
            parameters,
            [parameter.grad for parameter in parameters],
            *([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq")),
            [],
            [state["step"] for state in states],
            foreach=group["foreach"],
            fused=group["fused"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _state(self, parameter: nn.Parameter, *means: str) -> dict[str, Tensor]:
        state = self.state[parameter]
        for name in means:
            if name not in state:
                state[name] = torch.zeros_like(parameter)
        return state
