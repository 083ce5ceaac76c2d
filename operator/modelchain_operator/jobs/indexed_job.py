"""A stage as an Indexed Job (batch/v1): for clusters without the Kubeflow training operator.

https://kubernetes.io/docs/concepts/workloads/controllers/job/#completion-mode
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from modelchain.spec import JobSpec
from modelchain_operator.jobs import names
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
from modelchain_operator.jobs.request import JobRequest, job_metadata, life_cycle, owned_metadata
from modelchain_operator.kubernetes import labels
from modelchain_operator.kubernetes.api import Object
from modelchain_operator.kubernetes.fields import integer, mapping, string
from modelchain_operator.kubernetes.kinds import JOB, SERVICE

OWN_CONTROLLER = (
    "kubernetes.io/job-controller"  # runs the jobs that name it, or no controller, in spec.managedBy
)
INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"  # a label too


class IndexedJobBackend:
    """A pod for each node; with more than one, a headless Service gives them names."""

    name = "Job"
    kind = JOB
    intermediate = ()
    requirement = "Kubernetes 1.29 or newer"
    install_hint = "the API server does not serve batch/v1: is this a Kubernetes cluster?"
    refusal_hints: Mapping[str, str] = MappingProxyType({})
    controller_hint = "is kube-controller-manager running?"

    def unsupported(self, spec: JobSpec) -> Iterable[Unsupported]:
        """Gang scheduling."""
        if spec.scheduling_policy is not None:
            yield Unsupported(
                "schedulingPolicy",
                "an Indexed Job has no gang scheduling of its own",
                "remove it, or use backend: PyTorchJob; Kueue (job.queueName) admits both kinds whole",
            )

    def build(self, request: JobRequest) -> tuple[Object, ...]:
        """The Service, if there is one, and the job."""
        job = build_indexed_job(request)
        return (build_service(request), job) if request.stage.job.nodes > 1 else (job,)

    def suspended(self, job: Object) -> Object:
        """By its spec."""
        return suspended_by_spec(job)

    def read(self, job: Object) -> JobState:
        """By the conditions of the job controller."""
        spec = mapping(job.get("spec"))
        manager = string(spec.get("managedBy"))
        return JobState(
            wanted_pods=pod_count(spec.get("completions")),
            suspended=bool(spec.get("suspend")),
            succeeded=is_true(job, "Complete"),
            failure=declared_failure(job),
            ending=is_true(job, "SuccessCriteriaMet", "FailureTarget"),
            managed_by="" if manager == OWN_CONTROLLER else manager,
            ready_pods=integer(mapping(job.get("status")).get("ready")) or 0,
            untouched=not job.get("status"),
        )

    def pod_templates(self, job: Object) -> Iterable[Mapping[str, Any]]:
        """One, for all pods."""
        return (mapping(mapping(job.get("spec")).get("template")),)

    def slim(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """The number of pods, the controller, whether it is suspended."""
        return {name: spec[name] for name in ("completions", "suspend", "managedBy") if name in spec}

    def position(self, pod: Object) -> str:
        """The index."""
        return str((pod["metadata"].get("labels") or {}).get(INDEX_ANNOTATION, ""))

    def is_pod_owner(self, owner: Owner, job_name: str) -> bool:
        """The job itself."""
        return owner.is_a(JOB) and owner.name == job_name


def build_indexed_job(request: JobRequest) -> Object:
    """The job of an attempt: the first pod that fails ends it."""
    nodes = request.stage.job.nodes
    template = build_pod_template(request, env=_rendezvous(request))
    template["spec"]["restartPolicy"] = "Never"
    if nodes > 1:
        template["spec"]["subdomain"] = names.service_name(request.stage)
    spec: Object = {
        "completionMode": "Indexed",
        "completions": nodes,
        "parallelism": nodes,
        "backoffLimit": 0,
        "template": template,
    }
    return {
        "apiVersion": JOB.api_version,
        "kind": JOB.kind,
        "metadata": job_metadata(request),
        "spec": spec | life_cycle(request),
    }


def build_service(request: JobRequest) -> Object:
    """Names for the pods of a stage: <job>-<index>.<service>, known before a pod is ready."""
    stage = request.stage
    return {
        "apiVersion": SERVICE.api_version,
        "kind": SERVICE.kind,
        "metadata": owned_metadata(request, names.service_name(stage)),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {labels.CHAIN_UID: stage.chain.uid, labels.STAGE: stage.name},
        },
    }


def _rendezvous(request: JobRequest) -> list[Object]:
    """The rendezvous, in torchrun's variables, as the training operator sets them."""
    stage = request.stage
    env: list[Object] = [
        {"name": "PET_NNODES", "value": str(stage.job.nodes)},
        {"name": "PET_NPROC_PER_NODE", "value": str(stage.job.processes_per_node)},
        {
            "name": "PET_NODE_RANK",
            "valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{INDEX_ANNOTATION}']"}},
        },
    ]
    if stage.job.nodes > 1:
        env += [
            {"name": "PET_MASTER_ADDR", "value": f"{request.name}-0.{names.service_name(stage)}"},
            {"name": "PET_MASTER_PORT", "value": str(names.port(stage, request.attempt))},
        ]
    return env
