"""How ranks come by their model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from modelchain.resolved import ResolvedStage
from modelchain.spec import Sharding
from modelchain_trainer.attempt import Attempt
from modelchain_trainer.distributed.collectives import Group
from modelchain_trainer.train_state import prepare

StageOf = Callable[..., ResolvedStage]


class _InCollectiveError(Exception):
    pass


class _Group(Group):
    def broadcast(self, x: torch.Tensor, *, source: int = 0) -> torch.Tensor:  # noqa: ARG002
        raise _InCollectiveError


@dataclass
class _SecondRank:
    """What rank 1 of two sees of the others, up to its first collective."""

    waited_for: list[str] = field(default_factory=list)
    first: bool = False
    world_size: int = 2
    group: Group = field(default_factory=lambda: _Group(1, 2))

    def share(self, name: str, make: Callable[[], str]) -> str:  # noqa: ARG002
        self.waited_for.append(name)
        return Sharding.NONE.value if name == "sharding" else ""


def test_ranks_wait_for_the_weights_before_the_first_collective_which_would_give_up(
    stage_of: StageOf,
) -> None:
    ranks = _SecondRank()
    attempt: Any = SimpleNamespace(stage=stage_of("any"), ranks=ranks, device=torch.device("cpu"))
    with pytest.raises(_InCollectiveError):
        prepare(cast("Attempt", attempt))
    assert "weights" in ranks.waited_for
