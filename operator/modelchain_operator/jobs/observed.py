"""A chain's jobs as `decide` sees them, from their objects and pods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelchain.reconcile.observation import Job, JobPhase
from modelchain.status import cut
from modelchain_operator.jobs import pods as pod_view
from modelchain_operator.jobs.backend import Backend, JobFailure, JobState
from modelchain_operator.jobs.history import JobHistory, JobMemory
from modelchain_operator.jobs.registry import backend_of
from modelchain_operator.jobs.trees import JobTree
from modelchain_operator.kubernetes import labels
from modelchain_operator.kubernetes.api import Object
from modelchain_operator.kubernetes.fields import mapping, string, timestamp

DIGEST_LENGTH = 64  # of SHA-256; an annotation may hold 256 KiB
UNTOUCHED_SECONDS = 60.0  # a job without pods or status for so long has no controller


@dataclass(frozen=True)
class _Now:
    """The time of day, and `clock.steady`, by which histories are kept; both in seconds since the epoch."""

    time: float
    steady: float

    def shown(self, stamp: float | None) -> float | None:
        """A time of a history, by today's time of day."""
        return None if stamp is None else stamp + (self.time - self.steady)


def observe_jobs(
    trees: Sequence[JobTree], memory: JobMemory, now: float, *, clock_step: float = 0.0
) -> tuple[Job, ...]:
    """One Job for each tree. `now` is in seconds since the epoch, `clock_step` of it is a step of the clock."""
    moment = _Now(now, now - clock_step)
    seen = tuple(_observe_tree(tree, memory, moment) for tree in trees)
    memory.prune(moment.steady)
    return seen


def _observe_tree(tree: JobTree, memory: JobMemory, now: _Now) -> Job:
    if tree.job is None:
        return _without_object(tree, memory.of(f"pods of {tree.name}", now.steady), now)
    history = memory.of(tree.job["metadata"]["uid"], now.steady)
    history.pods.update(dict.fromkeys(map(pod_view.uid, tree.pods), tree.place))
    backend = backend_of(tree.job)
    state = backend.read(tree.job)
    if state.suspended and not state.finished:
        history.taken_back |= {pod_view.uid(pod) for pod in tree.pods}
        history.reset()
    pods = tuple(pod for pod in tree.pods if pod_view.uid(pod) not in history.taken_back)
    return _Sight(backend, tree.job, state, pods, tree.pods, history, now).job(tree)


@dataclass(frozen=True)
class _End:
    """How a job ended, or ends; or what it waits for."""

    reason: str = ""
    message: str = ""
    exit_code: int | None = None
    disrupted: bool = False


