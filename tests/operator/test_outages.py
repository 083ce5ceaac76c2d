"""What a chain depends on fails, or there is too much of it: each time one job a stage, and the right end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from modelchain.artifacts import MANIFEST
from tests.control_plane.plane import ControlPlane
from tests.control_plane.pods import PodRunner
from tests.operator.chains import ClusterChain
from tests.operator.operator_process import OperatorProcess
from tests.operator.unreliable_api import UnreliableApi
from tests.processes import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("control-plane")]

CHAIN_SECONDS = 300.0


@pytest.fixture
def second_operator(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[OperatorProcess]:
    """Another operator for the same namespace, as somebody installs by accident."""
    process = OperatorProcess(control_plane.kubeconfig, namespace, tmp_path / "second-operator.log")
    process.start()
    yield process
    process.kill()


@pytest.fixture
def unreliable_api(control_plane: ControlPlane, tmp_path: Path) -> Iterator[UnreliableApi]:
    """An API server that answers well until it is told otherwise."""
    server = UnreliableApi(control_plane, tmp_path)
    server.start()
    yield server
    server.close()


def assert_one_job_a_stage(chain: ClusterChain) -> None:
    """The chain is complete, at the first attempt of each stage."""
    stages = chain.status()["stages"]
    assert [(stage["phase"], stage["attempt"], stage["failures"]) for stage in stages] == [
        ("Complete", 1, 0)
    ] * 2
    assert sorted(job["metadata"]["labels"]["modelchain.dev/stage"] for job in chain.jobs()) == [
        "small",
        "tiny",
    ]


def test_two_operators_see_a_chain_through_while_all_else_is_killed(
    chain: ClusterChain, operator: OperatorProcess, second_operator: OperatorProcess, pod_runner: PodRunner
) -> None:
    for stage in ("tiny", "small"):
        pod_runner.hold(f"*-{stage}-*", "step:8")
    operator.start()
    chain.apply()
    pod_runner.wait_for_held("*-tiny-*")

    chain.plane.training_operator.kill()
    pod_runner.release("*-tiny-*")
    chain.wait_for_phase("tiny", "Complete")
    wait_until(
        lambda: "failed calling webhook" in chain.condition("Progressing").get("message", ""),
        "the chain says why it waits",
        pause=0.2,
    )
    chain.plane.start_training_operator()
    pod_runner.wait_for_held("*-small-*")

    chain.plane.apiserver.kill()
    wait_until(lambda: "connect" in operator.said().lower(), "the operator misses it", pause=0.2)
    chain.plane.start_apiserver()

    chain.server.kill()
    try:
        for one in (operator, second_operator):
            wait_until(lambda one=one: _store_errors(one) > 0, "the outage is noticed", pause=0.3)
        pod_runner.release("*-small-*")  # it comes to its first checkpoint, and waits
    finally:
        chain.server.start()

    chain.wait("Complete", seconds=CHAIN_SECONDS)
    assert_one_job_a_stage(chain)
    assert operator.running
    assert second_operator.running

    operator.terminate()
    chain.store.delete([f"{chain.resolved().stages[0].folder}/{MANIFEST}"])
    operator.start()  # it looks at all that it has not seen yet
    chain.wait("ArtifactsMissing")
    chain.wait_at_rest(3)
    assert chain.condition("ArtifactsMissing")["status"] == "True", "the other one does not deny it"


def test_a_failing_api_server_delays_a_chain_and_nothing_else(
    chain: ClusterChain,
    control_plane: ControlPlane,
    unreliable_api: UnreliableApi,
    pod_runner: PodRunner,
    tmp_path: Path,
) -> None:
    operator = OperatorProcess(unreliable_api.kubeconfig, chain.namespace, tmp_path / "operator.log")
    operator.start()
    try:
        unreliable_api.begin()
        pod_runner.hold("*-tiny-*", "step:8")
        chain.apply()
        pod_runner.wait_for_held("*-tiny-*")
        have_all_faults_happen(chain, unreliable_api)
        pod_runner.release()
        chain.wait("Complete", seconds=CHAIN_SECONDS)
        assert_one_job_a_stage(chain)
        assert operator.running
    finally:
        operator.kill()


def have_all_faults_happen(chain: ClusterChain, api: UnreliableApi) -> None:
    """Edits of what disturbs no job: the operator has to write each time."""
    retry = chain.document["spec"]["retry"]
    for limit in range(4, 100):
        if api.faults.keys() >= {"conflict", "throttled", "broken", "lost", "expired"}:
            return
        chain.apply(retry={**retry, "limit": limit})
        wait_until(
            lambda: chain.status()["observedGeneration"] == chain.read()["metadata"]["generation"],
            f"the edit is seen: {api.faults}",
            pause=0.3,
        )
    raise AssertionError(api.faults)


def _store_errors(operator: OperatorProcess) -> float:
    lines = operator.metrics().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("modelchain_store_errors_total"))
