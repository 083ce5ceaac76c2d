"""A stage as a PyTorchJob of the Kubeflow training operator (kubeflow.org/v1).

https://www.kubeflow.org/docs/components/trainer/legacy-v1/user-guides/pytorch/
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from modelchain.spec import JobSpec
from modelchain_operator.jobs import names
from modelchain_operator.jobs.backend import JobState, Owner, Unsupported, declared_failure, pod_count
from modelchain_operator.jobs.conditions import is_true
from modelchain_operator.jobs.pod_template import build_pod_template
from modelchain_operator.jobs.request import JobRequest, job_metadata, life_cycle
from modelchain_operator.kubernetes.api import Object
from modelchain_operator.kubernetes.fields import mapping, string
from modelchain_operator.kubernetes.kinds import PYTORCHJOB

OWN_CONTROLLER = "kubeflow.org/training-operator"  # runs the jobs that name it, or nobody, in spec.managedBy
MULTIKUEUE = "kueue.x-k8s.io/multikueue"
CONTROLLERS = (OWN_CONTROLLER, MULTIKUEUE)
MAX_ROLES = 8  # that are kept; there are two
POSITION_LABELS = ("training.kubeflow.org/replica-type", "training.kubeflow.org/replica-index")
PORT_NAME = "pytorchjob-port"  # the training operator looks for it by this name


class PyTorchJobBackend:
    """A master, and a worker for each further node. The training operator tells the pods where to rendezvous."""

    name = "PyTorchJob"
    kind = PYTORCHJOB
    intermediate = ()
    requirement = (
        "the Kubeflow training operator, 1.9 or newer (kubectl apply --server-side -k "
        '"github.com/kubeflow/training-operator.git/manifests/overlays/standalone?ref=v1.9.4")'
    )
    install_hint = (
        "the cluster has no PyTorchJob (kubeflow.org/v1): set spec.job.backend: TrainJob where the Kubeflow Trainer is "
        f"installed, or Job; or install {requirement}"
    )
    refusal_hints: Mapping[str, str] = MappingProxyType({})
    controller_hint = "is the Kubeflow training operator running?"

    def unsupported(self, spec: JobSpec) -> Iterable[Unsupported]:
        """Reports values of `managedBy` that the PyTorchJob schema does not allow."""
        if spec.managed_by not in (None, *CONTROLLERS):
            yield Unsupported(
                "managedBy",
                f"a PyTorchJob can't be given to {spec.managed_by}",
                f"write {MULTIKUEUE}, or use backend: Job",
            )

    def build(self, request: JobRequest) -> tuple[Object, ...]:
        """The PyTorchJob, and nothing beside it."""
        return (build_pytorchjob(request),)

    def suspended(self, job: Object) -> Object:
        """The job with `runPolicy.suspend` set."""
        spec = job["spec"]
        return {**job, "spec": {**spec, "runPolicy": {**spec["runPolicy"], "suspend": True}}}

    def read(self, job: Object) -> JobState:
        """The state of the job, from the conditions that the training operator sets."""
        spec = mapping(job.get("spec"))
        policy = mapping(spec.get("runPolicy"))
        manager = string(policy.get("managedBy"))
        wanted = pod_count(sum(pod_count(one.get("replicas")) for one in _replica_specs(spec).values()))
        return JobState(
            wanted_pods=wanted,
            suspended=bool(policy.get("suspend")),
            succeeded=is_true(job, "Succeeded"),
            failure=declared_failure(job),
            managed_by="" if manager == OWN_CONTROLLER else manager,
            ready_pods=wanted if is_true(job, "Running") else 0,
            untouched=not job.get("status"),
        )

    def pod_templates(self, job: Object) -> Iterable[Mapping[str, Any]]:
        """The pod templates of the master and of the workers."""
        return [mapping(one.get("template")) for one in _replica_specs(mapping(job.get("spec"))).values()]

    def slim(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """The number of replicas, the controller, whether it is suspended."""
        policy, replicas = mapping(spec.get("runPolicy")), list(_replica_specs(spec).items())
        return {
            "runPolicy": {name: policy[name] for name in ("suspend", "managedBy") if name in policy},
            "pytorchReplicaSpecs": {
                role[:64]: {"replicas": one.get("replicas")} for role, one in replicas[:MAX_ROLES]
            },
        }

    def position(self, pod: Object) -> str:
        """The role of the pod and its index, such as `worker-0`."""
        labels = pod["metadata"].get("labels") or {}
        return "-".join(str(labels[name]) for name in POSITION_LABELS if name in labels)

    def is_pod_owner(self, owner: Owner, job_name: str) -> bool:
        """Whether the owner is this job: a PyTorchJob controls its pods itself."""
        return owner.is_a(PYTORCHJOB) and owner.name == job_name


def build_pytorchjob(request: JobRequest) -> Object:
    """The PyTorchJob of one attempt. The chain counts attempts, so no pod is ever restarted in place."""
    job = request.stage.job
    replicas = {"Master": _replicas(request, 1)}
    if job.nodes > 1:
        replicas["Worker"] = _replicas(request, job.nodes - 1)
    return {
        "apiVersion": PYTORCHJOB.api_version,
        "kind": PYTORCHJOB.kind,
        "metadata": job_metadata(request),
        "spec": {
            "nprocPerNode": str(job.processes_per_node),
            "runPolicy": _run_policy(request),
            "pytorchReplicaSpecs": replicas,
        },
    }


def _run_policy(request: JobRequest) -> Object:
    policy: Object = {
        "cleanPodPolicy": "Running",
        **life_cycle(request),
    }  # workers must not outlive the master
    if gang := request.spec.scheduling_policy:
        policy["schedulingPolicy"] = gang.model_dump(by_alias=True, exclude_none=True)
    return policy


def _replicas(request: JobRequest, count: int) -> Object:
    port = {"name": PORT_NAME, "containerPort": names.port(request.stage, request.attempt)}
    return {
        "replicas": count,
        "restartPolicy": "Never",
        "template": build_pod_template(request, ports=[port]),
    }


def _replica_specs(spec: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    return {role: mapping(one) for role, one in mapping(spec.get("pytorchReplicaSpecs")).items()}
