"""What the ranks of a stage say to each other while they train: gather rows, sum tensors.

With one process nothing is sent and torch.distributed is not touched.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET_BYTES = 32 * 2**20  # of gradients sent at once


@dataclass(frozen=True)
class Group:
    """The ranks that train together: torch.distributed's default process group, or this process alone."""

    rank: int = 0
    world_size: int = 1

    @property
    def alone(self) -> bool:
        """Whether there is nobody to send anything to."""
        return self.world_size == 1

    @staticmethod
    def current() -> Group:
        """The default process group if one was started, else this process alone."""
        if dist.is_available() and dist.is_initialized():
            return Group(dist.get_rank(), dist.get_world_size())
        return Group()

    def gather(self, x_b: Tensor) -> Tensor:
        """All ranks' rows, in the order of ranks: [b, ...] of each -> [world_size * b, ...]. No autograd."""
        if self.alone:
            return x_b
        x_b = x_b.detach().contiguous()
        gathered_N = x_b.new_empty(self.world_size * x_b.shape[0], *x_b.shape[1:])
        dist.all_gather_into_tensor(gathered_N, x_b)
        return gathered_N

    def start_sum(self, x: Tensor) -> dist.Work | None:
        """Begin to replace `x` by its sum over all ranks; call `wait()` on the result before reading it."""
        if self.alone:
            return None
        return dist.all_reduce(x, op=dist.ReduceOp.SUM, async_op=True)

    def sum(self, x: Tensor) -> Tensor:
        """`x`, replaced by its sum over all ranks."""
        work = self.start_sum(x)
        if work is not None:
            work.wait()
        return x

    def broadcast(self, x: Tensor, *, source: int = 0) -> Tensor:
        """`x`, replaced by that of rank `source`."""
        if not self.alone:
            dist.broadcast(x, src=source)
        return x


class GradientSum:
    """Sums the parameters' gradients over all ranks, in buckets, while the backward pass still runs.

    Not DistributedDataParallel: the loss of `losses.py` hands each rank the gradient of the *global* loss
    with respect to its own rows, so gradients are summed, not averaged, and some parameters get
    theirs outside of autograd.

    The first backward pass records the order in which gradients become ready; rank 0's order fixes the
    buckets, and each gradient is from then on a view into its bucket. Buckets are sent in order, the same on
    every rank. The layout depends on nothing else, so a resumed stage sums in the same order, bit for bit.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], group: Group) -> None:
        self._parameters = parameters
        self._group = group
        self._order: list[int] = []  # indices of parameters in the order in which they became ready
        self._buckets: list[Tensor] = []
        self._bucket_of: dict[int, int] = {}  # index of parameter -> index of bucket
        self._pending: list[int] = []  # gradients still missing in each bucket
        self._sent = 0
        self._works: list[dist.Work] = []
        self._armed = False
        if not group.alone:
            for index, parameter in enumerate(parameters):
                parameter.register_post_accumulate_grad_hook(lambda _, index=index: self._ready(index))

    def zero(self) -> None:
        """Forget the gradients of the last step."""
        for bucket in self._buckets:
            bucket.zero_()
        if not self._buckets:
            for parameter in self._parameters:
                parameter.grad = None

    def add(self, parameter: torch.nn.Parameter, gradient: Tensor) -> None:
        """Add to a gradient that does not come through autograd. Before `arm` or after it, once a step."""
        if parameter.grad is None:
            parameter.grad = gradient.clone()
        else:
            parameter.grad.add_(gradient)

    def arm(self, complete: list[torch.nn.Parameter]) -> None:
        """The next backward pass is the last of this step; the gradients of `complete` are there already."""
        if self._group.alone:
            return
        self._armed = True
        self._sent = 0
        self._pending = [0] * len(self._buckets)
        for bucket in self._bucket_of.values():
            self._pending[bucket] += 1
        ready = {id(parameter) for parameter in complete}
        for index, parameter in enumerate(self._parameters):
            if id(parameter) in ready:
                self._ready(index)

    def break_off(self) -> None:
        """Send nothing more of this step."""
        self._armed = False

    def finish(self) -> None:
        """Wait until every gradient is the sum over all ranks."""
        if self._group.alone or not self._parameters:
            return
        self._armed = False
        if not self._buckets:
            self._build()
            self._pending = [0] * len(self._buckets)
        self._send()
        assert self._sent == len(self._buckets), "a parameter got no gradient"
        for work in self._works:
            work.wait()
        self._works.clear()

    def _ready(self, index: int) -> None:
        if not self._armed:
            return
        if not self._buckets:
            self._order.append(index)
            return
        self._pending[self._bucket_of[index]] -= 1
        self._send()

    def _send(self) -> None:
        while self._sent < len(self._buckets) and self._pending[self._sent] == 0:
            work = self._group.start_sum(self._buckets[self._sent])
            assert work is not None
            self._works.append(work)
            self._sent += 1

    def _build(self) -> None:
        missing = set(range(len(self._parameters))) - set(self._order)
        assert not missing, "a parameter got no gradient"
        device = self._parameters[0].device
        order = self._group.broadcast(torch.tensor(self._order, device=device)).tolist()
        members: list[list[int]] = [[]]
        filled = 0
        for index in order:
            size = self._parameters[index].numel() * self._parameters[index].element_size()
            if members[-1] and filled + size > BUCKET_BYTES:
                members.append([])
                filled = 0
            members[-1].append(index)
            filled += size
        for number, indices in enumerate(members):
            parameters = [self._parameters[index] for index in indices]
            bucket = torch.empty(sum(p.numel() for p in parameters), dtype=parameters[0].dtype, device=device)
            start = 0
            for index, parameter in zip(indices, parameters, strict=True):
                view = bucket[start : start + parameter.numel()].view_as(parameter)
                assert parameter.grad is not None
                parameter.grad = view.copy_(parameter.grad)
                self._bucket_of[index] = number
                start += parameter.numel()
            self._buckets.append(bucket)
