"""A stage as a PyTorchJob of the Kubeflow training operator (kubeflow.org/v1).

https://www.kubeflow.org/docs/components/trainer/legacy-v1/user-guides/pytorch/
"""

from __future__ import annotations

from modelchain_operator.jobs import names
from modelchain_operator.jobs.pod_template import build_pod_template
from modelchain_operator.jobs.request import JobRequest, job_metadata
from modelchain_operator.kinds import PYTORCHJOB
from modelchain_operator.kubernetes_api import Object

PORT_NAME = "pytorchjob-port"  # the training operator looks for it by this name


class PyTorchJobBackend:
    """A master, and a worker for each further node. That operator tells the pods where to meet."""

    name = "PyTorchJob"
    kind = PYTORCHJOB
    install_hint = (
        "the cluster has no PyTorchJob (kubeflow.org/v1): install the Kubeflow training operator (kubectl apply "
        '--server-side -k "github.com/kubeflow/training-operator.git/manifests/overlays/standalone?ref=v1.9.3"), '
        "or set spec.job.backend: Job"
    )

    def build(self, request: JobRequest) -> tuple[Object, ...]:
        """One object."""
        return (build_pytorchjob(request),)


def build_pytorchjob(request: JobRequest) -> Object:
    """The job of an attempt. Attempts are counted by the chain, so no pod is ever restarted in place."""
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
    policy: Object = {"cleanPodPolicy": "Running"}  # workers must not outlive the master
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
