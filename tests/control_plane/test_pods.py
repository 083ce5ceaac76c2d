"""The fixture in the kubelet's place does as a kubelet does; what the operator's tests show rests on that."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.control_plane.plane import ControlPlane
from tests.control_plane.pods import PodRunner
from tests.processes import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("control-plane")]

STUBBORN = "trap '' TERM; echo deaf; while true; do sleep 0.1; done"
OBEDIENT = "trap 'echo asked; exit 3' TERM; echo ready; while true; do sleep 0.1; done"


class Pods:
    """Pods of one shell command each, in the test's namespace."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self._plane, self._namespace = plane, namespace

    def make(
        self, name: str, command: str, *, grace: int = 30, restart: str = "Never", **container: Any
    ) -> None:
        main = {"name": "main", "image": "shell", "command": ["sh", "-c", command], **container}
        spec = {"containers": [main], "restartPolicy": restart, "terminationGracePeriodSeconds": grace}
        metadata = {"name": name, "namespace": self._namespace}
        self._plane.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})

    def apply(self, kind: str, name: str, **content: Any) -> None:
        metadata = {"name": name, "namespace": self._namespace}
        self._plane.apply({"apiVersion": "v1", "kind": kind, "metadata": metadata, **content})

    def delete(self, name: str) -> None:
        self._plane.kubectl("delete", "pod", name, "-n", self._namespace, "--wait=false")

    def read(self, name: str) -> dict[str, Any]:
        """The pod; empty if there is none."""
        arguments = ("get", "pod", name, "-n", self._namespace, "-o", "json", "--ignore-not-found")
        return json.loads(self._plane.kubectl(*arguments).stdout or "{}")

    def status(self, name: str) -> dict[str, Any]:
        return self.read(name).get("status", {})

    def container(self, name: str) -> dict[str, Any]:
        """The status of the only container; empty before the first."""
        return next(iter(self.status(name).get("containerStatuses", [])), {})

    def wait_for_phase(self, name: str, phase: str) -> None:
        wait_until(lambda: self.status(name).get("phase") == phase, f"{name} is {phase}", pause=0.1)


@pytest.fixture
def pods(control_plane: ControlPlane, namespace: str, pod_runner: PodRunner) -> Pods:
    return Pods(control_plane, namespace)


def test_a_container_gets_what_its_pod_says_and_its_end_is_told(pods: Pods, pod_runner: PodRunner) -> None:
    pods.apply("Secret", "keys", stringData={"key": "from the secret"})
    pods.apply("ConfigMap", "words", data={"WORD": "from the map"})
    pods.make(
        "told",
        'echo "$KEY, $WORD, $(NAME)"; printf "the reason" > "$MODELCHAIN_TERMINATION_LOG"; exit 7',
        envFrom=[{"configMapRef": {"name": "words"}}],
        env=[
            {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "key"}}},
            {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        ],
    )
    pods.wait_for_phase("told", "Failed")
    ended = pods.container("told")["state"]["terminated"]
    assert (ended["exitCode"], ended["reason"], ended["message"]) == (7, "Error", "the reason")
    assert pod_runner.log("told") == "from the secret, from the map, told\n"


def test_a_container_is_restarted_as_its_policy_says(pods: Pods) -> None:
    pods.make("again", "exit 1", restart="OnFailure")
    wait_until(lambda: pods.container("again").get("restartCount", 0) >= 1, "it is restarted", pause=0.2)
    assert pods.status("again")["phase"] == "Running"
    pods.make("once", "exit 1")
    pods.wait_for_phase("once", "Failed")
    assert pods.container("once")["restartCount"] == 0


def test_a_deleted_pod_is_asked_to_end_and_is_gone_when_it_has(pods: Pods, pod_runner: PodRunner) -> None:
    pods.make("obedient", OBEDIENT)
    wait_until(lambda: "ready" in pod_runner.log("obedient"), "it runs", pause=0.1)
    pods.delete("obedient")
    wait_until(lambda: not pods.read("obedient"), "it is gone", pause=0.1)
    assert "asked" in pod_runner.log("obedient")


def test_a_pod_that_does_not_listen_is_killed_when_its_grace_is_over(
    pods: Pods, pod_runner: PodRunner
) -> None:
    pods.make("stubborn", STUBBORN, grace=2)
    wait_until(lambda: "deaf" in pod_runner.log("stubborn"), "it runs", pause=0.1)
    asked = time.monotonic()
    pods.delete("stubborn")
    wait_until(lambda: not pod_runner.is_running("stubborn"), "it is killed", pause=0.1)
    assert time.monotonic() - asked >= 2
    wait_until(lambda: not pods.read("stubborn"), "it is gone", pause=0.1)


def test_a_pod_stays_when_it_is_evicted_and_hangs_when_its_node_is_lost(
    pods: Pods, pod_runner: PodRunner
) -> None:
    for name in ("evicted", "lost"):
        pods.make(name, STUBBORN, grace=1)
        pods.wait_for_phase(name, "Running")
    pod_runner.evict("evicted")
    pods.wait_for_phase("evicted", "Failed")
    assert pods.status("evicted")["reason"] == "Evicted"
    pod_runner.lose_node()
    assert pods.read("lost")["metadata"]["deletionTimestamp"]
    time.sleep(2)
    assert pods.status("lost")["phase"] == "Running", "nobody can say that it has ended"
    pod_runner.return_node()
    wait_until(lambda: not pods.read("lost"), "it is gone", pause=0.1)
