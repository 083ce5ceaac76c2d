"""What is to be seen of a chain's jobs: their objects and pods, as `decide` looks at them."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modelchain.reconcile.observation import Job, JobPhase
from modelchain.status import cut
from modelchain_operator import labels
from modelchain_operator.jobs import pods as pod_view
from modelchain_operator.jobs.pods import PodEnd
from modelchain_operator.jobs.trees import JobTree, Place
from modelchain_operator.kinds import PYTORCHJOB
from modelchain_operator.kubernetes_api import Object

FORGET_SECONDS = 900.0  # a job not seen for so long does not come back
UNTOUCHED_SECONDS = 60.0  # a job without pods or status for so long has nobody who cares for it
_OWN_CONTROLLERS = ("", "kubernetes.io/job-controller", "kubeflow.org/training-operator")
_PLACE_LABELS = (
    "training.kubeflow.org/replica-type",
    "training.kubeflow.org/replica-index",
    "batch.kubernetes.io/job-completion-index",
)


@dataclass
class JobHistory:
    """Of one job."""

    first_seen: float
    last_seen: float
    started_at: float | None = None
    ended_at: float | None = None
    pending_since: float | None = None  # it could have started since: a queue lets it
    scheduled: set[str] = field(default_factory=set)  # places in the job whose pod had a node
    places: dict[str, str] = field(default_factory=dict)  # by place in the job: the uid of its first pod
    ends: dict[str, PodEnd] = field(default_factory=dict)  # by uid: pods that failed
    taken_back: set[str] = field(default_factory=set)  # uids of pods that a queue has taken back
    pods: dict[str, Place] = field(default_factory=dict)  # by uid: every pod that was this job's


@dataclass
class JobMemory:
    """What earlier looks have shown, by the operator's clock.

    Lost at a restart: deadlines then only get longer, and a pod made anew is not told from the first.
    """

    _by_uid: dict[str, JobHistory] = field(default_factory=dict)

    def of(self, uid: str, now: float) -> JobHistory:
        """What is remembered of a job, which is seen now."""
        history = self._by_uid.setdefault(uid, JobHistory(first_seen=now, last_seen=now))
        history.last_seen = now
        return history

    @property
    def pods(self) -> Mapping[str, Place]:
        """Every pod, by uid, that was seen to be a job's."""
        return ChainMap(*(history.pods for history in self._by_uid.values()))

    def prune(self, now: float) -> None:
        """Forget the jobs that are long gone."""
        for uid in [uid for uid, one in self._by_uid.items() if now - one.last_seen > FORGET_SECONDS]:
            del self._by_uid[uid]


def observe_jobs(trees: Sequence[JobTree], memory: JobMemory, now: float) -> tuple[Job, ...]:
    """One Job for each tree. `now` is in seconds since the epoch."""
    seen = tuple(_observe_tree(tree, memory, now) for tree in trees)
    memory.prune(now)
    return seen


def _observe_tree(tree: JobTree, memory: JobMemory, now: float) -> Job:
    if tree.job is None:
        return _without_object(tree, memory.of(f"pods of {tree.name}", now), now)
    history = memory.of(tree.job["metadata"]["uid"], now)
    history.pods.update(dict.fromkeys(map(pod_view.uid, tree.pods), tree.place))
    return _observe(tree.job, tree, history, now)


def wanted_pods(job: Object) -> int:
    """How many pods the job is made of."""
    spec = job.get("spec") or {}
    if job.get("kind") == PYTORCHJOB.kind:
        return sum(int(one.get("replicas", 1)) for one in (spec.get("pytorchReplicaSpecs") or {}).values())
    return int(spec.get("completions") or 1)


def runs_elsewhere(job: Object) -> bool:
    """Whether somebody else than this cluster's own controllers runs the job: there are no pods of it here then.

    So does the manager cluster of Kueue's MultiKueue. https://kueue.sigs.k8s.io/docs/concepts/multikueue/
    """
    return _managed_by(job) not in _OWN_CONTROLLERS


def _managed_by(job: Object) -> str:
    return str(_policy(job).get("managedBy") or "")


