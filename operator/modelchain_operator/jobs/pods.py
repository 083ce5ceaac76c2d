"""One pod of a job: whether anything of it may run, how it ended, what it waits for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from modelchain.artifacts import Failure
from modelchain.cluster_labels import CONTAINERS
from modelchain.errors import is_permanent
from modelchain.status import cut
from modelchain_operator.jobs.conditions import condition
from modelchain_operator.kubernetes.api import Object
from modelchain_operator.kubernetes.fields import integer, mapping, mappings, string, timestamp

UNREACHABLE_SECONDS = 60.0  # a pod outlives its grace period so long only where no kubelet answers
LOST_PEER = "LostPeerError"  # the trainer's: another process of the job ended first
KILLED_CODE = 137  # SIGKILL
TERMINATED_CODES = frozenset({130, KILLED_CODE, 143})  # ended from outside, by a signal

# Of a pod's status. https://kubernetes.io/docs/concepts/workloads/pods/disruptions/
_DISRUPTED = re.compile(
    r"Evicted|Preempting|Preempted|Shutdown|NodeShutdown|Terminated|NodeLost|NodeAffinity|NodeName|OutOf.+|"
    r"UnexpectedAdmissionError|TopologyAffinityError"
)
# Of a container's end: the node was restarted, and has lost its state.
_STATE_LOST = frozenset({(137, "ContainerStatusUnknown"), (255, "Unknown")})
_OWN_LIMIT = re.compile(r"exceeds the (total )?limit|exceeded its local ephemeral storage limit")
IMAGE_REASONS = frozenset({"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName"})
_STARTING = frozenset({"", "ContainerCreating", "PodInitializing"})
_WAITING_REMEDIES = {
    "ErrImagePull": "check spec.image, and imagePullSecrets in spec.job.podTemplate",
    "ImagePullBackOff": "check spec.image, and imagePullSecrets in spec.job.podTemplate",
    "InvalidImageName": "correct spec.image",
    "ErrImageNeverPull": "load the image onto the nodes, or let it be pulled",
    "CreateContainerConfigError": "create what it names: the Secret of spec.store.secretRef, or what "
    "spec.job.podTemplate refers to",
}
# Of a container that may not run as root: reason CreateContainerConfigError, too.
_ROOT = re.compile(r"runAsNonRoot|breaks non-root policy")
_USER_REMEDY = (
    "give the image a user other than root by number (USER 65532), or set securityContext.runAsUser for the container "
    "pytorch in spec.job.podTemplate"
)


@dataclass(frozen=True)
class PodEnd:
    """Why a pod ended otherwise than with success."""

    exit_code: int | None
    reason: str
    message: str
    finished_at: float  # by its node's clock, in whole seconds
    disrupted: bool = False
    deleted: bool = False  # and ended by that, as far as can be told

    @property
    def rank(self) -> tuple[int, float]:
        """Root causes first: permanent errors, pods that ended by themselves or were killed, those that were asked to
        end, those that lost one of these, those that were deleted because of another; the earliest of each.
        """
        by_signal = self.exit_code in TERMINATED_CODES and self.reason not in ("OOMKilled", "Killed")
        if self.exit_code is not None and is_permanent(self.exit_code):
            sort = 0
        elif by_signal and self.deleted:
            sort = 4
        elif self.reason == LOST_PEER:
            sort = 3
        elif by_signal and self.exit_code != KILLED_CODE:
            sort = 2
        else:
            sort = 1
        return sort, self.finished_at


def uid(pod: Object) -> str:
    """Of the object: a replacement of the same name has another."""
    return pod["metadata"]["uid"]


def name(pod: Object) -> str:
    """Of the object."""
    return pod["metadata"]["name"]


def phase(pod: Object) -> str:
    """Pending, Running, Succeeded, Failed or Unknown."""
    return string(mapping(pod.get("status")).get("phase")) or "Pending"


def has_ended(pod: Object) -> bool:
    """Whether its trainer has ended. Its pods are never restarted; other containers (a service mesh's proxy, a log
    shipper) may run on for ever, and then the pod's phase is Running.
    """
    return is_over(pod) or _trainer_end(pod) is not None


def is_over(pod: Object) -> bool:
    """Whether nothing of it runs any more."""
    return phase(pod) in ("Succeeded", "Failed")


def runs_on(pod: Object) -> bool:
    """Whether its trainer has ended, and another container has not. That all have, a kubelet says a moment before it
    says so of the pod.
    """
    containers = (*_statuses(pod, "containerStatuses"), *_statuses(pod, "initContainerStatuses"))
    alive = any("terminated" not in mapping(one.get("state")) for one in containers)
    return alive and has_ended(pod) and not is_over(pod)


def has_succeeded(pod: Object) -> bool:
    """Whether its trainer has ended with success, whatever other containers did."""
    end = _trainer_end(pod)
    return phase(pod) == "Succeeded" if end is None else integer(end.get("exitCode")) == 0


def has_failed(pod: Object) -> bool:
    """Whether its trainer has ended otherwise, or never started."""
    return has_ended(pod) and not has_succeeded(pod)


def has_node(pod: Object) -> bool:
    """Whether it was scheduled."""
    return bool(mapping(pod.get("spec")).get("nodeName"))


def is_running(pod: Object) -> bool:
    """Whether its trainer runs."""
    if phase(pod) != "Running":
        return False
    statuses = _statuses(pod, "containerStatuses")
    trainer = next((one for one in statuses if string(one.get("name")) in CONTAINERS), None)
    return trainer is not None and "running" in mapping(trainer.get("state"))


def is_being_set_up(pod: Object) -> bool:
    """Whether it has a node, which has started none of its containers yet: volumes, network and images come first."""
    if phase(pod) != "Pending" or is_being_deleted(pod) or not mapping(pod.get("spec")).get("nodeName"):
        return False
    containers = (*_statuses(pod, "initContainerStatuses"), *_statuses(pod, "containerStatuses"))
    states = [mapping(one.get("state")) for one in containers]
    return all(
        string(mapping(state.get("waiting")).get("reason")) in _STARTING for state in states
    ) and not any("running" in state or "terminated" in state for state in states)


def is_being_deleted(pod: Object) -> bool:
    """Whether somebody has deleted it."""
    return pod["metadata"].get("deletionTimestamp") is not None


def unreachable_node(pod: Object, now: float) -> str | None:
    """The node that should have ended this pod long ago; None if there is none."""
    gone_by = timestamp(pod["metadata"].get("deletionTimestamp"))  # grace period included
    if gone_by is None or is_over(pod) or now < gone_by + UNREACHABLE_SECONDS:
        return None
    return string(mapping(pod.get("spec")).get("nodeName")) or None


def disruption(pod: Object) -> str:
    """What disrupted the pod (eviction, preemption, a lost node), for people; empty if nothing did."""
    status = mapping(pod.get("status"))
    if _OWN_LIMIT.search(string(status.get("message"))):
        return ""
    target = condition(pod, "DisruptionTarget")
    if target is not None and target.get("status") == "True":
        return _describe(pod, string(target.get("reason")) or "Disrupted", string(target.get("message")))
    reason = string(status.get("reason"))
    if phase(pod) == "Failed" and _DISRUPTED.fullmatch(reason):
        return _describe(pod, reason, string(status.get("message")))
    ended = _terminated(pod)
    if (
        phase(pod) == "Failed"
        and (integer(ended.get("exitCode")), string(ended.get("reason"))) in _STATE_LOST
    ):
        return _describe(
            pod, "its container was lost, as when a node is restarted", string(ended.get("message"))
        )
    return ""


def how_it_ended(pod: Object) -> PodEnd | None:
    """Why a pod failed; None if it has not, or not yet."""
    if not has_failed(pod):
        return None
    status = mapping(pod.get("status"))
    ended = _terminated(pod)
    at = timestamp(ended.get("finishedAt"))
    finished_at = float("inf") if at is None else at
    code = integer(ended.get("exitCode"))
    if disrupted := disruption(pod):
        failure = _failure(ended)
        reason, message = (failure.reason, failure.message) if failure else ("Disrupted", disrupted)
        permanent = code is not None and is_permanent(code)
        return PodEnd(
            code, reason if permanent else "Disrupted", message if permanent else disrupted, finished_at, True
        )
    reason, message = _why(pod, ended, status)
    return PodEnd(
        code, reason, cut(message), finished_at, deleted=_was_ended_by_deletion(pod, code, finished_at)
    )


def _was_ended_by_deletion(pod: Object, code: int | None, finished_at: float) -> bool:
    """Whether the signal that ended a pod came from its deletion: SIGKILL comes once the grace period is over. Of other
    signals it is taken for granted, since which was first can't be told: the API server's clock times deletions, the
    node's times ends, and both tell whole seconds.
    """
    gone_by = timestamp(pod["metadata"].get("deletionTimestamp"))  # grace period included
    return gone_by is not None and (code != KILLED_CODE or finished_at >= gone_by)


def waits_for(pods: Iterable[Object]) -> tuple[str, str]:
    """Reason and message of the first pod that can't start as it is; both empty if all are starting."""
    for pod in pods:
        if has_ended(pod) or is_being_deleted(pod):
            continue
        scheduled = condition(pod, "PodScheduled")
        if scheduled is not None and scheduled.get("status") == "False":
            return string(scheduled.get("reason")) or "Unschedulable", _describe(
                pod, "", string(scheduled.get("message"))
            )
        for container in (*_statuses(pod, "initContainerStatuses"), *_statuses(pod, "containerStatuses")):
            waiting = mapping(mapping(container.get("state")).get("waiting"))
            reason = string(waiting.get("reason"))
            if reason not in _STARTING:
                text = _describe(pod, "", string(waiting.get("message")) or reason)
                remedy = _USER_REMEDY if _ROOT.search(text) else _WAITING_REMEDIES.get(reason)
                return reason, cut(f"{text}; {remedy}" if remedy else text)
    return "", ""


