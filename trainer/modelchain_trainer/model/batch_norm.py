"""BatchNorm (Ioffe & Szegedy, arXiv 1502.03167) in a training whose result depends on neither ranks nor micro-batches.

A layer takes its statistics over a group of samples of a fixed size (so "ghost batches", Hoffer et al., arXiv
1705.08741; Goyal et al., arXiv 1706.02677, keep to 32 on any number of GPUs). The running statistics, which are used
outside of training, move once a step towards the mean of all groups of the global batch:

    running <- (1 - momentum) * running + momentum * mean over groups

They are part of the model's state: alike on all ranks, kept in checkpoints, averaged by `emaDecay` and published as the
weights are. A step that is skipped leaves them, and so does a forward pass that is made again for its gradient.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from modelchain.errors import ConfigurationError
from modelchain_trainer.distributed.collectives import Group

_RUNNING = ("running_mean", "running_var")


class BatchNorms:
    """All BatchNorm layers of a module."""

    def __init__(self, module: nn.Module) -> None:
        self._layers = [one for one in module.modules() if isinstance(one, _BatchNorm)]
        self._momenta = [0.1 if one.momentum is None else one.momentum for one in self._layers]
        for layer in self._layers:
            layer.momentum = 1.0  # a group leaves its own statistics
            layer.num_batches_tracked = None  # read by nobody
        self._sum: Tensor | None = None  # of the groups' statistics of this step, layer after layer
        self._groups = 0
        self._recorded = True

    def __bool__(self) -> bool:
        return bool(self._layers)

    def in_groups(self, module: Callable[[Tensor], Tensor], images: Tensor, size: int) -> Tensor:
        """`module` of each `size` of the images by themselves, as in training.

        Raises ConfigurationError where some are left that fill no group.
        """
        if images.shape[0] % size:
            raise ConfigurationError(
                f"{images.shape[0]} samples are no multiple of the {size} that are normed together; write a "
                "training.globalBatchSize and microBatchSize with which each process has a multiple of normBatchSize"
            )
        return torch.cat([self._one_group(module, group) for group in images.split(size)])

    def use_running(self) -> None:
        """Take no statistics: norm by the running ones, whatever mode the module is in."""
        for layer in self._layers:
            layer.eval()

    @contextmanager
    def recomputing(self) -> Iterator[None]:
        """Groups that have been seen in this step already do not count again."""
        self._recorded = False
        try:
            yield
        finally:
            self._recorded = True

    @torch.no_grad()
    def end_step(self, group: Group, skip: Tensor) -> None:
        """Move the running statistics by what this step's groups on all ranks had, unless `skip` ([]) is not 0."""
        if not self._layers:
            return
        running = self._running()
        flat = torch.cat(running)
        found = torch.zeros_like(flat) if self._sum is None else self._sum
        total = group.sum(torch.cat([found, found.new_full((1,), self._groups)]))
        momenta = torch.cat(
            [torch.full_like(one, m) for one, m in zip(running, self._each(self._momenta), strict=True)]
        )
        moved = torch.where(skip.bool(), flat, flat.lerp(total[:-1] / total[-1], momenta))
        for one, new in zip(running, moved.split([one.numel() for one in running]), strict=True):
            one.copy_(new)
        self._sum, self._groups = None, 0

    def _one_group(self, module: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """The running statistics stay: a layer writes into a place of its own."""
        kept = self._running()
        sizes = [one.numel() for one in kept]
        flat = torch.zeros(sum(sizes), dtype=kept[0].dtype, device=kept[0].device)
        self._put(flat.split(sizes))
        try:
            found = module(images)
        finally:
            self._put(kept)
        if self._recorded:
            self._sum = flat if self._sum is None else self._sum + flat
            self._groups += 1
        return found

    def _running(self) -> list[Tensor]:
        return [getattr(layer, name) for layer in self._layers for name in _RUNNING]

    def _put(self, tensors: Any) -> None:
        places = ((layer, name) for layer in self._layers for name in _RUNNING)
        for (layer, name), tensor in zip(places, tensors, strict=True):
            setattr(layer, name, tensor)

    @staticmethod
    def _each(values: list[float]) -> list[float]:
        return [value for value in values for _ in _RUNNING]


def without_counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of another library without the counters of steps that BatchNorm has there."""
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def as_of_today(module: nn.Module, state: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """A state dict that says by which version it is written: to one that does not, BatchNorm adds its counters."""
    versioned = OrderedDict(state)
    versioned._metadata = module.state_dict()._metadata  # type: ignore[attr-defined]  # noqa: SLF001 - as torch does
    return versioned
