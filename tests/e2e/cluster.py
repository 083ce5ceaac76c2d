"""The cluster, by kubectl and helm as a person would use them."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.control_plane import binaries
from tests.e2e.settings import Failed

Object = dict[str, Any]
# https://kubernetes.io/docs/concepts/security/pod-security-standards/
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
PAUSE_SECONDS = 0.5


def kubectl(*arguments: str, text: str | None = None, check: bool = True, timeout: float = 120) -> str:
    """Run kubectl, and return what it says; `text` goes to its standard input. Raises Failed."""
    return _run([binaries.kubectl(), *arguments], text=text, check=check, timeout=timeout)


def helm(*arguments: str) -> str:
    """Run helm, and return what it says. Raises Failed."""
    return _run([binaries.path("helm"), *arguments], timeout=900)


def apply(*objects: Object) -> None:
    """Server-side apply."""
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
    kubectl("apply", "--server-side", "-f", "-", text=text)


def read(*arguments: str) -> Object:
    """`kubectl get ... -o json`."""
    return json.loads(kubectl("get", *arguments, "-o", "json"))


def exists(*arguments: str) -> bool:
    """Whether `kubectl get` finds it."""
    return bool(kubectl("get", *arguments, "--ignore-not-found", "-o", "name", check=False).strip())


def create_namespace(name: str) -> None:
    """A namespace that enforces the `restricted` Pod Security level."""
    apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": RESTRICTED}})


def wait_until(
    holds: Callable[[], bool], what: str, *, seconds: float, unless: Callable[[], str | None] = lambda: None
) -> None:
    """Wait until something holds. Raises Failed in the end, or at once with what `unless` says."""
    deadline = time.monotonic() + seconds
    while not holds():
        if reason := unless():
            raise Failed(f"waited until {what}: {reason}")
        if time.monotonic() > deadline:
            raise Failed(f"waited {seconds:.0f} s in vain until {what}")
        time.sleep(PAUSE_SECONDS)


def wait_for_deployment(name: str, namespace: str, *, seconds: float) -> None:
    """Wait until its pods are there in their newest form. Raises Failed, at once where an image can't be had."""

    def ready() -> bool:
        one = read("deployment", name, "-n", namespace)
        status, wanted = one.get("status", {}), one["spec"]["replicas"]
        seen = status.get("observedGeneration") == one["metadata"]["generation"]
        counts = {status.get(kind, 0) for kind in ("replicas", "updatedReplicas", "availableReplicas")}
        return seen and counts == {wanted}

    wait_until(ready, f"deployment {name} is ready", seconds=seconds, unless=lambda: image_trouble(namespace))


def image_trouble(namespace: str) -> str | None:
    """Which image a node can't get, and what to do; None if there is none."""
    for pod in read("pods", "-n", namespace)["items"]:
        for container in pod["status"].get("containerStatuses", []):
            waiting = container["state"].get("waiting", {})
            if waiting.get("reason") in ("ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull"):
                return (
                    f"{container['image']} can't be pulled ({waiting.get('message', waiting['reason'])}); push it "
                    f"where the cluster finds it, or load it: kind load docker-image {container['image']}"
                )
    return None


@contextmanager
def port_forward(namespace: str, target: str, port: int) -> Iterator[int]:
    """A port of 127.0.0.1 that leads to one in the cluster."""
    command = [binaries.kubectl(), "port-forward", "-n", namespace, target, f":{port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()  # Forwarding from 127.0.0.1:40123 -> 8333
            if not line.startswith("Forwarding from 127.0.0.1:"):
                raise Failed(f"{shlex.join(command)}: {line.strip() or 'ended at once'}")
            yield int(line.split()[2].rpartition(":")[2])
        finally:
            process.terminate()


def _run(command: list[str], *, text: str | None = None, check: bool = True, timeout: float) -> str:
    try:
        done = subprocess.run(
            command, check=False, input=text, capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"{shlex.join(command)}: no answer within {timeout:.0f} s") from None
    if check and done.returncode:
        raise Failed(f"{shlex.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
