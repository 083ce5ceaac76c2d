"""A chain and the real Kueue: it waits for its quota and says why, gives way, goes on, and never runs past it."""

from __future__ import annotations

import shlex

import pytest

from tests.control_plane.kueue import FRAMEWORKS, Kueue
from tests.control_plane.pods import PodRunner
from tests.operator.chains import ClusterChain
from tests.operator.kueue.queued import (
    newest_checkpoint,
    queue_behind_others,
    queued_chain,
    wait_for_message,
    wait_until_taken_back,
)
from tests.operator.kueue.queues import Queues
from tests.operator.operator_process import OperatorProcess
from tests.processes import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("kueue")]

CHAIN_SECONDS = 300.0


@pytest.mark.parametrize("backend", ["PyTorchJob", "TrainJob"])
def test_a_stage_waits_for_its_quota_and_says_so_in_kueues_words(
    chain: ClusterChain, operator: OperatorProcess, pod_runner: PodRunner, queues: Queues, backend: str
) -> None:
    queue_behind_others(chain, operator, queues, backend)
    assert (chain.status()["phase"], chain.stage("tiny")["phase"]) == ("Queued", "Queued")
    assert chain.condition("Progressing")["reason"] == "Queued"
    assert not chain.pods()
    chain.wait_at_rest(5)

    queues.vacate("others")
    chain.wait("Complete", seconds=CHAIN_SECONDS)
    assert (chain.stage("tiny")["attempt"], chain.stage("tiny")["failures"]) == (1, 0)


@pytest.mark.parametrize("backend", ["PyTorchJob", "TrainJob", "Job"])
def test_a_stage_gives_way_to_a_higher_priority_and_goes_on_from_its_checkpoint(
    chain: ClusterChain, operator: OperatorProcess, pod_runner: PodRunner, queues: Queues, backend: str
) -> None:
    queues.quota("150m", preemption={"withinClusterQueue": "LowerPriority"})
    low, high = queues.priority("low", 10), queues.priority("high", 1000)
    queued_chain(chain, backend, labels={"kueue.x-k8s.io/priority-class": low})
    pod_runner.hold("*", "checkpoint-committed:1")
    operator.start()
    chain.apply()
    pod_runner.wait_for_held("*")
    step = newest_checkpoint(chain)
    queues.occupy("urgent", "100m", **{"kueue.x-k8s.io/priority-class": high})
    wait_until_taken_back(chain)
    pod_runner.release()
    wait_for_message(chain, "Preempted to accommodate a workload")
    assert chain.stage("tiny")["phase"] == "Queued"
    wait_until(lambda: queues.is_running("urgent"), "the urgent job runs", pause=0.3)
    wait_until(lambda: not chain.pods(), "its pod is gone", pause=0.2)

    pod_runner.hold("*", "checkpoint-committed:1")
    queues.vacate("urgent")
    pod_runner.wait_for_held("*")
    assert newest_checkpoint(chain) > step, "it goes on where it was"
    pod_runner.release()
    chain.wait("Complete", seconds=CHAIN_SECONDS)
    stage = chain.stage("tiny")
    assert (stage["attempt"], stage["failures"]) == (1, 0)


def test_without_the_integration_a_chain_holds_unless_it_need_not_be_queued(
    chain: ClusterChain, operator: OperatorProcess, kueue: Kueue, pod_runner: PodRunner, queues: Queues
) -> None:
    queues.quota("150m")
    kueue.kill()
    kueue.configure(frameworks=tuple(one for one in FRAMEWORKS if one != "kubeflow.org/pytorchjob"))
    kueue.start()
    queued_chain(chain)
    operator.start()
    chain.apply()
    wait_for_message(chain, "enable kubeflow.org/pytorchjob in integrations.frameworks")
    assert not chain.jobs(), "nothing runs past the quota"
    chain.wait_at_rest(4)

    absent = {"kueue.x-k8s.io/priority-class": "absent"}  # which nobody reads then
    chain.apply(job={**chain.document["spec"]["job"], "queuePolicy": "IfPresent", "labels": absent})
    chain.wait("Complete", seconds=CHAIN_SECONDS)


def test_without_its_queue_a_chain_holds_until_it_is_there(
    chain: ClusterChain, operator: OperatorProcess, pod_runner: PodRunner, queues: Queues
) -> None:
    queues.quota("150m", queue="other")
    queued_chain(chain, "TrainJob")
    operator.start()
    chain.apply()
    wait_for_message(chain, f"namespace {chain.namespace} has no LocalQueue research (it has other)")
    assert not chain.jobs("trainjobs")
    queues.local_queue("research", queues.name("other"))
    chain.wait("Complete", seconds=CHAIN_SECONDS)


def test_a_deactivated_workload_is_told_with_the_command_that_activates_it(
    chain: ClusterChain, operator: OperatorProcess, pod_runner: PodRunner, queues: Queues
) -> None:
    queues.quota("150m")
    pod_runner.hold("*", "checkpoint-committed:1")
    queued_chain(chain, "TrainJob")
    operator.start()
    chain.apply()
    pod_runner.wait_for_held("*")
    (job,) = chain.jobs("trainjobs")
    workload = queues.workload_of(job)
    queues.patch_workload(workload, {"active": False})
    wait_until_taken_back(chain)
    pod_runner.release()
    wait_for_message(chain, f"{workload['metadata']['name']} of {job['metadata']['name']} is deactivated")
    condition = chain.condition("Progressing")
    assert (condition["status"], condition["reason"]) == ("False", "WorkloadDeactivated")
    wait_until(lambda: not chain.pods(), "its pod is gone", pause=0.2)

    command = condition["message"].partition("when that is fixed: kubectl ")[2]
    assert command, condition
    chain.plane.kubectl(*shlex.split(command))
    chain.wait("Complete", seconds=CHAIN_SECONDS)
    assert (chain.stage("tiny")["attempt"], chain.stage("tiny")["failures"]) == (1, 0)
