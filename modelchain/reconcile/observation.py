"""What was observed of a chain: its last status, its jobs, and what is in the store. Values only.

An observation may be old, incomplete or repeated. What was not read is missing from it, which is not the same as
having been looked for and not found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from modelchain.artifacts import Failure, Manifest, Progress
from modelchain.status import ChainStatus, Measurement


class JobPhase(StrEnum):
    PENDING = "Pending"  # made; not every process has started
    QUEUED = "Queued"  # a queue holds it
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"  # ended with exit code 0, and nothing of it lives
    FAILED = "Failed"  # ended otherwise, and nothing of it lives
    TERMINATING = "Terminating"  # being ended or deleted, but something of it may live


@dataclass(frozen=True)
class Job:
    """One attempt of one stage: a PyTorchJob with its pods, or a local process with its ranks.

    It is observed for as long as its object or any of its pods or processes exists. `Succeeded` and
    `Failed` are only said when none of its processes lives any more.
    """

    stage: str
    attempt: int
    digest: str  # of the stage as it was when the job was made
    name: str  # for people, and for acting on it
    phase: JobPhase
    exit_code: int | None = None  # the root cause's, where known
    reason: str = ""  # CamelCase, from the trainer or the backend
    message: str = ""
    disrupted: bool = False  # evicted, preempted, its node or a pod lost: not the stage's fault
    unscheduled: bool = (
        False  # some of its pods have, or at its end had, no node yet: the others waited in vain
    )
    outdated: bool = False  # the chain, as it is written now, asks for another one
    pending_since: float | None = None  # it could have started since, by the observer's clock
    blocked_by_node: str | None = None  # an unreachable node that still holds a pod of it
    holds_pods: bool = False  # its trainer has ended in pods of which other containers run on
    deleted_at: float | None = None  # it is being deleted; when its grace periods end
    held_by: str = ""  # what a job that is being deleted waits for, for people
    started_at: float | None = None  # since when all its processes run, by the observer's clock
    ended_at: float | None = None  # when it was seen to have ended, by the observer's clock
    progress_changed_at: float | None = (
        None  # progress.json was last seen changed at, by the observer's clock
    )

    @property
    def live(self) -> bool:
        """Whether a process of it may live."""
        return self.phase not in (JobPhase.SUCCEEDED, JobPhase.FAILED)

    @property
    def stoppable(self) -> bool:
        """Whether something of it runs that nobody has asked to end."""
        return self.phase is not JobPhase.TERMINATING and (self.live or self.holds_pods)


class StoreProblem(StrEnum):
    UNAVAILABLE = "StoreUnavailable"  # it may pass
    FORBIDDEN = "StoreForbidden"  # a person has to correct the rights; nothing is known about what exists
    MISCONFIGURED = "StoreMisconfigured"  # no store answers there, or not as one: this does not pass
    UNREADABLE = "StoreUnreadable"  # reading it failed unforeseen: a defect
    DAMAGED = "ArtifactDamaged"  # what is there can't be what it says it is


@dataclass(frozen=True)
class LeaseView:
    """The lease of a stage, timed by the observer's own clock."""

    holder: str
    chain: str  # namespace/name of the chain that holds it
    fresh: bool  # renewed lately, and not released, and its process is not known to be dead
    own: bool = False  # held by an attempt of this very chain (its UID), dead or alive


@dataclass(frozen=True)
class StageFacts:
    """What the store says about a stage. With `problem`, the rest says nothing."""

    manifest: Manifest | None = None  # verified; None: looked for and not there
    present: bool = False  # a finished stage's artifact is there; what its manifest says was not kept
    problem: StoreProblem | None = None
    message: str = ""  # of the problem; names the object
    lease: LeaseView | None = None
    progress: Progress | None = None  # of `progress_attempt`
    progress_attempt: int | None = None
    failure: Failure | None = None  # failure.json of `failure_attempt`
    failure_attempt: int | None = None


@dataclass(frozen=True)
class Unmeasurable:
    """The evaluations of the models trained alone were read, and say nothing that could be compared."""

    message: str


@dataclass(frozen=True)
class Observation:
    status: ChainStatus | None = None  # the last one written; None: never, or lost
    generation: int | None = None  # of the spec; a higher one than the status's retries a failed chain
    jobs: tuple[Job, ...] = ()  # every job of this chain, of whatever stage, attempt and digest
    made: frozenset[tuple[str, int]] = frozenset()  # stage, attempt: jobs that this observer has made
    store: Mapping[str, StageFacts] = field(
        default_factory=dict
    )  # by stage; a stage that was not read is missing
    store_read_at: Mapping[str, float] = field(
        default_factory=dict
    )  # by stage: when the read began that showed its facts, by the observer's clock
    store_readable_since: float = 0.0  # the store has answered without a gap since, by the observer's clock
    backend_problem: Mapping[str, str] = field(
        default_factory=dict
    )  # by stage: why no job of it can be made now (an API that is not installed, a quota), and what to do
    max_parallel_jobs: int | None = None  # of this chain; None: as many as it has branches
    namespace_limit: str = ""  # why no job may be made while other chains train; empty: it may
    refused: bool = False  # the spec as it is written now can't be trained: nothing may start
    interrupted: bool = False  # the run was told to stop for now; as spec.suspend
    # Asked for: train again what was complete and has vanished. Any text, each acted on once; empty: not asked for.
    retrain_missing: str = ""
    macs: Mapping[str, float] = field(default_factory=dict)  # cost of each stage, for estimates
    speedup_planned: float | None = None  # of the family, from modelchain.cost
    measurement: Measurement | Unmeasurable | None = None  # of models trained alone; None: not read yet

    @property
    def retrains_missing(self) -> bool:
        """Whether that was asked for in words that have not been acted on yet."""
        acted_on = self.status.retrained if self.status is not None else None
        return bool(self.retrain_missing) and self.retrain_missing != acted_on

    def jobs_of(self, stage: str) -> tuple[Job, ...]:
        """The jobs of a stage, oldest attempt first."""
        return tuple(sorted((job for job in self.jobs if job.stage == stage), key=lambda job: job.attempt))
