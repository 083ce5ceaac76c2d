"""A Kueue that lacks something, or is not there: the chain says so, loses nothing and makes no job too many."""

from __future__ import annotations

import pytest

from tests.control_plane.kueue import Kueue
from tests.control_plane.pods import PodRunner
from tests.operator.chains import ClusterChain
from tests.operator.kueue.queued import queued_chain, wait_for_message
from tests.operator.kueue.queues import Queues
from tests.operator.operator_process import OperatorProcess
from tests.processes import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("kueue")]

LONG = pytest.mark.long
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
    queues.quota("150m")
    queues.occupy("others", "100m")
    wait_until(lambda: queues.is_running("others"), "others have the quota", pause=0.3)
    queued_chain(chain, "TrainJob")
    operator.start()
    chain.apply()
    wait_for_message(chain, "insufficient unused quota")
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
    queues.quota("150m")
    queues.occupy("others", "100m")
    wait_until(lambda: queues.is_running("others"), "others have the quota", pause=0.3)
    queued_chain(chain, backend)
    operator.start()
    chain.apply()
    wait_for_message(chain, "insufficient unused quota")
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
