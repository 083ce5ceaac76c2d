"""Chains of TrainJobs, with the real Kubeflow Trainer and JobSet."""

from __future__ import annotations

import random

import pytest

from tests.control_plane.pods import PodRunner
from tests.control_plane.trainer import TrainerStack
from tests.operator.chains import ClusterChain
from tests.operator.operator_process import OperatorProcess
from tests.processes import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("trainer")]

CHAIN_SECONDS = 300.0
KILLS = 20
RELEASES = (8, 16)  # after so many kills the next stage may go on to its end
LINES = 28  # of a controller's log: JobSet's has one more when it has started


def use_trainjobs(chain: ClusterChain, **job: object) -> None:
    """For all stages."""
    chain.document["spec"]["job"] |= {"backend": "TrainJob", **job}


def only_stage(chain: ClusterChain) -> None:
    """Leave the chain its first stage."""
    chain.document["spec"]["stages"] = chain.document["spec"]["stages"][:1]


def test_a_chain_changes_to_trainjobs_in_its_middle_and_trains_nothing_again(
    chain: ClusterChain, operator: OperatorProcess, pod_runner: PodRunner, stack: TrainerStack
) -> None:
    pod_runner.hold("*small*", "step:1")
    operator.start()
    chain.apply()
    pod_runner.wait_for_held("*small*")
    tiny, small = chain.stage("tiny"), chain.stage("small")
    assert tiny["phase"] == "Complete"
    pod_runner.release()

    chain.apply(suspend=True)
    chain.wait_for_phase("small", "Suspended")
    use_trainjobs(chain, nodes=2)
    chain.apply(suspend=False)
    chain.wait("Complete", seconds=CHAIN_SECONDS)
    assert chain.stage("tiny") == tiny, "its first stage is what it was"
    after = chain.stage("small")
    assert after["digest"] == small["digest"]
    assert (after["attempt"], after["failures"]) == (2, 0)
    (job,) = chain.jobs("trainjobs")
    assert job["metadata"]["name"] == after["job"]
    (before,) = chain.jobs("pytorchjobs")
    assert before["metadata"]["labels"]["modelchain.dev/stage"] == "tiny"


def test_how_a_pod_ends_is_read_through_jobset_and_job(
    chain: ClusterChain, operator: OperatorProcess, pod_runner: PodRunner, stack: TrainerStack
) -> None:
    only_stage(chain)
    use_trainjobs(chain, nodes=2)
    pod_runner.hold("*", "checkpoint-committed:1")
    operator.start()
    chain.apply()
    pod_runner.wait_for_held("*-0-0-*")
    pod_runner.out_of_memory(first_pod(chain))
    wait_until(lambda: chain.stage("tiny").get("failures") == 1, "it has failed once", pause=0.3)
    assert chain.stage("tiny")["lastEnded"]["reason"] == "OOMKilled"

    pod_runner.wait_for_held("*-0-0-*")
    pod_runner.evict(first_pod(chain))
    wait_until(lambda: chain.stage("tiny").get("attempt") == 3, "the next begins", pause=0.3)
    ended = chain.stage("tiny")["lastEnded"]
    assert (ended["reason"], ended["counted"]) == ("Disrupted", False)
    pod_runner.wait_for_held("*-0-0-*")
    pod_runner.release()
    chain.wait("Complete", seconds=CHAIN_SECONDS)
    assert chain.stage("tiny")["failures"] == 1


def first_pod(chain: ClusterChain) -> str:
    """The name of the running pod of the first node."""
    (name,) = [
        pod["metadata"]["name"]
        for pod in chain.pods()
        if pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"] == "0"
        and pod["status"]["phase"] == "Running"
    ]
    return name


def test_a_runtime_that_is_not_there_is_named_and_a_job_is_made_once_it_is(
    chain: ClusterChain, operator: OperatorProcess, stack: TrainerStack
) -> None:
    only_stage(chain)
    use_trainjobs(chain, runtime="ours")
    operator.start()
    chain.apply()
    wait_until(
        lambda: chain.condition("Progressing").get("reason") == "BackendUnavailable",
        "it says what it lacks",
        pause=0.3,
    )
    said = chain.condition("Progressing")["message"]
    assert '"ours" not found' in said, "the Trainer's own words"
    assert "trainJob.installRuntime=true" in said, "and what to do"
    assert not chain.jobs("trainjobs")
    chain.apply(job={**chain.document["spec"]["job"], "runtime": "modelchain"})
    wait_until(lambda: len(chain.pods()) == 1, "its pod is made", pause=0.3)


def test_a_chain_outlives_controllers_that_are_killed(
    chain: ClusterChain, operator: OperatorProcess, pod_runner: PodRunner, stack: TrainerStack
) -> None:
    use_trainjobs(chain)
    pod_runner.hold("*tiny*", "checkpoint-committed:1")
    operator.start()
    chain.apply()
    pod_runner.wait_for_held("*tiny*")
    stack.kill()
    pod_runner.release()
    chain.wait_for_phase("tiny", "Complete")
    wait_until(
        lambda: "failed calling webhook" in chain.condition("Progressing").get("message", ""),
        "it says that the Trainer is away",
        pause=0.3,
    )
    stack.restore()
    chain.wait("Complete", seconds=CHAIN_SECONDS)
    for stage in ("tiny", "small"):
        assert (chain.stage(stage)["attempt"], chain.stage(stage)["failures"]) == (1, 0)


@pytest.mark.long
def test_controllers_that_die_twenty_times_cost_no_attempt_and_make_no_job_too_many(
    chain: ClusterChain, operator: OperatorProcess, pod_runner: PodRunner, stack: TrainerStack
) -> None:
    chance = random.Random(20)
    use_trainjobs(chain, nodes=2)
    stages = ["tiny", "small"]
    for stage in stages:
        pod_runner.hold(f"*-{stage}-*", "checkpoint-committed:1")
    operator.start()
    chain.apply()
    for kill in range(KILLS):
        controller = chance.choice((stack.trainer, stack.jobset))
        controller.kill_at(chance.randint(1, LINES))
        controller.start(wait=False)
        if kill in RELEASES:
            pod_runner.wait_for_held(f"*-{stages[0]}-*", seconds=CHAIN_SECONDS)
            pod_runner.release(f"*-{stages.pop(0)}-*")  # it ends while they die
    chain.wait("Complete", seconds=CHAIN_SECONDS)
    for stage in ("tiny", "small"):
        assert (chain.stage(stage)["attempt"], chain.stage(stage)["failures"]) == (1, 0)
    assert len(chain.jobs("trainjobs")) == 2
    assert len(chain.pods()) == 4, "no pod was made twice"
