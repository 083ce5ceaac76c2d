"""The kinds of Kubernetes objects that the operator deals with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modelchain.spec import API_VERSION, KIND


@dataclass(frozen=True)
class Kind:
    """A kind as the API names it. https://kubernetes.io/docs/reference/using-api/api-concepts/"""

    api_version: str  # group/version; of the core group, the version alone
    kind: str
    plural: str  # in paths

    @property
    def group(self) -> str:
        """Of the API; of the core group, empty."""
        return self.api_version.rpartition("/")[0]


CHAIN = Kind(API_VERSION, KIND, "modelchains")
PYTORCHJOB = Kind("kubeflow.org/v1", "PyTorchJob", "pytorchjobs")
TRAINJOB = Kind("trainer.kubeflow.org/v1alpha1", "TrainJob", "trainjobs")
JOBSET = Kind("jobset.x-k8s.io/v1alpha2", "JobSet", "jobsets")
JOB = Kind("batch/v1", "Job", "jobs")
POD = Kind("v1", "Pod", "pods")
SERVICE = Kind("v1", "Service", "services")
SECRET = Kind("v1", "Secret", "secrets")
CONFIG_MAP = Kind("v1", "ConfigMap", "configmaps")
EVENT = Kind("v1", "Event", "events")
LEASE = Kind("coordination.k8s.io/v1", "Lease", "leases")
PRIORITY_CLASS = Kind("scheduling.k8s.io/v1", "PriorityClass", "priorityclasses")
# Of Kueue. https://kueue.sigs.k8s.io/docs/reference/kueue.v1beta2/
LOCAL_QUEUE = Kind("kueue.x-k8s.io/v1beta2", "LocalQueue", "localqueues")
WORKLOAD = Kind("kueue.x-k8s.io/v1beta2", "Workload", "workloads")
WORKLOAD_PRIORITY_CLASS = Kind("kueue.x-k8s.io/v1beta2", "WorkloadPriorityClass", "workloadpriorityclasses")

_ALL = {
    (kind.api_version, kind.kind): kind
    for kind in (CHAIN, PYTORCHJOB, TRAINJOB, JOBSET, JOB, POD, SERVICE, SECRET, CONFIG_MAP, EVENT)
}


def of(manifest: Mapping[str, Any]) -> Kind:
    """The kind of an object. KeyError if it is none of these."""
    return _ALL[manifest["apiVersion"], manifest["kind"]]
