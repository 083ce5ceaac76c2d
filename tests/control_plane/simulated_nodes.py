"""Many nodes that are not there: the real kube-scheduler binds pods to them, and kwok says that they run."""

from __future__ import annotations

from collections.abc import Sequence

from tests.control_plane import binaries
from tests.control_plane.plane import ControlPlane, Process, free_ports
from tests.processes import wait_until

GPUS = 8  # of a node
SIMULATED = {"kwok.x-k8s.io/node": "fake"}
BATCH = 50  # nodes that are applied at once
# Of kwok's own: not the one that completes the pods of Jobs.
STAGES = ("node/fast/node-initialize.yaml", "pod/fast/pod-ready.yaml", "pod/fast/pod-delete.yaml")


class SimulatedNodes:
    """So many nodes of eight GPUs, with the scheduler that fills them."""

    def __init__(self, plane: ControlPlane, count: int) -> None:
        self.plane, self.count = plane, count
        (scheduler_port,) = free_ports(1)
        (selector,) = (f"{name}={value}" for name, value in SIMULATED.items())
        self.scheduler = Process(
            "kube-scheduler",
            [
                binaries.path("kube-scheduler"),
                f"--kubeconfig={plane.kubeconfig}",
                f"--secure-port={scheduler_port}",
                "--bind-address=127.0.0.1",
                f"--cert-dir={plane.folder / 'certificates'}",
                "--leader-elect=false",
            ],
            plane.folder,
        )
        self.kwok = Process(
            "kwok",
            [
                binaries.path("kwok"),
                f"--kubeconfig={plane.kubeconfig}",
                "--manage-all-nodes=false",
                f"--manage-nodes-with-annotation-selector={selector}",
                "--server-address=127.0.0.1:0",
                *(f"--config={binaries.kwok_stages() / stage}" for stage in STAGES),
            ],
            plane.folder,
        )

    def start(self) -> None:
        """Returns when all nodes are ready."""
        names = [f"gpu-{number:03}" for number in range(self.count)]
        for begin in range(0, self.count, BATCH):
            self.plane.apply(*map(_node, names[begin : begin + BATCH]))
        self.kwok.start()
        self.scheduler.start()
        wait_until(lambda: self._ready(names), f"{self.count} nodes are ready", pause=0.5)
        # The API server has put it on them; the controller that takes it away does not run here.
        self.plane.kubectl("taint", "nodes", "--all", "node.kubernetes.io/not-ready:NoSchedule-")

    def kill(self) -> None:
        """End both programs."""
        self.scheduler.kill()
        self.kwok.kill()

    def _ready(self, names: Sequence[str]) -> bool:
        self.kwok.assert_alive()
        self.scheduler.assert_alive()
        asked = ("get", "nodes", "-o", 'jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}')
        return self.plane.kubectl(*asked).stdout.split() == ["True"] * len(names)


def _node(name: str) -> dict[str, object]:
    resources = {"cpu": "64", "memory": "512Gi", "pods": "110", "nvidia.com/gpu": str(GPUS)}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "annotations": SIMULATED, "labels": {"kubernetes.io/hostname": name}},
        "status": {"allocatable": resources, "capacity": resources},
    }
