"""Builds the `Observation` that `decide` works on, from objects of the API server and facts of the store."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from pydantic import ValidationError

from modelchain.clock import clock_step
from modelchain.reconcile.observation import Job, JobPhase, Observation
from modelchain.resolved import ChainReference
from modelchain.stage_probe import StoreSnapshot
from modelchain.status import ChainStatus, cut
from modelchain_operator.acceptance import Accepted
from modelchain_operator.jobs import kinds_of
from modelchain_operator.jobs.events import UnexplainedJob, unexplained
from modelchain_operator.jobs.history import JobMemory
from modelchain_operator.jobs.observed import observe_jobs
from modelchain_operator.jobs.pods import IMAGE_REASONS
from modelchain_operator.jobs.trees import JobTree, job_trees
from modelchain_operator.kubernetes import labels
from modelchain_operator.kubernetes.api import Object
from modelchain_operator.kubernetes.kinds import Kind
from modelchain_operator.kueue.waits import Inquiry

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClusterSnapshot:
    """A chain and its jobs, as they were at one moment."""

    body: Object
    status: ChainStatus | None  # `status_of` the chain
    trees: tuple[JobTree, ...]

    @property
    def generation(self) -> int:
        """Of the spec."""
        return generation_of(self.body)


def snapshot_of(
    body: Object, jobs: Iterable[Object], pods: Sequence[Object], memory: ChainMemory
) -> ClusterSnapshot:
    """A chain, with those of the jobs and pods that it owns."""
    status = status_of(body)
    attempts = (status or ChainStatus()).last_attempts
    trees = job_trees(reference_of(body), attempts, jobs, pods, memory.jobs.pods)
    return ClusterSnapshot(body, status, trees)


def reference_of(body: Object) -> ChainReference:
    """Which chain it is."""
    metadata = body["metadata"]
    return ChainReference(namespace=metadata["namespace"], name=metadata["name"], uid=metadata["uid"])


def generation_of(body: Object) -> int:
    """Of the chain's spec."""
    return int(body["metadata"].get("generation", 0))


@dataclass
class CreateRefusal:
    """The API server refused a stage's job (a quota, an admission rule). It is tried again from time to time."""

    generation: int
    attempt: int
    message: str
    ask_at: float  # monotonic seconds


@dataclass
class PendingReason:
    """Why a job does not start, as its Events say."""

    lacks_pods: bool
    ask_at: float  # monotonic seconds
    reason: str = ""
    message: str = ""


@dataclass(frozen=True)
class StillRunning:
    """What runs of a chain that is refused as it is written now."""

    generation: int  # that was refused
    jobs: frozenset[str]  # uids of the jobs that it was read from, or that say nothing
    accepted: Accepted | None  # None: no job says what it trains


@dataclass
class ChainMemory:
    """State of a chain between passes. Losing it costs time, never correctness."""

    uid: str
    jobs: JobMemory = field(default_factory=JobMemory)
    made: set[tuple[str, int]] = field(default_factory=set)  # stage, attempt: jobs that this process has made
    refusals: dict[str, CreateRefusal] = field(default_factory=dict)  # by stage
    still_running: StillRunning | None = None
    pending_reasons: dict[str, PendingReason] = field(default_factory=dict)  # by name of the job
    queued: dict[str, Inquiry] = field(default_factory=dict)  # by name of the job
    written_at: float = float("-inf")  # monotonic seconds
    written_version: str = ""  # of the chain, after our last write
    # Monotonic seconds: a stage is complete, and the write that says so waits for the end of its job.
    ending_since: float | None = None
    refreshed: set[tuple[str, int]] = field(default_factory=set)  # stage, attempt
    reported_missing: tuple[str, str] | None = None  # of ArtifactsMissing: status, since when


def status_of(body: Object) -> ChainStatus | None:
    """The chain's last status, as far as it can be read; None if there is none."""
    status = body.get("status")
    if not status:
        return None
    try:
        return ChainStatus.model_validate(status)
    except ValidationError as error:
        metadata = body["metadata"]
        logger.warning(
            "status of %s/%s can't be read and is written anew: %s",
            metadata["namespace"],
            metadata["name"],
            error.errors(include_input=False)[0]["msg"],
        )
        return None


