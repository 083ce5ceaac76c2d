"""Kueue: whether a queue will hold a stage's job, and why a job that it holds waits, in Kueue's own words.

A label on a job holds nothing by itself. Where Kueue is not installed, does not manage that kind of job, or has no such
queue, the label is ignored and the job runs past every quota. So before a job is made for a queue, the API server is
asked for a dry run: Kueue's admission webhook suspends what Kueue manages, and nothing else tells so surely. The job
itself is then made suspended, so that it stays held even where the webhook is gone by then.
https://kueue.sigs.k8s.io/docs/concepts/workload/
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelchain.status import cut
from modelchain_operator.kubernetes import labels
from modelchain_operator.kubernetes.api import Object

JOB_UID_LABEL = "kueue.x-k8s.io/job-uid"  # on a Workload: whose it is
MINIMUM_KUEUE = "0.15"  # the first that serves v1beta2, the version in which its kinds are stored since

NO_WORKLOAD = "NoWorkload"
DEACTIVATED = "WorkloadDeactivated"
QUEUE_STOPPED = "QueueStopped"
NO_SUCH_QUOTA = "NoMatchingFlavor"
EXCEEDS_QUOTA = "ExceedsMaxQuota"
MISCONFIGURED = "Inadmissible"

# Of Kueue's reasons: what lasts until somebody acts. The others pass by themselves, and are called Queued.
# https://github.com/kubernetes-sigs/kueue/blob/v0.19.2/apis/kueue/v1beta2/workload_types.go
_LASTING = {
    "Inadmissible": MISCONFIGURED,
    "Misconfigured": MISCONFIGURED,
    "Suspended": QUEUE_STOPPED,
    "ExceedsMaxQuota": EXCEEDS_QUOTA,
    "NoMatchingFlavor": NO_SUCH_QUOTA,
}
# Without its feature gate UnadmittedWorkloadsObservability, Kueue says no more than `Inadmissible` of this one.
_STOPPED = re.compile(r"(LocalQueue|ClusterQueue) \S+ is (stopped|inactive)")
WORKLOAD_WAIT_SECONDS = 30.0  # for Kueue to make a Workload of a new job
LASTING_REASONS = frozenset({NO_WORKLOAD, DEACTIVATED, *_LASTING.values()})


@dataclass(frozen=True)
class QueueWait:
    """Why a job that a queue holds does not run."""

    reason: str = ""  # CamelCase; empty for what passes by itself
    message: str = ""  # empty if Kueue has not said anything


def explain(workloads: Sequence[Object], *, job: Object, since_seconds: float) -> QueueWait:
    """What the Workloads of a suspended job say. `since_seconds`: how long it has been suspended.

    A job has one Workload; while another replaces it, the newest counts.
    """
    name = job["metadata"]["name"]
    queue = (job["metadata"].get("labels") or {}).get(labels.QUEUE, "")
    if not queue:  # somebody else has suspended it
        return QueueWait()
    if not workloads:
        if since_seconds < WORKLOAD_WAIT_SECONDS:
            return QueueWait()
        return QueueWait(NO_WORKLOAD, cut(f"{name} waits in LocalQueue {queue}, {_WITHOUT_WORKLOAD}"))
    workload = max(workloads, key=lambda one: one["metadata"].get("creationTimestamp") or "")
    return _explain_workload(workload, name, queue)


_WITHOUT_WORKLOAD = (
    "and Kueue has made no Workload for it: is its controller running, is the integration for this kind of job still "
    "enabled, and are the priority classes there that the job and its pods name? Kueue's log says more"
)


def _explain_workload(workload: Object, job: str, queue: str) -> QueueWait:
    metadata, spec = workload["metadata"], workload.get("spec") or {}
    where = f"{job} waits in LocalQueue {queue}"
    given_up = _is_given_up(workload)
    if spec.get("active") is False or given_up:
        why = _message(workload, "Evicted") or _message(workload, "DeactivationTarget")
        text = f"Kueue's Workload {metadata['name']} of {job} is deactivated{f' ({why})' if why else ''}"
        which = f"workloads.kueue.x-k8s.io {metadata['name']}"
        command = (
            f"delete {which}"  # and Kueue makes another for the job
            if given_up
            else f'patch {which} --type merge -p \'{{"spec":{{"active":true}}}}\''
        )
        return QueueWait(
            DEACTIVATED, cut(f"{text}; when that is fixed: kubectl -n {metadata['namespace']} {command}")
        )
    reserved = _condition(workload, "QuotaReserved")
    if reserved.get("status") == "True":
        checks = _unready_checks(workload)
        return QueueWait("", cut(f"{where}: {checks}") if checks else "")
    reason = _LASTING.get(str(reserved.get("reason") or ""), "")
    if reason == MISCONFIGURED and _STOPPED.match(_message(workload, "QuotaReserved")):
        reason = QUEUE_STOPPED
    said = [_evicted(workload), str(reserved.get("message") or "").strip()]
    text = "; ".join(dict.fromkeys(part for part in said if part))
    return QueueWait(reason, cut(f"{where}: {text}") if text else "")


def _is_given_up(workload: Object) -> bool:
    """Whether Kueue itself has deactivated it, for a cause such as too many returns to the queue.

    Such a one does not return to the queue when it is set active (read and tried in 0.19.2: it looks for the reason
    `Deactivated`, and here the cause is part of the reason).
    https://github.com/kubernetes-sigs/kueue/blob/v0.19.2/pkg/controller/core/workload_controller.go
    """
    requeued = _condition(workload, "Requeued")
    if requeued.get("status") == "False" and str(requeued.get("reason")).startswith("DeactivatedDueTo"):
        return True
    return _condition(workload, "DeactivationTarget").get("status") == "True"


def _evicted(workload: Object) -> str:
    """Why it was taken back; empty if it never ran, or waits anew for another reason."""
    evicted = _condition(workload, "Evicted")
    return str(evicted.get("message") or "").strip() if evicted.get("status") == "True" else ""


def _unready_checks(workload: Object) -> str:
    """What it waits for that has a quota and is not let in."""
    checks: Iterable[Mapping[str, Any]] = (workload.get("status") or {}).get("admissionChecks") or ()
    return "; ".join(
        f"admission check {one.get('name')} is {one.get('state')}"
        + (f" ({one['message']})" if one.get("message") else "")
        for one in checks
        if one.get("state") != "Ready"
    )


def _message(workload: Object, kind: str) -> str:
    return str(_condition(workload, kind).get("message") or "").strip()


def _condition(workload: Object, kind: str) -> Mapping[str, Any]:
    found = (workload.get("status") or {}).get("conditions") or ()
    return next((one for one in found if one.get("type") == kind), {})
