"""Whole manifests of jobs: as they stand in golden/, and as a real API server takes them."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.control_plane.plane import ControlPlane
from tests.operator.jobs.golden import CHAINS, golden_file, manifests

Object = dict[str, Any]
PRIORITY: Object = {"metadata": {"name": "training"}, "value": 1}


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: chain.name.removesuffix(".chain.yaml"))
def test_a_chain_makes_the_manifests_beside_it(chain: Path) -> None:
    assert golden_file(chain).read_text() == manifests(chain), (
        "run `make goldens`, read the difference, and commit it"
    )


def test_no_manifest_is_left_of_a_chain_that_is_gone() -> None:
    folder = CHAINS[0].parent
    assert set(folder.glob("*.yaml")) == {*CHAINS, *map(golden_file, CHAINS)}


@pytest.mark.slow
@pytest.mark.xdist_group("control-plane")
def test_an_api_server_takes_the_manifests_and_their_pods(
    control_plane: ControlPlane, namespace: str
) -> None:
    """Strictly, with the webhook for PyTorchJobs, and in a namespace where `restricted` is enforced."""
    documents = [
        document for chain in CHAINS for document in yaml.safe_load_all(golden_file(chain).read_text())
    ]
    for document in documents:
        document["metadata"]["namespace"] = namespace
    pods = [pod for document in documents for pod in pods_of(document)]
    account = {"metadata": {"name": "trainer", "namespace": namespace}}
    control_plane.apply(
        {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", **PRIORITY},
        {"apiVersion": "v1", "kind": "ServiceAccount", **account},
    )
    control_plane.restrict_pods(namespace)

    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": [*documents, *pods]})
    taken = control_plane.kubectl(
        "create", "--dry-run=server", "--validate=strict", "-f", "-", "-o", "name", text=text
    )
    assert "Warning" not in taken.stderr
    kinds = [name.split("/")[0] for name in taken.stdout.split()]
    assert kinds.count("pytorchjob.kubeflow.org") == 4
    assert (kinds.count("job.batch"), kinds.count("service")) == (1, 1)
    assert kinds.count("pod") == len(pods)


def pods_of(manifest: Object) -> list[Object]:
    """One pod of each template: the API server looks into a template only when it makes a pod of it."""
    name, namespace, spec = manifest["metadata"]["name"], manifest["metadata"]["namespace"], manifest["spec"]
    templates = {role: one["template"] for role, one in spec.get("pytorchReplicaSpecs", {}).items()}
    if manifest["kind"] == "Job":
        templates = {"job": spec["template"]}
    return [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {**template["metadata"], "name": f"{name}-{role.lower()}", "namespace": namespace},
            "spec": {**template["spec"], "restartPolicy": "Never"},
        }
        for role, template in templates.items()
    ]
