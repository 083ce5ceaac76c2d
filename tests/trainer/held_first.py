"""Of two ranks the first is held while it prepares the model, for longer than the other's collectives wait.

The second one's collectives give up after a second from where it has heard of the state; it counts how often it looks
for the weights, lets the first go once that has taken longer, and waits from then on as ranks do.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch.distributed as dist

from modelchain_trainer import train_state
from modelchain_trainer.distributed import ranks
from modelchain_trainer.distributed.ranks import COLLECTIVE_SECONDS, POLL_SECONDS, Ranks
from tests.processes import wait_until

LET_GO = "MODELCHAIN_TEST_LET_GO"  # a file
TIMEOUT_SECONDS = 1.0
LOOKS = round(3 * TIMEOUT_SECONDS / POLL_SECONDS)


def prepare() -> None:
    """In the process of a rank."""
    let_go = Path(os.environ[LET_GO])
    if os.environ["RANK"] == "0":
        _hold(let_go)
    else:
        _watch(let_go)


def _hold(let_go: Path) -> None:
    first_weights: Any = train_state.first_weights

    def held(*arguments: Any) -> Any:
        made = first_weights(*arguments)
        wait_until(let_go.exists, "the other rank has waited, or has failed")
        return made

    train_state.first_weights = held


def _watch(let_go: Path) -> None:
    share = Ranks.share
    looks = 0

    def shared(self: Ranks, name: str, make: Callable[[], str]) -> str:
        value = share(self, name, make)
        if name == "state":
            dist.set_timeout(timedelta(seconds=TIMEOUT_SECONDS))
        return value

    def sleep(seconds: float) -> None:
        nonlocal looks
        time.sleep(seconds)
        looks += 1
        if looks == LOOKS and not let_go.exists():
            dist.set_timeout(timedelta(seconds=COLLECTIVE_SECONDS))
            let_go.touch()

    Ranks.share = shared
    ranks.time = SimpleNamespace(sleep=sleep, monotonic=time.monotonic)