def status_object(status: ChainStatus) -> Object:
    """The status as the API server stores it."""
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)


def observe(
    snapshot: ClusterSnapshot,
    accepted: Accepted,
    stores: StoreSnapshot,
    memory: ChainMemory,
    *,
    not_served: Iterable[Kind],
    now: float,
) -> Observation:
    """Everything that was seen, as values. `now` is in seconds since the epoch."""
    step = clock_step()
    stores = stores.shifted(step)
    seen = zip(observe_jobs(snapshot.trees, memory.jobs, now, clock_step=step), snapshot.trees, strict=True)
    jobs = [_with_outdated(_with_reason(job, memory), tree, accepted) for job, tree in seen]
    annotations = snapshot.body["metadata"].get("annotations") or {}
    return Observation(
        status=snapshot.status,
        generation=snapshot.generation,
        jobs=_with_progress(jobs, stores),
        made=frozenset(memory.made),
        store=stores.facts,
        store_read_at=stores.read_at,
        store_readable_since=stores.readable_since,
        backend_problem=_backend_problem(snapshot, accepted, memory, frozenset(not_served)),
        retrain_missing=cut(annotations.get(labels.RETRAIN_MISSING_ANNOTATION) or ""),
        macs=accepted.macs,
        speedup_planned=accepted.speedup_planned,
        measurement=stores.measurement,
    )


def queued_jobs(snapshot: ClusterSnapshot, observed: Observation) -> list[Object]:
    """The jobs that somebody has suspended, as a queue does."""
    names = {job.name for job in observed.jobs if job.phase is JobPhase.QUEUED}
    return [tree.job for tree in snapshot.trees if tree.job is not None and tree.name in names]


def unexplained_jobs(snapshot: ClusterSnapshot, observed: Observation) -> dict[str, UnexplainedJob]:
    """By name: the pending jobs whose own status does not say what they wait for."""
    pending = {job.name for job in observed.jobs if job.phase is JobPhase.PENDING}
    found: dict[str, UnexplainedJob] = {}
    for tree in snapshot.trees:
        if (
            tree.job is not None
            and tree.name in pending
            and (job := unexplained(tree.job, tree.pods, tree.intermediate)) is not None
        ):
            found[tree.name] = job
    return found


def _with_reason(job: Job, memory: ChainMemory) -> Job:
    """The job with the reason why it does not start, where Kueue or an Event gives one."""
    if job.phase is JobPhase.QUEUED and (inquiry := memory.queued.get(job.name)) is not None:
        return replace(job, reason=inquiry.wait.reason, message=inquiry.wait.message)
    pending = memory.pending_reasons.get(job.name)
    if pending is None or not pending.message or job.phase is not JobPhase.PENDING or job.reason:
        return job
    return replace(job, reason=pending.reason, message=pending.message)


def _with_outdated(job: Job, tree: JobTree, accepted: Accepted) -> Job:
    """The job, with whether the chain asks for another one today. An image that only the administrator has changed
    counts where the job can't have its own: an upgrade of the operator is no reason to lose a place in a queue.
    """
    annotations = tree.job["metadata"].get("annotations") or {} if tree.job is not None else {}
    made, wanted = annotations.get(labels.REQUEST_ANNOTATION), accepted.requests.get(job.stage)
    if made is None or wanted is None:
        return job
    edit, _, image = str(made).partition("-")
    outdated = edit != wanted[0] or (image != wanted[1] and job.reason in IMAGE_REASONS)
    return replace(job, outdated=outdated)


def _with_progress(jobs: Sequence[Job], stores: StoreSnapshot) -> tuple[Job, ...]:
    return tuple(
        replace(job, progress_changed_at=stores.progress_changed_at.get((job.stage, job.attempt)))
        for job in jobs
    )


def _backend_problem(
    snapshot: ClusterSnapshot, accepted: Accepted, memory: ChainMemory, not_served: frozenset[Kind]
) -> dict[str, str]:
    """By stage: why no job of it can be made now."""
    found = {
        stage: refusal.message
        for stage, refusal in memory.refusals.items()
        if refusal.generation == snapshot.generation
    }
    for stage in accepted.chain.all_stages:
        backend = accepted.backend(stage.name)
        if not_served.intersection(kinds_of(backend)):
            found[stage.name] = backend.install_hint
    return found
