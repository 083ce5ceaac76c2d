"""What a chain lives through on a cluster: each time the right end, and no job too many."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.control_plane.pods import PodRunner
from tests.operator.chains import ClusterChain
from tests.operator.operator_process import OperatorProcess
from tests.processes import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("control-plane")]

CHAIN_SECONDS = 400.0
KILLS = 20
RELEASES = (8, 16)  # after so many kills the next stage may go on to its end


def test_an_operator_that_is_killed_all_the_time_makes_one_job_a_stage(
    chain: ClusterChain, operator: OperatorProcess, pod_runner: PodRunner
) -> None:
    chance = random.Random(7)
    stages = ["tiny", "small"]
    for stage in stages:
        pod_runner.hold(f"*-{stage}-*", "step:8")
    chain.apply()
    for kill in range(KILLS):
        operator.start(wait=False)
        # An operator takes about two seconds to start: some die while they list, some in mid-pass.
        time.sleep(chance.uniform(1.0, 3.0))
        operator.kill()
        if kill in RELEASES:
            operator.start()  # it may take longer to make the stage's job than those before it had
            pod_runner.wait_for_held(f"*-{stages[0]}-*")
            operator.kill()
            pod_runner.release(f"*-{stages.pop(0)}-*")  # it ends while operators die
    operator.start()
    chain.wait("Complete", seconds=CHAIN_SECONDS)
    status = chain.status()
    assert [(stage["phase"], stage["attempt"]) for stage in status["stages"]] == [("Complete", 1)] * 2
    assert sorted(job["metadata"]["labels"]["modelchain.dev/stage"] for job in chain.jobs()) == [
        "small",
        "tiny",
    ]


def test_a_chain_is_suspended_goes_on_and_is_deleted(
    chain: ClusterChain, operator: OperatorProcess, pod_runner: PodRunner
) -> None:
    for stage in ("tiny", "small"):
        pod_runner.hold(f"*-{stage}-*", "step:16")
    operator.start()
    chain.apply()
    pod_runner.wait_for_held("*-tiny-*")
    chain.apply(suspend=True)
    wait_until(lambda: not chain.pods(), "no pod of it is left", pause=0.3)
    pod_runner.release("*-tiny-*")
    wait_until(lambda: chain.status()["phase"] == "Suspended", "it says so", pause=0.3)
    suspended = chain.stage("tiny")
    assert suspended["failures"] == 0
    chain.wait_at_rest(5)
    chain.apply(suspend=False)
    chain.wait_for_phase("tiny", "Complete")
    assert chain.stage("tiny")["attempt"] == 2
    assert chain.stage("tiny")["failures"] == 0
    pod_runner.wait_for_held("*-small-*")
    stages = chain.resolved().stages
    chain.plane.kubectl("delete", "modelchain", chain.name, "-n", chain.namespace)
    wait_until(
        lambda: not chain.plane.kubectl("get", "pods,pytorchjobs", "-n", chain.namespace).stdout.strip(),
        "its jobs and pods go with it",
        pause=0.5,
    )
    assert list(chain.store.list(f"{stages[0].folder}/")), "its artifacts stay"


def test_a_deleted_chain_that_a_finalizer_holds_trains_no_further(
    chain: ClusterChain, operator: OperatorProcess, pod_runner: PodRunner
) -> None:
    pod_runner.hold("*-tiny-*", "step:16")
    operator.start()
    chain.document["metadata"]["finalizers"] = ["example.com/hold"]
    chain.apply()
    pod_runner.wait_for_held("*-tiny-*")
    chain.plane.kubectl("delete", "modelchain", chain.name, "-n", chain.namespace, "--wait=false")
    wait_until(lambda: not chain.jobs(), "its job is ended", pause=0.3)
    assert chain.read()["metadata"]["deletionTimestamp"], "it is still there"
    patch = '{"metadata": {"finalizers": null}}'
    where = ("-n", chain.namespace)
    chain.plane.kubectl("patch", "modelchain", chain.name, *where, "--type=merge", "-p", patch)


def test_what_is_in_the_store_is_not_trained_again(
    chain: ClusterChain, operator: OperatorProcess, pod_runner: PodRunner, tmp_path: Path
) -> None:
    chain.document["spec"]["stages"] = chain.document["spec"]["stages"][:1]
    operator.start()
    chain.apply()
    chain.wait("Complete", seconds=CHAIN_SECONDS)
    again = ClusterChain(
        chain.plane, chain.server, chain.namespace, tmp_path / "again", name="again", prefix=chain.prefix
    )
    again.document["spec"]["stages"] = again.document["spec"]["stages"][:1]
    again.apply()
    again.wait("Complete")
    assert again.stage("tiny")["phase"] == "Cached"
    assert again.jobs() == []


def test_a_refused_chain_is_said_once_and_accepted_once_mended(
    chain: ClusterChain, operator: OperatorProcess
) -> None:
    operator.start()
    uri = chain.document["spec"]["store"]["uri"]
    chain.document["spec"]["store"]["uri"] = "runs/not-shared"
    chain.apply()
    wait_until(lambda: chain.condition("Accepted") != {}, "it is judged", pause=0.2)
    accepted = chain.condition("Accepted")
    assert accepted["status"] == "False"
    assert "spec.store.uri" in accepted["message"]
    assert chain.status()["phase"] == "Refused"
    chain.wait_at_rest(5)
    chain.document["spec"]["store"]["uri"] = uri
    chain.apply()
    chain.wait("Accepted")
    wait_until(lambda: len(chain.jobs()) == 1, "its first job is made", pause=0.2)


def test_a_quota_that_refuses_the_pods_is_said_and_what_to_do(
    chain: ClusterChain, operator: OperatorProcess
) -> None:
    quota = {"metadata": {"name": "none", "namespace": chain.namespace}, "spec": {"hard": {"pods": "0"}}}
    chain.plane.apply({"apiVersion": "v1", "kind": "ResourceQuota", **quota})
    wait_until(
        lambda: "pods" in chain.plane.kubectl("get", "quota", "none", "-n", chain.namespace).stdout,
        "the quota is in force",
        pause=0.3,
    )
    operator.start()
    chain.apply()
    wait_until(
        lambda: "exceeded quota" in chain.stage("tiny").get("message", ""),
        "it is said",
        pause=0.5,
    )
    assert "raise the ResourceQuota" in chain.stage("tiny")["message"]
    assert len(chain.jobs()) == 1


def test_a_second_chain_waits_where_one_may_train_and_goes_when_the_first_is_deleted(
    chain: ClusterChain, tmp_path: Path
) -> None:
    operator = OperatorProcess(
        chain.plane.kubeconfig, chain.namespace, tmp_path / "operator.log", "--max-running-chains=1"
    )
    second = ClusterChain(
        chain.plane, chain.server, chain.namespace, tmp_path / "second", name="second", prefix="second"
    )
    try:
        operator.start()
        chain.apply()
        wait_until(lambda: len(chain.jobs()) == 1, "its first job is made", pause=0.2)
        second.apply()
        wait_until(
            lambda: second.condition("Progressing").get("reason") == "NamespaceLimit",
            "the second says why it waits",
            pause=0.2,
        )
        second.wait_at_rest(3)
        assert second.jobs() == []
        chain.plane.kubectl("delete", "modelchain", chain.name, "-n", chain.namespace)
        wait_until(lambda: len(second.jobs()) == 1, "its turn comes", pause=0.2)
    finally:
        operator.kill()
