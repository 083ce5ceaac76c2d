"""One namespace that refuses, one chain that can't be read: the others go on, and the refusal is told."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.control_plane.plane import ControlPlane
from tests.operator.chains import ClusterChain
from tests.operator.operator_process import OperatorProcess
from tests.processes import wait_until
from tests.seaweedfs import SeaweedFS

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("control-plane")]

NO_RESYNC = "--resync-seconds=600"  # what is seen, the watches have shown


@pytest.fixture
def left(control_plane: ControlPlane) -> Iterator[str]:
    """A namespace whose team has left, and has taken the operator's Role along."""
    name = f"left-{secrets.token_hex(3)}"
    control_plane.kubectl("create", "namespace", name)
    yield name
    control_plane.kubectl("delete", "namespace", name, "--wait=false", check=False)


def allow(plane: ControlPlane, namespace: str, account: str) -> None:
    """Everything in that namespace."""
    every = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "operator"}
    of, _, name = account.partition("/")
    subject = {"kind": "ServiceAccount", "namespace": of, "name": name}
    meta = {"name": "operator", "namespace": namespace}
    group = "rbac.authorization.k8s.io/v1"
    plane.apply(
        {"apiVersion": group, "kind": "Role", "metadata": meta, "rules": every},
        {
            "apiVersion": group,
            "kind": "RoleBinding",
            "metadata": meta,
            "roleRef": reference,
            "subjects": [subject],
        },
    )


def kubeconfig_of(plane: ControlPlane, namespace: str, folder: Path) -> Path:
    """Of a service account `operator` of that namespace."""
    plane.kubectl("create", "serviceaccount", "operator", "-n", namespace)
    token = plane.kubectl("create", "token", "operator", "-n", namespace).stdout.strip()
    return plane.kubeconfig_for(folder / "operator.kubeconfig", token)


def test_a_namespace_that_refuses_everything_holds_up_no_other(
    chain: ClusterChain, left: str, seaweedfs: SeaweedFS, tmp_path: Path
) -> None:
    plane = chain.plane
    kubeconfig = kubeconfig_of(plane, chain.namespace, tmp_path)
    allow(plane, chain.namespace, f"{chain.namespace}/operator")
    other = ClusterChain(plane, seaweedfs, left, tmp_path / "left")
    operator = OperatorProcess(
        kubeconfig, chain.namespace, tmp_path / "log", f"--namespace={left}", NO_RESYNC
    )
    try:
        operator.start()
        chain.apply()
        other.apply()
        wait_until(lambda: len(chain.jobs()) == 1, "its job is made", pause=0.3)
        assert other.status() == {}
        for words in (f"list modelchains in {left}", f"modelchains can't be watched in {left}"):
            wait_until(lambda words=words: words in operator.said(), f"it says: {words}")
        assert "Traceback" not in operator.said()
        allow(plane, left, f"{chain.namespace}/operator")
        wait_until(lambda: len(other.jobs()) == 1, "that of the other is, once it may be", pause=0.5)
        assert operator.terminate() == 0
    finally:
        operator.kill()


def test_a_chain_nested_too_deeply_is_refused_and_its_neighbours_are_watched_on(
    chain: ClusterChain, control_plane: ControlPlane, tmp_path: Path
) -> None:
    hostile = json.loads(json.dumps(chain.document))
    hostile["metadata"]["name"] = "hostile"
    deep = '{"a":' * 5000 + "1" + "}" * 5000
    text = json.dumps(hostile).replace('"job": {', f'"job": {{"podTemplate": {{"spec": {deep}}}, ')
    operator = OperatorProcess(control_plane.kubeconfig, chain.namespace, tmp_path / "log", NO_RESYNC)
    try:
        operator.start()
        path = tmp_path / "hostile.json"
        path.write_text(text)
        url = f"/apis/modelchain.dev/v1alpha1/namespaces/{chain.namespace}/modelchains"
        chain.plane.kubectl("create", "--raw", url, "-f", str(path))
        wait_until(
            lambda: "nested more than 64 deep" in refusal(chain, "hostile"),
            "it is refused",
            pause=0.3,
        )
        chain.apply()
        wait_until(lambda: len(chain.jobs()) == 1, "its neighbour's job is made", pause=0.3)
        assert "has failed" not in operator.said()
    finally:
        operator.kill()


def refusal(chain: ClusterChain, name: str) -> str:
    """What the condition Accepted says."""
    path = '{.status.conditions[?(@.type=="Accepted")].message}'
    return chain.plane.kubectl(
        "get", "modelchain", name, "-n", chain.namespace, "-o", f"jsonpath={path}"
    ).stdout