@dataclass(frozen=True)
class _Sight:
    """A job's object with its pods, and its history."""

    backend: Backend
    object: Object
    state: JobState
    pods: Sequence[Object]  # without those that were deleted when a queue suspended the job
    all_pods: Sequence[Object]
    history: JobHistory  # grows
    now: _Now

    @property
    def name(self) -> str:
        return self.object["metadata"]["name"]

    @property
    def deleted(self) -> bool:
        return self.object["metadata"].get("deletionTimestamp") is not None

    def job(self, tree: JobTree) -> Job:
        history = self.history
        for pod in self.pods:
            if (end := pod_view.how_it_ended(pod)) is not None:
                history.ends[pod_view.uid(pod)] = end
        history.scheduled |= {self.position(pod) for pod in self.pods if pod_view.has_node(pod)}
        phase = self.phase()
        end = self.end(phase)
        return Job(
            stage=tree.place.stage,
            attempt=tree.place.attempt,
            digest=_digest(self.object),
            name=tree.name,
            phase=phase,
            exit_code=end.exit_code,
            reason=end.reason,
            message=end.message,
            disrupted=end.disrupted,
            # Only of a job that was seen to wait: nothing is known of pods that came and went unseen.
            unscheduled=history.pending_since is not None
            and history.started_at is None
            and len(history.scheduled) < self.state.wanted_pods
            and not self.state.managed_by,
            pending_since=self.now.shown(history.pending_since),
            blocked_by_node=_blocked(self.all_pods, self.now.time),
            holds_pods=any(map(pod_view.runs_on, self.all_pods)),
            deleted_at=_deleted_at(self.object, *self.all_pods),
            held_by=_held_by(self.object, self.all_pods),
            started_at=self.now.shown(history.started_at),
            ended_at=self.now.shown(history.ended_at),
        )

    def phase(self) -> JobPhase:
        """The job's phase; notes in `history` when it began and ended."""
        state, history = self.state, self.history
        if self.deleted:
            return JobPhase.TERMINATING
        alive = any(not pod_view.has_ended(pod) for pod in self.all_pods)
        if state.finished or (len(self.pods) >= state.wanted_pods and not alive):
            if alive:
                return JobPhase.TERMINATING
            history.ended_at = history.ended_at or self.now.steady
            failed = any(map(pod_view.has_failed, self.pods))
            if state.finished and not self.all_succeeded():
                failed = state.failure is not None
            return JobPhase.FAILED if failed else JobPhase.SUCCEEDED
        if state.ending:
            return JobPhase.TERMINATING
        if state.suspended:
            return JobPhase.QUEUED
        if any(map(pod_view.has_failed, self.pods)):
            return JobPhase.TERMINATING
        if history.started_at is None:
            if self.pods_up() < state.wanted_pods:
                history.pending_since = history.pending_since or self.now.steady
                return JobPhase.PENDING
            history.started_at = self.now.steady
        return JobPhase.RUNNING

    def pods_up(self) -> int:
        if self.state.managed_by:
            return self.state.ready_pods
        return sum(pod_view.is_running(pod) or pod_view.has_succeeded(pod) for pod in self.pods)

    def all_succeeded(self) -> bool:
        """Whether every trainer has: a pod that failed afterwards, by another container, takes nothing back."""
        done = sum(map(pod_view.has_succeeded, self.pods))
        return done > 0 and done >= self.state.wanted_pods

    def end(self, phase: JobPhase) -> _End:
        history, failure = self.history, self.state.failure
        if phase is JobPhase.SUCCEEDED:
            return _End(exit_code=0)
        quiet = self.deleted or phase is JobPhase.QUEUED or self.state.succeeded
        loss = "" if quiet else self.loss()
        taken = _End(message=loss, disrupted=bool(loss))
        if phase in (JobPhase.FAILED, JobPhase.TERMINATING) and not self.deleted:
            cause = min(history.ends.values(), key=lambda end: end.rank, default=None)
            if cause is not None:
                permanent = cause.rank[0] == 0
                if not permanent and (loss or any(end.disrupted for end in history.ends.values())):
                    return _End("Disrupted", loss or _first_disruption(history), cause.exit_code, True)
                return _End(cause.reason, cause.message, cause.exit_code)
            return taken if failure is None else self.failed_without_pods(failure, loss)
        return self.waits() if phase is JobPhase.PENDING and not loss else taken

    def loss(self) -> str:
        """Which pod of the job was disrupted, for people; empty if none was.

        Once a pod has ended by itself, the deletion of others is what follows from it.
        """
        history = self.history
        for pod in self.pods:
            if disruption := pod_view.disruption(pod):
                return disruption
        if self.state.failure or history.ends or any(pod_view.has_ended(pod) for pod in self.pods):
            return ""
        there: dict[str, set[str]] = {}
        for pod in self.pods:
            position = self.position(pod)
            there.setdefault(position, set()).add(pod_view.uid(pod))
            history.positions.setdefault(position, pod_view.uid(pod))
            if pod_view.is_being_deleted(pod):
                return f"{pod_view.name(pod)} is being deleted, though its job is not"
        for position, first in history.positions.items():
            if first not in there.get(position, ()):
                made_anew = ", and another was made in its place" if position in there else ""
                return f"pod {position} of {self.name} was deleted or lost{made_anew}"
        return ""

    def failed_without_pods(self, failure: JobFailure, loss: str) -> _End:
        """A job says that it failed, and no pod is left that says why. If its pods were seen, they were deleted or
        lost with their node. Otherwise they may have been anywhere, as on a cluster that Kueue has sent them to, and
        the trainer's failure.json is what may tell: without it, a failure it is.
        """
        text = f"{self.name}: {failure.message or 'failed'}"
        if failure.reason == "DeadlineExceeded":
            return _End("TimedOut", cut(text))
        if failure.reason == "PodFailurePolicy":  # not ours: an admission policy's; it names the exit code
            return _End("TrainerFailed", cut(text))
        if loss or self.history.pods:
            lost = loss or f"{text} (no pod is left: deleted, or lost with its node)"
            return _End("Disrupted", cut(lost), disrupted=True)
        return _End("JobFailed", cut(f"{text} (none of its pods was ever seen here, which could say why)"))

    def waits(self) -> _End:
        reason, message = pod_view.waits_for(self.pods)
        if reason:
            return _End(reason, message)
        state, pods = self.state, self.pods
        if state.managed_by:
            return _End(
                message=f"{self.name} has not started on the cluster that {state.managed_by} has chosen"
            )
        if not pods and state.untouched and self.now.steady - self.history.first_seen >= UNTOUCHED_SECONDS:
            hint = self.backend.controller_hint
            return _End("NoController", f"nobody has made pods for {self.name}: {hint}")
        if len(pods) < state.wanted_pods:
            return _End(message=f"{len(pods)} of {state.wanted_pods} pods exist")
        running = sum(pod_view.is_running(pod) for pod in pods)
        return _End(message=f"{running} of {state.wanted_pods} pods run")

    def position(self, pod: Object) -> str:
        return self.backend.position(pod) or pod_view.name(pod)


