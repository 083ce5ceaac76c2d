"""Ranks as threads of this process: what torch.distributed does, without its processes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from torch import Tensor

from modelchain_trainer.distributed.collectives import Group
from tests.processes import PATIENCE_SECONDS

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ThreadGroup(Group):
    """What one rank sees of the others: a table on which each lays its tensor."""

    barrier: threading.Barrier
    table: dict[int, Tensor]

    def gather(self, x_b: Tensor) -> Tensor:
        return torch.cat(self._of_all(x_b))

    def sum(self, x: Tensor) -> Tensor:
        return x.copy_(torch.stack(self._of_all(x)).sum(dim=0))

    def start_sum(self, x: Tensor) -> Any:
        self.sum(x)
        return SimpleNamespace(wait=lambda: None)

    def broadcast(self, x: Tensor, *, source: int = 0) -> Tensor:
        return x.copy_(self._of_all(x)[source])

    def _of_all(self, x: Tensor) -> list[Tensor]:
        self.table[self.rank] = x.clone()
        self.barrier.wait()
        laid = [self.table[rank] for rank in range(self.world_size)]
        self.barrier.wait()  # nobody lays the next one before all have looked
        return laid


def on_ranks(world_size: int, work: Callable[[Group], T]) -> list[T]:
    """What `work` returns on each rank. A rank that fails ends the wait of the others; its error is raised."""
    barrier, table = threading.Barrier(world_size, timeout=PATIENCE_SECONDS), {}

    def run(rank: int) -> T:
        try:
            return work(ThreadGroup(rank, world_size, barrier=barrier, table=table))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(world_size) as threads:
        ranks = [threads.submit(run, rank) for rank in range(world_size)]
    errors = [error for error in (rank.exception() for rank in ranks) if error is not None]
    if errors:
        raise min(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError))
    return [rank.result() for rank in ranks]
