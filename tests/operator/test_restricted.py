"""In a namespace that enforces the `restricted` Pod Security level: both kinds of job, one of them to its end."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from modelchain.commit import verify_stage
from tests.control_plane.pods import PodRunner
from tests.operator.chains import ClusterChain
from tests.operator.jobs.golden import FOLDER
from tests.operator.operator_process import OperatorProcess
from tests.processes import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("control-plane")]

Object = dict[str, Any]
MISSING = "settings"
VOLUME: Object = {"name": "settings", "configMap": {"name": MISSING}}
MOUNT: Object = {"name": "pytorch", "volumeMounts": [{"name": "settings", "mountPath": "/etc/settings"}]}


def test_an_indexed_job_trains_and_a_pytorchjob_is_let_in(
    chain: ClusterChain, operator: OperatorProcess, pod_runner: PodRunner
) -> None:
    chain.plane.restrict_pods(chain.namespace)
    spec = chain.document["spec"]
    spec["stages"] = spec["stages"][:1]
    spec["training"]["epochs"] = 2
    spec["job"] |= {
        "backend": "Job",
        "nodes": 2,
        "podTemplate": {"spec": {"volumes": [VOLUME], "containers": [MOUNT]}},
    }
    operator.start()
    chain.apply()
    wait_until(lambda: len(nodes(chain)) == 2, "a node has both pods", pause=0.2)
    check_meeting_point(chain)
    check_pytorchjob(chain, pod_runner)

    wait_until(
        lambda: f'configmap "{MISSING}" not found' in chain.stage("tiny").get("message", ""),
        f"it is said why the pods do not start: {chain.stage('tiny')}",
        pause=0.3,
    )
    assert "create it in the chain's namespace" in chain.stage("tiny")["message"]
    chain.wait_at_rest(1)
    chain.plane.kubectl("create", "configmap", MISSING, "-n", chain.namespace)

    chain.wait("Complete", seconds=300)
    assert (chain.stage("tiny")["attempt"], chain.stage("tiny")["failures"]) == (1, 0)
    complete = ("wait", "--for=condition=Complete", "jobs", "--all", "-n", chain.namespace, "--timeout=240s")
    chain.plane.kubectl(*complete, timeout=270)
    (job,) = chain.jobs("jobs")
    assert job["status"]["completedIndexes"] == "0,1"
    (stage,) = chain.resolved().stages
    assert verify_stage(chain.store, stage.folder, stage.digest) is not None


def nodes(chain: ClusterChain) -> list[str]:
    """Where the chain's pods are."""
    return [pod["spec"]["nodeName"] for pod in chain.pods() if pod["spec"].get("nodeName")]


def check_meeting_point(chain: ClusterChain) -> None:
    """The job controller gives the first pod the name at which all look for it, and the Service answers to it."""
    first, second = sorted(chain.pods(), key=lambda pod: pod["spec"]["hostname"])
    told = [
        {one["name"]: one.get("value") for one in pod["spec"]["containers"][0]["env"]}
        for pod in (first, second)
    ]
    name = f"{first['spec']['hostname']}.{first['spec']['subdomain']}"
    assert {env["PET_MASTER_ADDR"] for env in told} == {name}
    assert len({env["PET_MASTER_PORT"] for env in told}) == 1
    index = "batch.kubernetes.io/job-completion-index"
    assert [pod["metadata"]["annotations"][index] for pod in (first, second)] == ["0", "1"]
    service = chain.plane.kubectl(
        "get", "service", first["spec"]["subdomain"], "-n", chain.namespace, "-o", "yaml"
    )
    selector = yaml.safe_load(service.stdout)["spec"]["selector"]
    assert all(selector.items() <= pod["metadata"]["labels"].items() for pod in (first, second))


def check_pytorchjob(chain: ClusterChain, pods: PodRunner) -> None:
    """A master and a worker, with the init container that the training operator adds: admitted, and not run."""
    (job,) = yaml.safe_load_all((FOLDER / "service-account.yaml").read_text())
    name, metadata = job["metadata"]["name"], {"namespace": chain.namespace}
    job["metadata"] = {"name": name, **metadata}
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "trainer", **metadata}}
    pods.unschedulable("no node is for this job")
    chain.plane.apply(account, job)

    def made() -> dict[str, Object]:
        return {
            pod["metadata"]["name"]: pod for pod in pods.pods() if pod["metadata"]["name"].startswith(name)
        }

    wait_until(lambda: len(made()) == 2, f"master and worker of {name} are admitted", pause=0.2)
    worker = made()[f"{name}-worker-0"]
    assert [one["name"] for one in worker["spec"]["initContainers"]] == ["init-pytorch"]
    chain.plane.kubectl("delete", "pytorchjob", name, "-n", chain.namespace)
    selector = f"training.kubeflow.org/job-name={name}"  # garbage collection takes its time
    chain.plane.kubectl("delete", "pods", "-l", selector, "-n", chain.namespace)
    pods.unschedulable(None)