def _observe(job: Object, tree: JobTree, history: JobHistory, now: float) -> Job:
    pods: Sequence[Object] = tree.pods
    failed = _condition(job, "Failed")
    deleted = job["metadata"].get("deletionTimestamp") is not None
    over = failed or _condition(job, "Succeeded", "Complete")
    if _suspended(job) and not over:  # its pods are deleted together, and made anew together when it goes on
        history.taken_back |= {pod_view.uid(pod) for pod in pods}
        history.places.clear()
        history.scheduled.clear()
        history.ends.clear()
        history.started_at = history.pending_since = None
    there, pods = pods, [pod for pod in pods if pod_view.uid(pod) not in history.taken_back]
    for pod in pods:
        if (end := pod_view.how_it_ended(pod)) is not None:
            history.ends[pod_view.uid(pod)] = end
    history.scheduled |= {_place(pod) for pod in pods if pod_view.has_node(pod)}
    alive = any(not pod_view.has_ended(pod) for pod in there)
    phase = _phase(job, pods, history, now, alive=alive)
    quiet = (
        deleted or phase in (JobPhase.QUEUED, JobPhase.SUCCEEDED) or _condition(job, "Succeeded", "Complete")
    )
    loss = "" if quiet else _loss(job, pods, history, over=failed)
    disrupted, code, reason, message = bool(loss), None, "", loss
    cause = min(history.ends.values(), key=lambda end: end.rank, default=None)
    if phase in (JobPhase.FAILED, JobPhase.TERMINATING) and not deleted:
        if cause is not None:
            permanent = cause.rank[0] == 0
            disrupted = not permanent and (disrupted or any(end.disrupted for end in history.ends.values()))
            code, reason = cause.exit_code, "Disrupted" if disrupted else cause.reason
            message = (loss or _first_disruption(history)) if disrupted else cause.message
        elif failed:
            disrupted, reason, message = _failed_without_pods(job, loss, history)
    elif phase is JobPhase.PENDING and not disrupted:
        reason, message = _waits(job, pods, history, now)
    if phase is JobPhase.SUCCEEDED:
        code = 0
    return Job(
        stage=tree.place.stage,
        attempt=tree.place.attempt,
        digest=_digest(job),
        name=tree.name,
        phase=phase,
        exit_code=code,
        reason=reason,
        message=message,
        disrupted=disrupted,
        # Told only of a job that was seen to wait: of pods that came and went unseen nothing is known.
        unscheduled=history.pending_since is not None
        and history.started_at is None
        and len(history.scheduled) < wanted_pods(job)
        and not runs_elsewhere(job),
        pending_since=history.pending_since,
        blocked_by_node=_blocked(there, now),
        started_at=history.started_at,
        ended_at=history.ended_at,
    )


def _phase(job: Object, pods: Sequence[Object], history: JobHistory, now: float, *, alive: bool) -> JobPhase:
    """The job's phase; notes in `history` when it began and ended. `alive`: any pod that it ever had."""
    if job["metadata"].get("deletionTimestamp") is not None:
        return JobPhase.TERMINATING
    finished = _condition(job, "Succeeded", "Complete", "Failed")
    all_ended = len(pods) >= wanted_pods(job) and not alive
    if finished or all_ended:
        if alive:
            return JobPhase.TERMINATING
        if history.ended_at is None:
            history.ended_at = now
        failed = (
            _condition(job, "Failed") if finished else any(pod_view.phase(pod) == "Failed" for pod in pods)
        )
        return JobPhase.FAILED if failed else JobPhase.SUCCEEDED
    if _condition(job, "SuccessCriteriaMet", "FailureTarget"):
        return JobPhase.TERMINATING
    if _suspended(job):
        return JobPhase.QUEUED
    if any(pod_view.phase(pod) == "Failed" for pod in pods):
        return JobPhase.TERMINATING
    if history.started_at is None:
        up = sum(pod_view.is_running(pod) or pod_view.phase(pod) == "Succeeded" for pod in pods)
        if runs_elsewhere(job):
            up = (
                wanted_pods(job)
                if _condition(job, "Running")
                else int((job.get("status") or {}).get("ready") or 0)
            )
        if up < wanted_pods(job):
            history.pending_since = history.pending_since or now
            return JobPhase.PENDING
        history.started_at = now
    return JobPhase.RUNNING


def _loss(job: Object, pods: Sequence[Object], history: JobHistory, *, over: bool) -> str:
    """Which pod was taken from a job, in words; empty if none was.

    Once a pod has ended by itself, the deletion of others is what follows from it.
    """
    for pod in pods:
        if told := pod_view.disruption(pod):
            return told
    if over or history.ends or any(pod_view.has_ended(pod) for pod in pods):
        return ""
    there: dict[str, set[str]] = {}
    for pod in pods:
        there.setdefault(_place(pod), set()).add(pod_view.uid(pod))
        history.places.setdefault(_place(pod), pod_view.uid(pod))
        if pod_view.is_being_deleted(pod):
            return f"{pod['metadata']['name']} is being deleted, though its job is not"
    for place, first in history.places.items():
        if first not in there.get(place, ()):
            made_anew = ", and another was made in its place" if place in there else ""
            return f"pod {place} of {job['metadata']['name']} was deleted or lost{made_anew}"
    return ""