def _first_disruption(history: JobHistory) -> str:
    ends = [end for end in history.ends.values() if end.disrupted]
    return min(ends, key=lambda end: end.finished_at).message if ends else ""


def _without_object(tree: JobTree, history: JobHistory, now: _Now) -> Job:
    """Pods whose job is deleted. Unless they were orphaned on purpose, they will be deleted soon."""
    pods = tree.pods
    history.pods.update(dict.fromkeys(map(pod_view.uid, pods), tree.place))
    ends = [end for pod in pods if (end := pod_view.how_it_ended(pod)) is not None]
    cause = min(ends, key=lambda end: end.rank, default=None)
    phase, message = JobPhase.TERMINATING, "the job is deleted, its pods are not gone yet"
    if all(pod_view.has_ended(pod) and not pod_view.is_being_deleted(pod) for pod in pods):
        phase, message = JobPhase.SUCCEEDED if cause is None else JobPhase.FAILED, ""
        history.ended_at = history.ended_at or now.steady
    ended = cause if phase is JobPhase.FAILED else None
    return Job(
        stage=tree.place.stage,
        attempt=tree.place.attempt,
        digest=_digest(pods[0]),
        name=tree.name,
        phase=phase,
        exit_code=ended.exit_code if ended else None,
        reason=ended.reason if ended else "",
        message=ended.message if ended else message,
        disrupted=ended is not None and ended.disrupted and ended.rank[0] > 0,
        blocked_by_node=_blocked(pods, now.time),
        deleted_at=_deleted_at(*pods),
        held_by=_held_by(None, pods),
        ended_at=now.shown(history.ended_at),
    )


def _blocked(pods: Sequence[Object], now: float) -> str | None:
    nodes = (pod_view.unreachable_node(pod, now) for pod in pods)
    return next((node for node in nodes if node is not None), None)


def _deleted_at(*items: Object) -> float | None:
    """When all that was deleted of these should be gone, seconds since the epoch; None if none was."""
    times = [timestamp(item["metadata"].get("deletionTimestamp")) for item in items]
    return max((time for time in times if time is not None), default=None)


def _held_by(job: Object | None, pods: Sequence[Object]) -> str:
    """What a job that is being deleted waits for."""
    alive = [pod_view.name(pod) for pod in pods if not pod_view.has_ended(pod)]
    if alive:
        return f"pod {alive[0]}" + (f" (and {len(alive) - 1} more)" if len(alive) > 1 else "")
    finalizers = [
        name for item in (job, *pods) if item is not None for name in item["metadata"].get("finalizers") or ()
    ]
    return f"finalizer {finalizers[0]}" if finalizers else ""


def _digest(item: Object) -> str:
    metadata = item["metadata"]
    whole = string(mapping(metadata.get("annotations")).get(labels.DIGEST_ANNOTATION))
    return (whole or string(mapping(metadata.get("labels")).get(labels.DIGEST)))[:DIGEST_LENGTH]
