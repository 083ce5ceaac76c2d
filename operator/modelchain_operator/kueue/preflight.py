"""Before a job is made for a queue: whether Kueue will hold it there.

Nothing here makes anything. What it asks: the LocalQueues of the namespace, the priority classes, and a dry run of the
job, in which the webhook of a Kueue that manages this kind of job suspends it.
https://kueue.sigs.k8s.io/docs/tasks/run/
"""

from __future__ import annotations

import copy
import logging

from modelchain.spec import QueuePolicy
from modelchain_operator.jobs import JobRequest, backend_of
from modelchain_operator.kubernetes import labels
from modelchain_operator.kubernetes.api import Conflict, Forbidden, KubernetesApi, NotServed, Object
from modelchain_operator.kubernetes.kinds import LOCAL_QUEUE, PRIORITY_CLASS, WORKLOAD_PRIORITY_CLASS, Kind
from modelchain_operator.kueue.workloads import MINIMUM_KUEUE

logger = logging.getLogger(__name__)

_OTHERWISE = "or set spec.job.queuePolicy: IfPresent to train without a queue"


class QueueUnavailable(Exception):  # noqa: N818  it is an answer
    """The queue would not hold the job. The message says why and what to do."""


async def prepare_for_queue(api: KubernetesApi, request: JobRequest, kind: Kind, job: Object) -> Object:
    """The job as it has to be made, so that its queue holds it: suspended. One without a queue is left as it is.

    With `queuePolicy: IfPresent`, a job that no queue would hold loses its labels. Raises QueueUnavailable, and
    ApiError where the API server refuses the job or can't be asked.
    """
    queue = job["metadata"]["labels"].get(labels.QUEUE)
    if not queue:
        return job
    required = request.spec.queue_policy is not QueuePolicy.IF_PRESENT
    missing = await _missing_queue(api, job["metadata"]["namespace"], queue)
    if missing and required:
        raise QueueUnavailable(missing)
    if missing:
        return _without_queue(job)
    held = backend_of(job).suspended(job)
    try:
        dry = await api.create(kind, job, dry_run=True)
    except Conflict:  # it is there: whoever makes it finds out whose it is
        return held
    if backend_of(dry).read(dry).suspended:
        if why := await _missing_priority_class(api, request, job):
            raise QueueUnavailable(why)
        return held
    if not required:
        return job
    raise QueueUnavailable(
        f"Kueue does not manage {kind.kind}s ({kind.api_version}) here, so that a job of this kind would run past the "
        f"quota of LocalQueue {queue}: enable {integration(kind)} in integrations.frameworks of Kueue's configuration "
        f"and restart Kueue, choose another spec.job.backend, {_OTHERWISE}"
    )


def integration(kind: Kind) -> str:
    """How Kueue's configuration names a kind of job. https://kueue.sigs.k8s.io/docs/reference/kueue-config.v1beta2/"""
    return f"{kind.group}/{kind.kind.lower()}"


async def _missing_queue(api: KubernetesApi, namespace: str, queue: str) -> str:
    """Why the queue is not there; empty if it is, or may not be asked for."""
    try:
        there = await api.list_selected(LOCAL_QUEUE, namespace)
    except NotServed:
        return (
            f"Kueue is not installed (the cluster serves no {LOCAL_QUEUE.api_version}), so that nothing would hold the "
            f"job in queue {queue}: install Kueue {MINIMUM_KUEUE} or newer, remove spec.job.queueName, {_OTHERWISE}"
        )
    except Forbidden as error:
        logger.warning("%s; whether LocalQueue %s is there is left to Kueue", error, queue)
        return ""
    names = sorted(one["metadata"]["name"] for one in there)
    if queue in names:
        return ""
    has = f"it has {', '.join(names)}" if names else "it has none"
    return (
        f"namespace {namespace} has no LocalQueue {queue} ({has}): create it there (a queue serves its own namespace "
        f"only), correct spec.job.queueName, {_OTHERWISE}"
    )


async def _missing_priority_class(api: KubernetesApi, request: JobRequest, job: Object) -> str:
    """Which priority class of the job or its pods is not there; empty if none is missing, or it may not be asked for.

    Kueue makes no Workload for a job whose priority it can't read, and says so only in its log. It reads the class of
    the label, and only where there is none that of the scheduling policy or of the pods. Without its own class no pod
    is admitted in any case.
    https://kueue.sigs.k8s.io/docs/concepts/workload/#priority
    """
    label, policy = job["metadata"]["labels"].get(labels.QUEUE_PRIORITY), request.spec.scheduling_policy
    own = next(
        (one.get("spec", {}).get("priorityClassName") for one in backend_of(job).pod_templates(job)), None
    )
    of_template = own != request.spec.priority_class_name
    own_field = "spec.job.podTemplate.spec.priorityClassName" if of_template else "spec.job.priorityClassName"
    queued, admitted = "Kueue queues no job", "the API server admits no pod"
    for kind, name, without, field in (
        (WORKLOAD_PRIORITY_CLASS, label, queued, f"{labels.QUEUE_PRIORITY} in spec.job.labels"),
        (
            PRIORITY_CLASS,
            policy and not label and policy.priority_class,
            queued,
            "spec.job.schedulingPolicy.priorityClass",
        ),
        (PRIORITY_CLASS, own, admitted, own_field),
    ):
        try:
            if not name or await api.get(kind, "", str(name)) is not None:
                continue
        except Forbidden:  # the operator may have rights in namespaces only
            continue
        return (
            f"the cluster has no {kind.kind} {name}, without which {without} that asks for it: create it, or "
            f"correct {field} (kubectl get {kind.plural})"
        )
    return ""


def _without_queue(job: Object) -> Object:
    bare = copy.deepcopy(job)
    for label in (labels.QUEUE, labels.QUEUE_PRIORITY):
        bare["metadata"]["labels"].pop(label, None)
    return bare
