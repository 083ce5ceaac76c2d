"""A stage as a TrainJob of the Kubeflow Trainer (trainer.kubeflow.org): a JobSet of one Indexed Job.

What a TrainJob can't set on its pods is set by its runtime; the chart installs a suitable one. The pod template
that all backends share is taken apart here: what belongs to the trainer, and what is patched into the runtime.
https://www.kubeflow.org/docs/components/trainer/
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from modelchain.cluster_labels import CONTAINER, TRAINJOB_CONTAINER
from modelchain.spec import JobSpec
from modelchain_operator.jobs.backend import (
    JobState,
    Owner,
    Unsupported,
    declared_failure,
    pod_count,
    suspended_by_spec,
)
from modelchain_operator.jobs.conditions import is_true
from modelchain_operator.jobs.pod_template import build_pod_template
from modelchain_operator.jobs.request import JobRequest, job_metadata, own_annotations, own_labels
from modelchain_operator.kubernetes.api import Object
from modelchain_operator.kubernetes.fields import integer, mapping, mappings, string
from modelchain_operator.kubernetes.kinds import JOB, JOBSET, TRAINJOB

DEFAULT_RUNTIME = "modelchain"  # the chart's ClusterTrainingRuntime
NODE = "node"  # the replicated job of a runtime that trains: Trainer and Kueue know it by this name
MANAGER = "modelchain.dev/operator"  # of our patch
MULTIKUEUE = "kueue.x-k8s.io/multikueue"
OWN_CONTROLLER = "trainer.kubeflow.org/trainjob-controller"
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"

# What a patch may say of a pod, and of a container. The rest of what we generate is the runtime's, and the same there.
# https://pkg.go.dev/github.com/kubeflow/trainer/v2/pkg/apis/trainer/v1alpha1#PodSpecPatch
_POD_FIELDS = (
    "serviceAccountName",
    "volumes",
    "imagePullSecrets",
    "securityContext",
    "nodeSelector",
    "affinity",
    "tolerations",
    "schedulingGates",
    "terminationGracePeriodSeconds",
)
_CONTAINER_FIELDS = ("volumeMounts", "securityContext")
_TRAINER_FIELDS = ("image", "command", "args", "env")
_GRACE_PERIOD = (  # in a queue
    "Kueue 0.19 knows TrainJobs of Trainer 2.2, and takes this field from a job that it lets go",
    "remove it, and set it in a runtime of your own that spec.job.runtime names (ours has 120)",
)


class TrainJobBackend:
    """A pod for each node; the Trainer tells them where to meet."""

    name = "TrainJob"
    kind = TRAINJOB
    intermediate = (JOBSET, JOB)
    requirement = (
        "the Kubeflow Trainer, 2.2 or newer (kubectl apply --server-side -k "
        '"github.com/kubeflow/trainer.git/manifests/overlays/manager?ref=v2.3.0")'
    )
    install_hint = (
        "the cluster has no TrainJob (trainer.kubeflow.org/v1alpha1) or no JobSet: "
        f"install {requirement}, or set spec.job.backend: Job"
    )
    refusal_hints: Mapping[str, str] = MappingProxyType(
        {
            "TrainingRuntime": "name one that is there in spec.job.runtime (kubectl get clustertrainingruntimes), or "
            f"install ours, {DEFAULT_RUNTIME}: trainJob.installRuntime=true in the values of the chart"
        }
    )
    controller_hint = "do the Kubeflow Trainer and JobSet run, and is its ClusterTrainingRuntime there?"

    def unsupported(self, spec: JobSpec) -> Iterable[Unsupported]:
        """Reports fields that only a runtime can set, and values of `managedBy` that the schema does not allow."""
        if spec.managed_by not in (None, OWN_CONTROLLER, MULTIKUEUE):
            yield Unsupported(
                "managedBy",
                f"a TrainJob can't be given to {spec.managed_by}",
                f"write {MULTIKUEUE}, or use backend: Job",
            )
        if spec.ttl_seconds_after_finished is not None:
            yield Unsupported(
                "ttlSecondsAfterFinished",
                "a TrainJob is deleted with its chain, or before the next attempt",
                "remove it, or use another backend",
            )
        if spec.scheduling_policy is not None:
            yield Unsupported(
                "schedulingPolicy",
                "a TrainJob's gangs are a policy of its runtime",
                "remove it, and set podGroupPolicy in a runtime of your own that spec.job.runtime names",
            )
        if spec.priority_class_name:
            yield Unsupported(
                "priorityClassName",
                "a TrainJob can't set the PriorityClass of its pods",
                "remove it, and set it in a runtime of your own that spec.job.runtime names; Kueue's priority is a "
                "label (job.labels)",
            )
        if spec.queue_name and spec.termination_grace_period_seconds is not None:
            yield Unsupported("terminationGracePeriodSeconds", *_GRACE_PERIOD)
        if spec.queue_name and "terminationGracePeriodSeconds" in _pod_spec(spec.pod_template or {}):
            yield Unsupported("podTemplate.spec.terminationGracePeriodSeconds", *_GRACE_PERIOD)
        for field in _template_fields(spec.pod_template or {}):
            yield Unsupported(
                f"podTemplate.{field}",
                "a TrainJob can't set this field of its pods",
                "remove it, and set it in a runtime of your own that spec.job.runtime names",
            )

    def build(self, request: JobRequest) -> tuple[Object, ...]:
        """The TrainJob, and nothing beside it."""
        return (build_trainjob(request),)

    def suspended(self, job: Object) -> Object:
        """The job with `suspend` set in its spec."""
        return suspended_by_spec(job)

    def read(self, job: Object) -> JobState:
        """The state of the job, from the conditions that the Trainer copies from the JobSet."""
        spec = mapping(job.get("spec"))
        manager = string(spec.get("managedBy"))
        wanted = pod_count(mapping(spec.get("trainer")).get("numNodes"))
        return JobState(
            wanted_pods=wanted,
            suspended=bool(spec.get("suspend")),
            succeeded=is_true(job, "Complete"),
            failure=declared_failure(job),
            managed_by="" if manager == OWN_CONTROLLER else manager,
            ready_pods=wanted if _is_ready(job) else 0,
            untouched=not job.get("status"),
        )

    def pod_templates(self, job: Object) -> Iterable[Mapping[str, Any]]:
        """The part of the pod template that the job itself holds: the trainer's container."""
        trainer = mapping(mapping(job.get("spec")).get("trainer"))
        container = {
            "name": CONTAINER,
            **{name: trainer[name] for name in _TRAINER_FIELDS if name in trainer},
        }
        return ({"spec": {"containers": [container]}},)

    def slim(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """The number of nodes, the controller, whether it is suspended."""
        trainer = mapping(spec.get("trainer"))
        kept = {name: spec[name] for name in ("suspend", "managedBy") if name in spec}
        return {**kept, "trainer": {"numNodes": pod_count(trainer.get("numNodes"))}}

    def position(self, pod: Object) -> str:
        """The completion index of the pod."""
        return str((pod["metadata"].get("labels") or {}).get(INDEX_LABEL, ""))

    def is_pod_owner(self, owner: Owner, job_name: str) -> bool:
        """Whether the owner is the Job that the JobSet makes of the replicated job that trains."""
        return owner.is_a(JOB) and owner.name == f"{job_name}-{NODE}-0"


def build_trainjob(request: JobRequest) -> Object:
    """The TrainJob of one attempt."""
    template = build_pod_template(request)
    pod = template["spec"]
    container = next(one for one in pod["containers"] if one["name"] == CONTAINER)
    job = request.stage.job
    trainer: Object = {
        **{name: container[name] for name in _TRAINER_FIELDS if name in container},
        "numNodes": job.nodes,
        "numProcPerNode": job.processes_per_node,
    }
    if "resources" in container:
        trainer["resourcesPerNode"] = container["resources"]
    spec: Object = {
        "runtimeRef": {"name": request.spec.runtime or DEFAULT_RUNTIME},
        "trainer": trainer,
        "runtimePatches": [
            {"manager": MANAGER, "trainingRuntimeSpec": {"template": _patch(request, template, container)}}
        ],
    }
    if limit := pod.get("activeDeadlineSeconds"):
        spec["activeDeadlineSeconds"] = limit
    if request.spec.managed_by:
        spec["managedBy"] = request.spec.managed_by
    return {
        "apiVersion": TRAINJOB.api_version,
        "kind": TRAINJOB.kind,
        "metadata": job_metadata(request),
        "spec": spec,
    }


def _patch(request: JobRequest, template: Object, container: Object) -> Object:
    """Of the JobSet. It, its Job and their pods carry the labels by which the operator watches them."""
    own = {"labels": own_labels(request), "annotations": own_annotations(request)}
    pod = {name: template["spec"][name] for name in _POD_FIELDS if template["spec"].get(name)}
    if request.spec.queue_name:
        # Kueue 0.19 writes a TrainJob back without what Trainer 2.2 did not know. The pods would then not be those of
        # the JobSet that was made, which is refused, and the job would never start.
        pod.pop("terminationGracePeriodSeconds", None)
    pod["containers"] = [
        {
            "name": TRAINJOB_CONTAINER,
            **{name: container[name] for name in _CONTAINER_FIELDS if container.get(name)},
        }
    ]
    pods = {"metadata": template["metadata"], "spec": pod}
    job = {"metadata": own, "spec": {"template": pods}}
    return {"metadata": own, "spec": {"replicatedJobs": [{"name": NODE, "template": job}]}}


def _pod_spec(template: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of a pod template as a user has written it."""
    spec = template.get("spec")
    return spec if isinstance(spec, Mapping) else {}


def _template_fields(template: Mapping[str, Any]) -> Iterator[str]:
    """Fields of a pod template that no patch may hold, as a user has written them."""
    for name, value in _pod_spec(template).items():
        if name == "containers" and isinstance(value, list):
            for container in value:
                yield from _container_fields(container)
        elif name not in _POD_FIELDS:
            yield f"spec.{name}"


def _container_fields(container: object) -> Iterator[str]:
    if not isinstance(container, Mapping):
        return
    name = container.get("name")
    if name != CONTAINER:
        yield f"spec.containers ({name})"
        return
    known = ("name", "resources", *_TRAINER_FIELDS, *_CONTAINER_FIELDS)
    yield from (f"spec.containers ({name}).{field}" for field in container if field not in known)


def _is_ready(job: Object) -> bool:
    """Whether all pods run, as the Trainer counts jobs."""
    counts = mappings(mapping(job.get("status")).get("jobsStatus"))
    return any(one.get("name") == NODE and (integer(one.get("ready")) or 0) > 0 for one in counts)
