"""The momentum teacher and everything else that exists only while training (ALBEF section 3.3)."""

import copy

import torch
from torch import nn

from .feature_queue import FeatureQueue


class TrainingState(nn.Module):
    """
    A copy of the online modules that follows them as a moving average, and the feature queue that it fills. The
    teacher gets no gradient and always runs without dropout: its outputs are targets.

    Args:
        online: the modules to follow, by name; copied together, so that weights tied between them stay tied.
        queue: where the teacher's features are kept; `None` for heads without a contrastive loss.
    """

    def __init__(self, online: dict[str, nn.Module], queue: FeatureQueue | None = None):
        super().__init__()
        self.queue = queue
        self._copy(online)

    def _copy(self, online: dict[str, nn.Module]) -> None:
        self.teacher = copy.deepcopy(nn.ModuleDict(online))
        self.drop_adapters(merge=True)
        self.teacher.requires_grad_(False).eval()

    @torch.no_grad()
    def resize_vocabulary(self, online: dict[str, nn.Module]) -> None:
        """
        Gives the teacher as many rows for tokens as the online modules have now. It keeps its own weights for the tokens
        that stay.
        """
        learnt = dict(self.teacher.named_parameters())
        self._copy(online)
        for name, parameter in self.teacher.named_parameters():
            rows = min(len(parameter), len(learnt[name]))
            parameter[:rows] = learnt[name][:rows]

    def train(self, mode: bool = True):
        """Keeps the teacher in evaluation mode."""
        super().train(False)
        return self

    @torch.no_grad()
    def drop_adapters(self, merge: bool = False) -> None:
        """
        Gives the teacher plain modules: it follows the weights that adapters (of peft) make, and has none of its own.

        Args:
            merge: keep what adapters add to the weights; without it they are taken to be new.
        """
        adapted = [(name, module) for name, module in self.teacher.named_modules() if _is_adapted(module)]
        for name, module in adapted:
            if merge and hasattr(module, "get_base_layer"):
                plain = module.get_base_layer()
                plain.weight = nn.Parameter(_effective_weight(module), requires_grad=False)
            else:
                plain = _plain_module(module) if merge else _original_module(module)
            parent, _, child = name.rpartition(".")
            setattr(self.teacher.get_submodule(parent), child, plain)

    @torch.no_grad()
    def update_teacher(self, online: dict[str, nn.Module], momentum: float) -> None:
        """
        teacher <- momentum * teacher + (1 - momentum) * online, parameters only. Where parameters are split over the
        processes (ZeRO-3, FSDP2), each process moves its own part: both are split alike.
        """
        teacher = list(self.teacher.parameters())
        online = nn.ModuleDict(online)
        if any(_is_adapted(module) for module in online.modules()):
            online = [_online_weight(online, name) for name, _ in self.teacher.named_parameters()]
        else:
            online = list(online.parameters())
        _require_alike(teacher, online)
        _require_precision(teacher, momentum)
        kept = [_kept_part(parameter) for parameter in teacher]
        torch._foreach_lerp_(kept, [_kept_part(parameter) for parameter in online], 1.0 - momentum)
        for parameter in teacher:
            _forget_gathered_copy(parameter)


def _is_adapted(module: nn.Module) -> bool:
    """Whether peft stands between a module and its parent: adapters on a layer, or a copy of a module that is trained whole."""
    return hasattr(module, "get_base_layer") or hasattr(module, "original_module")


def _original_module(module: nn.Module) -> nn.Module:
    """A module as it was before peft came."""
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module.original_module


def _plain_module(module: nn.Module) -> nn.Module:
    """The module whose parameters count, which for a copy that is trained whole is the copy."""
    if hasattr(module, "get_base_layer"):
        return module.get_base_layer()
    if hasattr(module, "original_module") and not module.disable_adapters:
        return module.modules_to_save[module.active_adapters[0]]
    return _original_module(module) if _is_adapted(module) else module


def _effective_weight(layer: nn.Module) -> torch.Tensor:
    """Weight of a layer with what its active adapters add."""
    weight = layer.get_base_layer().weight.detach()
    if layer.merged or layer.disable_adapters:
        return weight.clone()
    present = [name for name in layer.active_adapters if name in layer.scaling]
    return sum((layer.get_delta_weight(name).to(weight) for name in present), weight.clone())


def _online_weight(online: nn.Module, name: str) -> torch.Tensor:
    """The weight that a teacher's parameter follows, found by its name through what peft has put in between."""
    *path, leaf = name.split(".")
    module = online
    for step in path:
        module = getattr(_plain_module(module), step)
    if leaf == "weight" and hasattr(module, "get_base_layer"):
        return _effective_weight(module)
    return getattr(_plain_module(module), leaf)


def is_sharded(parameter: nn.Parameter) -> bool:
    """Whether this process keeps only a part of a parameter: DeepSpeed's ZeRO-3 or FSDP2."""
    return hasattr(parameter, "ds_tensor") or hasattr(parameter, "device_mesh")


def _kept_part(parameter: nn.Parameter) -> torch.Tensor:
    """
    Part of a parameter that lies on this process: DeepSpeed's ZeRO-3 has it in `ds_tensor`, and gathers the rest into
    `data`.
    """
    return parameter.ds_tensor if hasattr(parameter, "ds_tensor") else parameter.detach()


def _forget_gathered_copy(parameter: nn.Parameter) -> None:
    """Small parameters stay gathered under ZeRO-3; after a change of their parts they must be gathered anew."""
    if hasattr(parameter, "ds_tensor") and parameter.ds_status.name == "AVAILABLE":
        parameter.partition()


def _require_alike(teacher: list[nn.Parameter], online: list[nn.Parameter]) -> None:
    if [_kept_part(parameter).shape for parameter in teacher] != [_kept_part(parameter).shape for parameter in online]:
        raise RuntimeError(
            "Teacher and model are not split over the processes alike. Call `add_training_state()` before the model is "
            "prepared for distributed training, and shard both by the same rule."
        )


def _require_precision(teacher: list[nn.Parameter], momentum: float) -> None:
    """A step of 1 - momentum between two neighbouring numbers is rounded away, and the teacher stays where it is."""
    coarsest = max([0.0, *(torch.finfo(parameter.dtype).eps for parameter in teacher)])
    if 1.0 - momentum < coarsest and momentum < 1.0:
        raise RuntimeError(
            f"The teacher's weights are {teacher[0].dtype}, too coarse to follow at momentum={momentum}: a step of "
            f"{1.0 - momentum:.3g} is rounded away. Keep the weights in float32 and compute in lower precision by autocast."
        )
