"""What an administrator of Kueue makes: quotas, queues, priorities. And others who use them."""

from __future__ import annotations

import json
from typing import Any

from tests.control_plane.plane import ControlPlane

Object = dict[str, Any]

API_VERSION = "kueue.x-k8s.io/v1beta2"


class Queues:
    """Of one namespace. Cluster-scoped objects carry its name, so that tests do not meet."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self.plane, self.namespace = plane, namespace
        self._elsewhere: list[tuple[str, ...]] = []  # what is not in the namespace, as kubectl names it

    def quota(self, cpu: str, *, queue: str = "research", namespace: str | None = None, **spec: Any) -> None:
        """A LocalQueue that admits as long as the requests of its jobs do not exceed `cpu`.

        `namespace`: where its LocalQueue stands, if elsewhere.
        `spec`: further fields of the ClusterQueue, such as `preemption` or `cohortName`.
        """
        flavor, cluster_queue = self.name("flavor"), self.name(queue)
        group = {
            "coveredResources": ["cpu"],
            "flavors": [{"name": flavor, "resources": [{"name": "cpu", "nominalQuota": cpu}]}],
        }
        self._apply("ResourceFlavor", flavor, {})
        self._apply(
            "ClusterQueue",
            cluster_queue,
            {"namespaceSelector": {}, "resourceGroups": [group], **spec},
        )
        self.local_queue(queue, cluster_queue, namespace)

    def local_queue(self, name: str, cluster_queue: str, namespace: str | None = None) -> None:
        """A queue of the namespace, or of another."""
        metadata = {"name": name, "namespace": namespace or self.namespace}
        self.plane.apply(
            {
                "apiVersion": API_VERSION,
                "kind": "LocalQueue",
                "metadata": metadata,
                "spec": {"clusterQueue": cluster_queue},
            }
        )
        if namespace is not None:
            self._elsewhere.append(("localqueue", name, "-n", namespace))

    def priority(self, name: str, value: int) -> str:
        """A WorkloadPriorityClass. Returns its name."""
        whole = self.name(name)
        document = {"apiVersion": API_VERSION, "kind": "WorkloadPriorityClass", "metadata": {"name": whole}}
        self.plane.apply({**document, "value": value})
        self._elsewhere.append(("workloadpriorityclass", whole))
        return whole

    def pod_priority(self, name: str, value: int) -> None:
        """A PriorityClass, of Kubernetes' own."""
        whole = self.name(name)
        metadata = {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": whole},
        }
        self.plane.apply({**metadata, "value": value})
        self._elsewhere.append(("priorityclass", whole))

    def occupy(self, name: str, cpu: str, *, queue: str = "research", **labels: str) -> None:
        """Somebody else's job of one pod, which runs until it is deleted."""
        container = {
            "name": "main",
            "image": "shell",
            "command": ["sh", "-c", "trap 'exit 0' TERM; while true; do sleep 0.1; done"],
            "resources": {"requests": {"cpu": cpu}},
        }
        pod = {"containers": [container], "restartPolicy": "Never", "terminationGracePeriodSeconds": 1}
        metadata = {
            "name": name,
            "namespace": self.namespace,
            "labels": {"kueue.x-k8s.io/queue-name": queue, **labels},
        }
        spec = {"template": {"spec": pod}, "suspend": True, "backoffLimit": 0}
        self.plane.apply({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec})

    def vacate(self, name: str) -> None:
        """End what `occupy` has begun."""
        self.plane.kubectl("delete", "job", name, "-n", self.namespace, "--wait=false")

    def job(self, name: str) -> Object:
        """A Job as it is now."""
        return self.plane.read("apis/batch/v1/jobs", self.namespace, name)

    def is_running(self, name: str) -> bool:
        """Whether the pod of such a job runs."""
        return self.job(name).get("status", {}).get("ready", 0) > 0

    def has_vacated(self, name: str) -> bool:
        """Whether such a job is deleted, and nothing of it runs any more. Its ended pods stay while Kueue is away,
        which is asked of every change of a pod.
        """
        jobs = self.plane.read("apis/batch/v1/jobs", self.namespace)["items"]
        selector = f"batch.kubernetes.io/job-name={name}"
        pods = self.plane.read("api/v1/pods", self.namespace, labelSelector=selector)["items"]
        ended = all(pod["status"]["phase"] in ("Succeeded", "Failed") for pod in pods)
        return ended and name not in {job["metadata"]["name"] for job in jobs}

    def workload_of(self, job: Object) -> Object:
        """Kueue's Workload of a job; empty if there is none."""
        selector = f"kueue.x-k8s.io/job-uid={job['metadata']['uid']}"
        found = self.plane.read(f"apis/{API_VERSION}/workloads", self.namespace, labelSelector=selector)
        return next(iter(found["items"]), {})

    def patch_workload(self, workload: Object, spec: Object) -> None:
        """As `kubectl patch` of its spec."""
        name, text = workload["metadata"]["name"], json.dumps({"spec": spec})
        arguments = ("patch", "workloads.kueue.x-k8s.io", name, "-n", self.namespace)
        self.plane.kubectl(*arguments, "--type=merge", "-p", text)

    def remove(self) -> None:
        """What is not in the namespace."""
        for one in reversed(self._elsewhere):
            self.plane.kubectl("delete", *one, "--wait=false", "--ignore-not-found", check=False)

    def name(self, short: str) -> str:
        """Of something that is in no namespace."""
        return f"{self.namespace}-{short}"

    def _apply(self, kind: str, name: str, spec: Object) -> None:
        self.plane.apply({"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec})
        self._elsewhere.append((kind.lower(), name))