def _why(pod: Object, ended: Mapping[str, Any], status: Mapping[str, Any]) -> tuple[str, str]:
    name, code = pod["metadata"]["name"], integer(ended.get("exitCode"))
    pod_reason, pod_message = string(status.get("reason")), string(status.get("message"))
    if ended.get("reason") == "OOMKilled":
        return "OOMKilled", (
            f"{name} used more memory than its limit: raise spec.job.resources.limits.memory, or lower "
            "training.microBatchSize or training.dataWorkers"
        )
    if pod_reason == "DeadlineExceeded":
        return "TimedOut", f"{name} ran longer than job.activeDeadlineSeconds allows"
    if _OWN_LIMIT.search(pod_message):
        return "StorageLimitExceeded", f"{name}: {pod_message}; raise the limit in spec.job"
    if (failure := _failure(ended)) is not None:
        return failure.reason, failure.message
    last = _last_line(string(ended.get("message")) or pod_message)
    code_text = f"exit code {code}" if code is not None else "no exit code"
    text = f"{name} ended with {code_text}" + (f"; last line: {last}" if last else "; its log may say why")
    reason = string(ended.get("reason")) or pod_reason
    return ("TrainerFailed" if reason in ("", "Error") else reason), text


def _last_line(text: str) -> str:
    """The last line that is not empty: of the end of a log, that is where an exception is named."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")


def _failure(ended: Mapping[str, Any]) -> Failure | None:
    """What the trainer wrote about its end; None if it left nothing that can be read."""
    try:
        return Failure.model_validate_json(string(ended.get("message")))
    except ValidationError:
        return None


def _trainer_end(pod: Object) -> Mapping[str, Any] | None:
    """How the trainer's own container ended; None if it has not."""
    statuses = _statuses(pod, "containerStatuses")
    trainer = next((one for one in statuses if string(one.get("name")) in CONTAINERS), {})
    return mapping(mapping(trainer.get("state")).get("terminated")) or None


def _terminated(pod: Object) -> Mapping[str, Any]:
    """How the trainer's container ended; another's, if that one failed and the trainer never started."""
    statuses = [*_statuses(pod, "containerStatuses"), *_statuses(pod, "initContainerStatuses")]
    ends = [
        (string(one.get("name")), mapping(mapping(one.get("state")).get("terminated"))) for one in statuses
    ]
    own = next((end for name, end in ends if end and name in CONTAINERS), None)
    if own and own.get("exitCode"):
        return own
    return next((end for _, end in ends if end and end.get("exitCode")), own or {})


def _statuses(pod: Object, field: str) -> list[Mapping[str, Any]]:
    return mappings(mapping(pod.get("status")).get(field))


def _describe(pod: Object, reason: str, message: str) -> str:
    parts = [pod["metadata"]["name"], reason, message]
    return cut(": ".join(part for part in parts if part))
