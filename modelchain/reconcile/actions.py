"""What `decide` asks for. Order of carrying out: write the status first, then act, then observe again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from modelchain.reconcile.observation import Job
from modelchain.status import ChainStatus


@dataclass(frozen=True)
class StartJob:
    """Create the job of this attempt. That it exists already (same owner, attempt and digest) is success."""

    stage: str
    attempt: int


@dataclass(frozen=True)
class StopJob:
    """End a live job with SIGTERM and its grace period. Asked for at each observation until it is gone; ask its
    backend once.
    """

    job: Job
    reason: str  # CamelCase


@dataclass(frozen=True)
class RemoveJob:
    """Delete what is left of a job that has ended, before the next attempt."""

    job: Job


Action: TypeAlias = StartJob | StopJob | RemoveJob


@dataclass(frozen=True)
class Decision:
    status: ChainStatus  # what to write, if it differs from what was read
    actions: tuple[Action, ...] = ()
    reads: tuple[str, ...] = ()  # stages of which the store has to be read again before more can be said
    wake_at: float | None = (
        None  # something is due then, though nothing may change before (seconds since the epoch)
    )
