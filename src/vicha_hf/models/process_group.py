"""What objectives need from the other training processes. In a single process everything here is the identity."""

import torch
import torch.distributed as dist


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _GatherWithGradient(torch.autograd.Function):
    """
    All-gather whose backward sums each process's gradient of the gathered tensor and keeps the own rows. Data-parallel
    training then averages over processes, which makes the result the gradient of the loss over the whole batch.
    """

    @staticmethod
    def forward(ctx, tensor: torch.Tensor) -> torch.Tensor:
        ctx.rows = tensor.shape[0]
        gathered = [torch.empty_like(tensor) for _ in range(world_size())]
        dist.all_gather(gathered, tensor.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        start = rank() * ctx.rows
        return gradient[start : start + ctx.rows]


def gather_with_gradient(tensor: torch.Tensor) -> torch.Tensor:
    """[B, ...] of each of W processes -> [W * B, ...] in rank order, differentiable."""
    return tensor if world_size() == 1 else _GatherWithGradient.apply(tensor)


@torch.no_grad()
def gather(tensor: torch.Tensor) -> torch.Tensor:
    """[B, ...] of each of W processes -> [W * B, ...] in rank order, without gradient."""
    return tensor.detach() if world_size() == 1 else _GatherWithGradient.apply(tensor.detach())


def mean_over_processes(total: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """
    A process's share of the mean of `total / count` over all processes: averaging the returned value (and its
    gradient) over processes gives sum(total) / sum(count), however the counts differ. 0 where nothing is counted.
    """
    count = count.detach().to(total.dtype)
    if world_size() > 1:
        count = count.clone()
        dist.all_reduce(count)
        count = count / world_size()
    return torch.where(count > 0, total / count.clamp(min=torch.finfo(total.dtype).tiny), total * 0.0)
