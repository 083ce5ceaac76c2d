"""Who uses the chart in tests: teams with their chains, and the operators of releases."""

from __future__ import annotations

import secrets
from pathlib import Path

from tests.chart.releases import Release
from tests.control_plane.plane import ControlPlane
from tests.control_plane.pods import PodRunner
from tests.operator.chains import ClusterChain
from tests.operator.operator_process import OperatorProcess
from tests.seaweedfs import SeaweedFS


class Team:
    """A namespace that enforces `restricted`, with a chain that names no image, and a node that runs its pods."""

    def __init__(self, plane: ControlPlane, server: SeaweedFS, folder: Path) -> None:
        self.namespace = f"team-{secrets.token_hex(3)}"
        self._plane, self._server, self._folder = plane, server, folder
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        metadata = {"name": self.namespace, "labels": labels}
        plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        self.chain = self.another_chain("squares")
        self.pods = PodRunner(plane, folder / "pods", namespace=self.namespace)
        self.pods.start()

    def another_chain(self, name: str) -> ClusterChain:
        """One with a store of its own, not applied yet."""
        prefix = f"chart/{self.namespace}/{name}"
        chain = ClusterChain(
            self._plane, self._server, self.namespace, self._folder, name=name, prefix=prefix
        )
        del chain.document["spec"]["image"]
        return chain

    def close(self) -> None:
        """End its pods; the deletion of the namespace is not waited for."""
        self.pods.close()
        self._plane.kubectl("delete", "namespace", self.namespace, "--wait=false", check=False)


class Operators:
    """The operators of releases, which end with the test."""

    def __init__(self) -> None:
        self._started: list[OperatorProcess] = []

    def start(self, release: Release, log: Path) -> OperatorProcess:
        """Start the operator of a release, as its Deployment is now."""
        operator = release.operator(log)
        self._started.append(operator)
        operator.start()
        return operator

    def close(self) -> None:
        """Kill them."""
        for one in self._started:
            one.kill()
