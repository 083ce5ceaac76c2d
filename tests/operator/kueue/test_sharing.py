"""Chains beside others who use the same quota: borrowed, shared fairly, taken back where pods do not start."""

from __future__ import annotations

import shlex

import pytest

from tests.control_plane.kueue import Kueue
from tests.control_plane.pods import PodRunner
from tests.operator.chains import ClusterChain
from tests.operator.kueue.queued import (
    newest_checkpoint,
    queued_chain,
    wait_for_message,
    wait_until_taken_back,
)
from tests.operator.kueue.queues import Queues
from tests.operator.operator_process import OperatorProcess
from tests.processes import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("kueue")]

CHAIN_SECONDS = 300.0
STRATEGIES = ["LessThanOrEqualToFinalShare", "LessThanInitialShare"]


def test_a_borrowed_quota_is_given_back_and_the_stage_goes_on_from_its_checkpoint(
    chain: ClusterChain, operator: OperatorProcess, pod_runner: PodRunner, queues: Queues
) -> None:
    queues.quota("0", cohortName=queues.name("cohort"))
    queues.quota(
        "100m",
        queue="owners",
        cohortName=queues.name("cohort"),
        preemption={"reclaimWithinCohort": "Any"},
    )
    queued_chain(chain, "TrainJob")
    pod_runner.hold("*", "checkpoint-committed:1")
    operator.start()
    chain.apply()
    pod_runner.wait_for_held("*")
    step = newest_checkpoint(chain)
    queues.occupy("theirs", "100m", queue="owners")
    wait_until_taken_back(chain)
    pod_runner.release()
    wait_for_message(chain, "reclamation within the cohort")
    wait_until(lambda: queues.is_running("theirs"), "the owners have it", pause=0.3)

    pod_runner.hold("*", "checkpoint-committed:1")
    queues.vacate("theirs")
    pod_runner.wait_for_held("*")
    assert newest_checkpoint(chain) > step, "it goes on where it was"
    pod_runner.release()
    chain.wait("Complete", seconds=CHAIN_SECONDS)
    assert (chain.stage("tiny")["attempt"], chain.stage("tiny")["failures"]) == (1, 0)


def test_two_queues_share_a_cohort_fairly(
    chain: ClusterChain, operator: OperatorProcess, kueue: Kueue, pod_runner: PodRunner, queues: Queues
) -> None:
    kueue.kill()
    kueue.configure(fairSharing={"preemptionStrategies": STRATEGIES})
    kueue.start()
    preemption = {"reclaimWithinCohort": "Any"}
    for queue in ("research", "others"):
        queues.quota("100m", queue=queue, cohortName=queues.name("cohort"), preemption=preemption)
    for name in ("one", "two"):
        queues.occupy(name, "100m", queue="others")
    running = lambda: [name for name in ("one", "two") if queues.is_running(name)]  # noqa: E731
    wait_until(lambda: len(running()) == 2, "the others have all", pause=0.3)
    queued_chain(chain, "TrainJob")
    pod_runner.hold("*tiny*", "checkpoint-committed:1")
    operator.start()
    chain.apply()
    pod_runner.wait_for_held("*tiny*")
    wait_until(lambda: len(running()) == 1, "each has its share", pause=0.3)
    pod_runner.release()
    chain.wait("Complete", seconds=CHAIN_SECONDS)


def test_pods_that_do_not_start_are_taken_back_queued_again_and_given_up(
    chain: ClusterChain, operator: OperatorProcess, kueue: Kueue, pod_runner: PodRunner, queues: Queues
) -> None:
    kueue.kill()
    requeuing = {"backoffLimitCount": 1, "backoffBaseSeconds": 1}
    kueue.configure(
        waitForPodsReady={"timeout": "2s", "recoveryTimeout": "2s", "requeuingStrategy": requeuing}
    )
    kueue.start()
    queues.quota("150m")
    pod_runner.unschedulable("0/1 nodes are available")
    queued_chain(chain, "TrainJob")
    operator.start()
    chain.apply()
    wait_for_message(chain, "delete workloads.kueue.x-k8s.io")
    assert chain.stage("tiny")["phase"] == "Queued"
    condition = chain.condition("Progressing")
    assert condition["reason"] == "WorkloadDeactivated"
    assert "exceeding the maximum number of re-queuing retries" in condition["message"]

    kueue.kill()
    kueue.configure()  # a busy machine takes longer to start a pod
    kueue.start()
    pod_runner.unschedulable(None)
    command = condition["message"].partition("when that is fixed: kubectl ")[2]
    chain.plane.kubectl(*shlex.split(command))
    chain.wait("Complete", seconds=CHAIN_SECONDS)
    assert (chain.stage("tiny")["attempt"], chain.stage("tiny")["failures"]) == (1, 0)


@pytest.mark.parametrize("backend", ["PyTorchJob", "TrainJob", "Job"])
def test_a_topology_that_is_asked_for_reaches_kueue(
    chain: ClusterChain, operator: OperatorProcess, queues: Queues, backend: str
) -> None:
    queues.quota("150m")
    rack = {"kueue.x-k8s.io/podset-required-topology": "cloud.provider.com/topology-rack"}
    queued_chain(chain, backend, podTemplate={"metadata": {"annotations": rack}})
    operator.start()
    chain.apply()
    wait_for_message(chain, f'Flavor "{queues.name("flavor")}" does not support TopologyAwareScheduling')
    assert not chain.pods()