def _first_disruption(history: JobHistory) -> str:
    ends = [end for end in history.ends.values() if end.disrupted]
    return min(ends, key=lambda end: end.finished_at).message if ends else ""


def _failed_without_pods(job: Object, loss: str, history: JobHistory) -> tuple[bool, str, str]:
    """A job says that it failed, and no pod is left that says why. If its pods were seen, they were deleted or lost
    with their node. Otherwise they may have been anywhere, as on a cluster that Kueue has sent them to, and the
    trainer's failure.json is what may tell: without it, a failure it is.
    """
    told = pod_view.condition(job, "Failed") or {}
    text = f"{job['metadata']['name']}: {told.get('message') or 'failed'}"
    if told.get("reason") == "DeadlineExceeded":
        return False, "TimedOut", cut(text)
    if told.get("reason") == "PodFailurePolicy":  # not ours: an admission policy's; it names the exit code
        return False, "TrainerFailed", cut(text)
    if loss or history.pods:
        return True, "Disrupted", cut(loss or f"{text} (no pod is left: deleted, or lost with its node)")
    return False, "JobFailed", cut(f"{text} (none of its pods was ever seen here, which could say why)")


def _waits(job: Object, pods: Sequence[Object], history: JobHistory, now: float) -> tuple[str, str]:
    reason, message = pod_view.waits_for(pods)
    if reason:
        return reason, message
    wanted = wanted_pods(job)
    if runs_elsewhere(job):
        return (
            "",
            f"{job['metadata']['name']} has not started on the cluster that {_managed_by(job)} has chosen",
        )
    if not pods and not (job.get("status") or {}) and now - history.first_seen >= UNTOUCHED_SECONDS:
        if job.get("kind") == PYTORCHJOB.kind:
            return "NoController", (
                f"nobody has made pods for {job['metadata']['name']}: is the Kubeflow training operator running?"
            )
        return "NoController", f"nobody has made pods for {job['metadata']['name']}"
    if len(pods) < wanted:
        return "", f"{len(pods)} of {wanted} pods exist"
    running = sum(pod_view.is_running(pod) for pod in pods)
    return "", f"{running} of {wanted} pods run"


def _without_object(tree: JobTree, history: JobHistory, now: float) -> Job:
    """Pods whose job is deleted. Unless they were orphaned on purpose, they go soon."""
    pods = tree.pods
    history.pods.update(dict.fromkeys(map(pod_view.uid, pods), tree.place))
    ends = [end for pod in pods if (end := pod_view.how_it_ended(pod)) is not None]
    cause = min(ends, key=lambda end: end.rank, default=None)
    phase, message = JobPhase.TERMINATING, "the job is deleted, its pods are not gone yet"
    if all(pod_view.has_ended(pod) and not pod_view.is_being_deleted(pod) for pod in pods):
        phase, message = JobPhase.SUCCEEDED if cause is None else JobPhase.FAILED, ""
        history.ended_at = history.ended_at or now
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
        blocked_by_node=_blocked(pods, now),
        ended_at=history.ended_at,
    )


def _blocked(pods: Sequence[Object], now: float) -> str | None:
    nodes = (pod_view.unreachable_node(pod, now) for pod in pods)
    return next((node for node in nodes if node is not None), None)


def _suspended(job: Object) -> bool:
    return bool(_policy(job).get("suspend"))


def _policy(job: Object) -> Mapping[str, Any]:
    spec = job.get("spec") or {}
    return (spec.get("runPolicy") or {}) if job.get("kind") == PYTORCHJOB.kind else spec


def _condition(job: Object, *kinds: str) -> bool:
    found = (pod_view.condition(job, kind) for kind in kinds)
    return any(one is not None and one.get("status") == "True" for one in found)


def _digest(item: Object) -> str:
    metadata = item["metadata"]
    whole = (metadata.get("annotations") or {}).get(labels.DIGEST_ANNOTATION)
    return whole or (metadata.get("labels") or {}).get(labels.DIGEST, "")


def _place(pod: Object) -> str:
    """Where the pod stands in its job: a pod made anew has the place of the one it follows."""
    found = pod["metadata"].get("labels") or {}
    parts = [str(found[name]) for name in _PLACE_LABELS if name in found]
    return "-".join(parts) or pod["metadata"]["name"]
