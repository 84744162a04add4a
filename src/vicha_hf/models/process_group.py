"""
Exchange of the objectives with the other training processes. In a single process everything here is the identity.
"""

import torch
import torch.distributed as dist


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _GatherWithGradient(torch.autograd.Function):
    """
    All-gather whose backward sums each process's gradient of the gathered tensor, each row where it came from.
    Data-parallel training then averages over processes, which makes the result the gradient of the loss over the whole
    batch. The same as `torch.distributed.nn.functional.all_gather`, which torch has deprecated for a private function.
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


class _ExchangeRows(torch.autograd.Function):
    """
    Sends consecutive rows to each process and takes in theirs; backward sends each row's gradient home. The same as
    `torch.distributed.nn.functional.all_to_all_single`, which torch has deprecated for a private function.
    """

    @staticmethod
    def forward(ctx, tensor: torch.Tensor, sent: list[int], received: list[int]) -> torch.Tensor:
        ctx.sent, ctx.received = sent, received
        result = tensor.new_empty(sum(received), *tensor.shape[1:])
        dist.all_to_all_single(result, tensor.contiguous(), received, sent)
        return result

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        result = gradient.new_empty(sum(ctx.sent), *gradient.shape[1:])
        dist.all_to_all_single(result, gradient.contiguous(), ctx.sent, ctx.received)
        return result, None, None


class RowFetcher:
    """
    Fetches chosen rows of a batch that is spread over the processes: only these rows travel, not the whole batch. Every
    process must make one at the same time, and use it equally often.

    Args:
        indices: [n], rows of the whole batch in rank order, the same number on every process.
        rows_per_process: B, the same on every process.
    """

    def __init__(self, indices: torch.Tensor, rows_per_process: int):
        wanted = gather(indices).reshape(world_size(), -1)
        owner = wanted // rows_per_process
        # All that a process fetches from one owner arrives together.
        order = owner.argsort(dim=1, stable=True)
        mine = (owner == rank()).gather(1, order)
        self._sent_rows = (wanted.gather(1, order) % rows_per_process)[mine]
        self._back_in_order = order[rank()].argsort()
        self._sent = mine.sum(dim=1).tolist()
        self._received = torch.bincount(owner[rank()], minlength=world_size()).tolist()

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        """[B, ...], equal on all processes but for B's content -> [n, ...] in the order of the indices, differentiable."""
        rows = tensor.index_select(0, self._sent_rows)
        if world_size() > 1:
            rows = _ExchangeRows.apply(rows, self._sent, self._received)
        return rows.index_select(0, self._back_in_order)


def longest_of_all(lengths: list[int], device: torch.device) -> list[int]:
    """The greatest of each number over the processes."""
    if world_size() == 1:
        return lengths
    longest = torch.tensor(lengths, device=device)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    return longest.tolist()


def require_equal_rows(tensor: torch.Tensor) -> None:
    """
    Raises where processes have batches of different sizes: what is gathered would be misread. On a GPU it is an assertion
    of the device, for reading the sizes would make it wait at every step.
    """
    if world_size() == 1:
        return
    rows = tensor.shape[0]
    bounds = torch.tensor([rows, -rows], device=tensor.device)
    dist.all_reduce(bounds, op=dist.ReduceOp.MAX)
    remedy = "the contrast over processes needs equal ones: drop the last incomplete batch or fill it up."
    if tensor.device.type != "cpu":
        torch._assert_async(bounds[0] == -bounds[1], f"Processes have batches of different sizes; {remedy}")
    elif bounds[0] != -bounds[1]:
        largest, smallest = int(bounds[0]), -int(bounds[1])
        raise ValueError(
            f"Processes have batches of {smallest} to {largest} pairs (this one, of rank {rank()}, has {rows}); {remedy}"
        )
