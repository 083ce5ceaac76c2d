"""What keeps a TrainJob from being made, or its pods: told on the chain, with the remedy."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.control_plane.plane import ControlPlane
from tests.control_plane.trainer import RUNTIME, TrainerStack, trainjob_definition
from tests.operator.chains import ClusterChain
from tests.operator.operator_process import OperatorProcess
from tests.processes import wait_until
from tests.seaweedfs import SeaweedFS

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("trainer")]

Object = dict[str, Any]


def wait_for_words(chain: ClusterChain, *texts: str) -> None:
    """Until the chain says all of them."""
    wait_until(
        lambda: all(text in chain.condition("Progressing").get("message", "") for text in texts),
        f"the chain says {texts}: {chain.condition('Progressing')}",
        pause=0.5,
    )


def use_trainjob(chain: ClusterChain, **job: object) -> None:
    chain.document["spec"]["stages"] = chain.document["spec"]["stages"][:1]
    chain.document["spec"]["job"] |= {"backend": "TrainJob", **job}


def test_what_refuses_the_pods_of_the_inner_job_is_told_with_the_remedy(
    chain: ClusterChain, operator: OperatorProcess, stack: TrainerStack
) -> None:
    chain.plane.restrict_pods(chain.namespace)
    privileged = {"name": "pytorch", "securityContext": {"allowPrivilegeEscalation": True}}
    use_trainjob(chain, podTemplate={"spec": {"containers": [privileged]}})
    operator.start()
    chain.apply()
    wait_for_words(chain, 'violates PodSecurity "restricted', "change spec.job.podTemplate")
    assert (len(chain.jobs("trainjobs")), chain.pods()) == (1, [])

    chain.apply(suspend=True)
    chain.wait_for_phase("tiny", "Suspended")
    quota = {"metadata": {"name": "none", "namespace": chain.namespace}, "spec": {"hard": {"pods": "0"}}}
    chain.plane.apply({"apiVersion": "v1", "kind": "ResourceQuota", **quota})
    wait_until(
        lambda: "pods" in chain.plane.kubectl("get", "quota", "none", "-n", chain.namespace).stdout,
        "the quota is in force",
        pause=0.3,
    )
    use_trainjob(chain, podTemplate={})
    chain.apply(suspend=False)
    wait_for_words(chain, "exceeded quota", "raise the ResourceQuota")
    assert chain.stage("tiny")["failures"] == 0


@pytest.fixture
def unsuitable_runtime(stack: TrainerStack, namespace: str) -> Iterator[str]:
    """One whose replicated job has another name."""
    runtime = yaml.safe_load(RUNTIME.read_text())
    (node,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    node["name"] = "main"
    runtime["metadata"] = {"name": f"{namespace}-ours"}
    stack.plane.apply(runtime)
    yield runtime["metadata"]["name"]
    stack.plane.kubectl("delete", "clustertrainingruntime", runtime["metadata"]["name"], "--wait=false")


def test_a_runtime_that_does_not_suit_is_told_with_the_remedy(
    chain: ClusterChain, operator: OperatorProcess, stack: TrainerStack, unsuitable_runtime: str
) -> None:
    use_trainjob(chain, runtime=unsuitable_runtime)
    operator.start()
    chain.apply()
    wait_for_words(
        chain,
        "image: Required value",
        "or the runtime, which needs a replicated job node with a container node",
    )
    assert chain.condition("Progressing")["reason"] == "FailedCreate"
    use_trainjob(chain, runtime="modelchain")
    chain.apply()
    wait_until(lambda: len(chain.pods()) == 1, "its pod is made", pause=0.5)
    assert chain.stage("tiny")["failures"] == 0


@pytest.mark.parametrize("controller", ["trainer", "jobset"])
def test_a_controller_whose_webhook_does_not_answer_is_named_and_the_chain_goes_on_when_it_does(
    chain: ClusterChain, operator: OperatorProcess, stack: TrainerStack, controller: str
) -> None:
    use_trainjob(chain)
    operator.start()
    {"trainer": stack.trainer, "jobset": stack.jobset}[controller].kill()
    chain.apply()
    wait_for_words(chain, "failed calling webhook", "start the controller behind that Service")
    assert not chain.pods()
    stack.restore()
    wait_until(lambda: len(chain.pods()) == 1, "its pod is made", pause=0.5)
    assert len(chain.jobs("trainjobs")) == 1
    assert (chain.stage("tiny")["attempt"], chain.stage("tiny")["failures"]) == (1, 0)


def test_without_kueue_a_chain_for_a_queue_holds_unless_it_need_not_be_queued(
    chain: ClusterChain, operator: OperatorProcess, stack: TrainerStack
) -> None:
    use_trainjob(chain, queueName="research")
    del chain.document["spec"]["job"]["terminationGracePeriodSeconds"]
    operator.start()
    chain.apply()
    wait_for_words(chain, "Kueue is not installed", "install Kueue", "remove spec.job.queueName")
    assert chain.condition("Progressing")["reason"] == "BackendUnavailable"
    assert not chain.jobs("trainjobs"), "nothing runs past a quota"
    chain.apply(job={**chain.document["spec"]["job"], "queuePolicy": "IfPresent"})
    wait_until(lambda: len(chain.pods()) == 1, "its pod is made", pause=0.5)


def test_where_only_trainjobs_are_served_the_chain_says_so_and_takes_them(
    new_plane: Callable[..., ControlPlane], seaweedfs: SeaweedFS, tmp_path: Path
) -> None:
    plane = new_plane(kubeflow=False)
    plane.kubectl("create", "namespace", "new")
    stack = TrainerStack(plane)
    operator = OperatorProcess(plane.kubeconfig, "new", tmp_path / "operator.log")
    try:
        chain = ClusterChain(plane, seaweedfs, "new", tmp_path)
        default = copy.deepcopy(chain.document)
        use_trainjob(chain)
        operator.start()
        chain.apply()
        wait_for_words(chain, "has no TrainJob", "install the Kubeflow Trainer, 2.2 or newer")
        chain.apply(suspend=True)
        stack.install()
        chain.apply(default)
        wait_for_words(chain, "has no PyTorchJob", "set spec.job.backend: TrainJob")
        assert chain.condition("Progressing")["reason"] == "BackendUnavailable"
        use_trainjob(chain)
        chain.apply(job=chain.document["spec"]["job"])
        wait_until(lambda: len(chain.jobs("trainjobs")) == 1, "its TrainJob is made", pause=0.5)
    finally:
        operator.kill()
        stack.kill()


@pytest.fixture
def upgrade(control_plane: ControlPlane, stack: TrainerStack) -> Iterator[Callable[[], None]]:
    """TrainJobs as Trainer 2.1 defines them, as far as our jobs are concerned, without `runtimePatches`; until this is
    called, or the test ends.
    """
    present = trainjob_definition()
    old = copy.deepcopy(present)
    for version in old["spec"]["versions"]:
        del version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["runtimePatches"]
    control_plane.apply(old)
    probe = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": "probe", "namespace": "default"},
        "spec": {"runtimeRef": {"name": "modelchain"}, "runtimePatches": []},
    }

    def knows_patches() -> bool:
        ask = ("create", "--dry-run=server", "-f", "-")
        return "unknown field" not in control_plane.kubectl(*ask, text=json.dumps(probe), check=False).stderr

    def upgrade() -> None:
        control_plane.apply(present)
        wait_until(knows_patches, "the API server has the present definition", pause=0.3)

    wait_until(lambda: not knows_patches(), "the API server has the old definition", pause=0.3)
    yield upgrade
    upgrade()


def test_a_definition_that_is_too_old_is_told_before_a_job_runs_without_what_it_drops(
    chain: ClusterChain, operator: OperatorProcess, upgrade: Callable[[], None]
) -> None:
    use_trainjob(chain)
    operator.start()
    chain.apply()
    wait_for_words(chain, 'unknown field "spec.runtimePatches"', "install the Kubeflow Trainer, 2.2 or newer")
    assert chain.condition("Progressing")["reason"] == "BackendUnavailable"
    assert not chain.jobs("trainjobs")
    upgrade()
    wait_until(lambda: len(chain.pods()) == 1, "its pod is made", pause=0.5)
