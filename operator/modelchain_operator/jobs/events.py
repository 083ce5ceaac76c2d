"""Why a job does not start, where only Kubernetes Events say so: its pods are refused, or a node can't set them up.

https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/event-v1/
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from modelchain_operator.jobs import pods as pod_view
from modelchain_operator.jobs.refusals import find_remedy, with_remedy
from modelchain_operator.jobs.registry import backend_of
from modelchain_operator.kubernetes.api import Object

_REFUSALS = (
    "FailedCreate",  # of a pod or its Service
    "TrainJobResourcesCreationFailed",  # of a TrainJob's JobSet
    "JobCreationFailed",  # of a JobSet's Job
    "HeadlessServiceCreationFailed",
    "PVCCreationFailed",
)
ASKED_PODS = 3  # all pods of a job are alike: what holds up the first that wait holds up the others

_SET_UP_FAILURES = frozenset(
    {
        "FailedMount",
        "FailedAttachVolume",
        "FailedMapVolume",
        "FailedCreatePodSandBox",
        "FailedPrepareDynamicResources",
    }
)
_SET_UP = frozenset({"Pulling", "Pulled", "Created", "Started"})  # once volumes and network are in place
_NAMED = "what names it, spec.store.caBundleRef or spec.job.podTemplate"


@dataclass(frozen=True)
class UnexplainedJob:
    """A job that does not start, and the objects whose Events may say why."""

    lacks_pods: bool
    uids: tuple[str, ...]


def unexplained(
    job: Object, pods: Sequence[Object], intermediate: Sequence[Object] = ()
) -> UnexplainedJob | None:
    """The job with these pods, and `intermediate` objects between them; None if their status says all there is to say.

    That pods are refused is reported on the object that creates them: of a TrainJob, the Job of its JobSet.
    """
    state = backend_of(job).read(job)
    if job["metadata"].get("deletionTimestamp") is not None or state.managed_by:
        return None
    if len(pods) < state.wanted_pods:
        makers = (job, *intermediate)
        return UnexplainedJob(lacks_pods=True, uids=tuple(maker["metadata"]["uid"] for maker in makers))
    waiting = sorted((pod for pod in pods if pod_view.is_being_set_up(pod)), key=pod_view.name)
    if not waiting:
        return None
    return UnexplainedJob(lacks_pods=False, uids=tuple(pod_view.uid(pod) for pod in waiting[:ASKED_PODS]))


def explain_pending(events: Iterable[Object]) -> tuple[str, str]:
    """Reason and message, from events about a job or its pods; both empty if nothing says so."""
    by_object: dict[str, list[Object]] = {}
    for event in events:
        by_object.setdefault(str((event.get("involvedObject") or {}).get("uid", "")), []).append(event)
    found = [problem for about in by_object.values() if (problem := _problem(about)) is not None]
    if not found:
        return "", ""
    event = max(found, key=_last_seen)
    reason, message = str(event["reason"]), str(event.get("message") or "it can't be made")
    if _is_refusal(event):
        return "FailedCreate", with_remedy(message, find_remedy(message))
    name = (event.get("involvedObject") or {}).get("name", "a pod")
    return reason, with_remedy(f"{name}: {message}", _set_up_remedy(reason, message))


def _problem(events: Iterable[Object]) -> Object | None:
    """The last Event of one object that says what blocks it, unless it got past that since."""
    found = [
        event for event in events if _is_refusal(event) or event.get("reason") in _SET_UP_FAILURES | _SET_UP
    ]
    last = max(found, key=_last_seen, default=None)
    return last if last is not None and last.get("type") == "Warning" else None


def _is_refusal(event: Object) -> bool:
    """Whether it says that a pod (or its Service) was not made; one that exists already is no problem."""
    return (
        event.get("type") == "Warning"
        and str(event.get("reason", "")).startswith(_REFUSALS)
        and event.get("reason") not in _SET_UP_FAILURES
        and "already exists" not in str(event.get("message", ""))
    )


def _set_up_remedy(reason: str, message: str) -> str:
    if reason == "FailedCreatePodSandBox":
        return "check the node's container runtime and network plugin"
    if reason == "FailedPrepareDynamicResources":
        return "check the resource driver of the node"
    if "references non-existent" in message:
        return f"add that key, or correct {_NAMED}"
    if "not found" in message:
        return f"create it in the chain's namespace, or correct {_NAMED}"
    return "repair the storage, or correct the volume in spec.job.podTemplate"


def _last_seen(event: Object) -> str:
    """When it was last reported, to the second: which field holds that depends on the reporter."""
    series, metadata = event.get("series") or {}, event.get("metadata") or {}
    at = (
        series.get("lastObservedTime")
        or event.get("lastTimestamp")
        or event.get("eventTime")
        or metadata.get("creationTimestamp")
    )
    return str(at or "")[: len("2026-01-01T00:00:00")]
