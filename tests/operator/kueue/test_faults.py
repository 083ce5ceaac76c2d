"""A Kueue that lacks something, or is not there: the chain says so, loses nothing and makes no job too many."""

from __future__ import annotations

import random

import pytest

from benchmarks.quota import chain as chain_of_one_stage
from benchmarks.quota import chains
from tests.control_plane.kueue import Kueue
from tests.control_plane.pods import PodRunner
from tests.operator.chains import RESOURCES, ClusterChain
from tests.operator.kueue.queued import queue_behind_others, queued_chain, wait_for_message
from tests.operator.kueue.queues import Queues
from tests.operator.operator_process import OperatorProcess
from tests.processes import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("kueue")]

LONG = pytest.mark.long
KILLS = 20
RELEASES = {0: 1, 7: 3, 14: 5}  # after so many kills it lives until so many chains are complete
CHAINS = 6
LINES = 250  # of Kueue's log: 130 of its start, and some of every queue, job and Workload that it finds
QUEUE, PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"


def test_what_is_missing_is_named_in_turn_and_nothing_is_made_before_it_is_there(
    chain: ClusterChain, operator: OperatorProcess, queues: Queues
) -> None:
    queues.quota("150m", queue="elsewhere", namespace="default")
    queues.local_queue("research", queues.name("elsewhere"))
    queued_chain(chain, "TrainJob", labels={PRIORITY: "absent"})
    chain.document["spec"]["job"]["queueName"] = "elsewhere"
    operator.start()
    chain.apply()
    wait_for_message(chain, f"namespace {chain.namespace} has no LocalQueue elsewhere (it has research)")
    wait_for_message(chain, "a queue serves its own namespace only")
    assert not chain.jobs("trainjobs")

    job = chain.document["spec"]["job"]
    chain.apply(job={**job, "queueName": "research"})
    wait_for_message(chain, "has no WorkloadPriorityClass absent")
    wait_for_message(chain, f"create it, or correct {PRIORITY} in spec.job.labels")
    assert chain.condition("Progressing")["reason"] == "BackendUnavailable"
    assert not chain.jobs("trainjobs")

    there = {PRIORITY: queues.priority("there", 10)}
    chain.apply(job={**job, "queueName": "research", "labels": there})
    wait_until(lambda: len(chain.pods()) == 1, "its pod is made", pause=0.3)
    assert len(chain.jobs("trainjobs")) == 1


@pytest.mark.parametrize("policy", ["Required", pytest.param("IfPresent", marks=LONG)])
def test_a_priority_class_of_the_pods_that_does_not_exist_is_named_before_a_job_is_made(
    chain: ClusterChain, operator: OperatorProcess, queues: Queues, policy: str
) -> None:
    queues.quota("150m")
    queued_chain(chain, "Job", priorityClassName=queues.name("high"), queuePolicy=policy)
    operator.start()
    chain.apply()
    wait_for_message(chain, f"the cluster has no PriorityClass {queues.name('high')}")
    wait_for_message(chain, "create it, or correct spec.job.priorityClassName")
    assert chain.condition("Progressing")["reason"] == "BackendUnavailable"
    assert not chain.jobs("jobs")

    queues.pod_priority("high", 1000)
    wait_until(lambda: len(chain.pods()) == 1, "its pod is made", pause=0.3)
    assert len(chain.jobs("jobs")) == 1


def test_a_priority_class_that_kueue_does_not_read_holds_up_no_job(
    chain: ClusterChain, operator: OperatorProcess, queues: Queues
) -> None:
    queues.quota("150m")
    labels, policy = {PRIORITY: queues.priority("there", 10)}, {"priorityClass": "absent"}
    queued_chain(chain, "PyTorchJob", labels=labels, schedulingPolicy=policy)
    operator.start()
    chain.apply()
    wait_until(lambda: len(chain.pods()) == 1, "its pod is made", pause=0.3)
    (job,) = chain.jobs()
    assert queues.workload_of(job)["spec"]["priority"] == 10


def test_a_queue_of_another_namespace_is_none_for_a_chain_that_need_not_be_queued(
    chain: ClusterChain, operator: OperatorProcess, queues: Queues
) -> None:
    queues.quota("150m", queue="afar", namespace="default")
    queued_chain(chain, "Job", queueName="afar", queuePolicy="IfPresent")
    operator.start()
    chain.apply()
    wait_until(lambda: len(chain.pods()) == 1, "its pod is made", pause=0.3)
    (job,) = chain.jobs("jobs")
    assert QUEUE not in job["metadata"]["labels"]
    assert not queues.workload_of(job)


def test_a_job_whose_queue_is_deleted_while_it_waits_says_so_and_goes_on_when_it_is_back(
    chain: ClusterChain, operator: OperatorProcess, pod_runner: PodRunner, queues: Queues
) -> None:
    queue_behind_others(chain, operator, queues, "TrainJob")
    chain.plane.kubectl("delete", "localqueue", "research", "-n", chain.namespace)
    wait_for_message(chain, "LocalQueue research")
    wait_until(
        lambda: chain.condition("Progressing")["reason"] == "Inadmissible",
        "it needs somebody",
        pause=0.3,
    )
    queues.vacate("others")
    queues.local_queue("research", queues.name("research"))
    chain.wait("Complete", seconds=300)
    assert (chain.stage("tiny")["attempt"], chain.stage("tiny")["failures"]) == (1, 0)


@pytest.mark.parametrize(
    "backend", ["TrainJob", pytest.param("PyTorchJob", marks=LONG), pytest.param("Job", marks=LONG)]
)
def test_a_job_that_waits_outlives_a_kueue_that_stops_and_starts(
    chain: ClusterChain,
    operator: OperatorProcess,
    kueue: Kueue,
    pod_runner: PodRunner,
    queues: Queues,
    backend: str,
) -> None:
    queue_behind_others(chain, operator, queues, backend)
    kueue.kill()
    queues.vacate("others")
    wait_until(lambda: queues.has_vacated("others"), "others use nothing any more", pause=0.3)
    chain.wait_at_rest(3)
    assert (chain.stage("tiny")["phase"], chain.pods()) == ("Queued", [])
    kueue.start()
    chain.wait("Complete", seconds=300)
    assert (chain.stage("tiny")["attempt"], chain.stage("tiny")["failures"]) == (1, 0)


def test_a_chain_outlives_a_kueue_that_stops_and_starts(
    chain: ClusterChain, operator: OperatorProcess, kueue: Kueue, pod_runner: PodRunner, queues: Queues
) -> None:
    queues.quota("150m")
    queued_chain(chain, stages=2)
    pod_runner.hold("*tiny*", "checkpoint-committed:1")
    operator.start()
    chain.apply()
    pod_runner.wait_for_held("*tiny*")
    kueue.kill()
    pod_runner.release()
    chain.wait_for_phase("tiny", "Complete")
    wait_for_message(chain, "failed calling webhook")
    wait_for_message(chain, "start the controller behind that Service")
    assert [job["metadata"]["labels"]["modelchain.dev/stage"] for job in chain.jobs()] == ["tiny"]

    kueue.start()
    chain.wait("Complete", seconds=300)
    assert len(chain.jobs()) == 2
    for stage in ("tiny", "small"):
        assert (chain.stage(stage)["attempt"], chain.stage(stage)["failures"]) == (1, 0)


@LONG
def test_a_kueue_that_dies_twenty_times_loses_no_chain_and_keeps_the_quota_with_one_job_a_stage(
    chain: ClusterChain, operator: OperatorProcess, kueue: Kueue, pod_runner: PodRunner, queues: Queues
) -> None:
    chance = random.Random(20)
    queues.quota("200m")
    names = [f"research-{number}" for number in range(CHAINS)]
    operator.start()
    chain.plane.apply(*(chain_of_one_stage(chain, name, "TrainJob", seconds=1) for name in names))
    for kill in range(KILLS):
        if kill in RELEASES:
            wait_for_complete(chain, RELEASES[kill])
            kueue.kill()
        else:
            kueue.kill_at(chance.randint(1, LINES))
        kueue.start(wait=False)
    wait_for_complete(chain, CHAINS)
    stages = [one["status"]["stages"][0] for one in chains(chain.plane, chain.namespace)]
    assert [(stage["attempt"], stage["failures"]) for stage in stages] == [(1, 0)] * CHAINS
    jobs = chain.plane.read(RESOURCES["trainjobs"], chain.namespace)["items"]
    assert (len(jobs), len(pod_runner.pods())) == (CHAINS, CHAINS)
    assert 1 <= pod_runner.most_at_once <= 2, "the quota is two"


def wait_for_complete(chain: ClusterChain, count: int) -> None:
    """Until so many chains of its namespace are complete."""

    def complete() -> int:
        found = chains(chain.plane, chain.namespace)
        return sum(one.get("status", {}).get("phase") == "Complete" for one in found)

    wait_until(lambda: complete() >= count, f"{count} chains are complete", pause=0.3)
