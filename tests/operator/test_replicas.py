"""Several operators elect one that acts: it is replaced when it dies, and what it began is done once."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from modelchain.errors import ExitCode
from tests.control_plane.plane import ControlPlane
from tests.control_plane.pods import PodRunner
from tests.operator.chains import ClusterChain
from tests.operator.held_api import HeldApi, Request
from tests.operator.operator_process import OperatorProcess
from tests.processes import PATIENCE_SECONDS, wait_until

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("control-plane")]

CHAIN_SECONDS = 300.0
# A busy machine lets no leader miss its renewals for so long. The first kind is waited out, in less than the 20 s after
# which the operator gives up a request.
SHORT_DEADLINE_SECONDS = 15
SHORT = (
    "--lease-duration-seconds=30",
    f"--renew-deadline-seconds={SHORT_DEADLINE_SECONDS}",
    "--retry-period-seconds=1",
)
LONG = ("--lease-duration-seconds=240", "--renew-deadline-seconds=160", "--retry-period-seconds=1")


class Replica(OperatorProcess):
    """One operator of several, with an API server of its own that can hold its requests."""

    def __init__(self, plane: ControlPlane, namespace: str, folder: Path, *arguments: str) -> None:
        folder.mkdir()
        self.api = HeldApi(plane, folder)
        self.api.start()
        election = (f"--lease={namespace}/operator", f"--identity={folder.name}")
        super().__init__(
            self.api.kubeconfig, namespace, folder / "operator.log", "--workers=4", *election, *arguments
        )

    def wait_to_lead(self) -> None:
        wait_until(self.leads, f"it leads; its log is {self.log}", pause=0.1)


MakeReplica = Callable[..., Replica]


@pytest.fixture
def replica(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[MakeReplica]:
    """Makes replicas that are not started yet."""
    made: list[Replica] = []

    def make(name: str, *arguments: str) -> Replica:
        made.append(Replica(control_plane, namespace, tmp_path / name, *arguments))
        return made[-1]

    yield make
    for one in made:
        one.kill()
        one.api.close()


def lease(chain: ClusterChain) -> dict[str, object]:
    """The Lease as the API server has it."""
    found = chain.plane.kubectl("get", "lease", "operator", "-n", chain.namespace, "-o", "json").stdout
    return json.loads(found)["spec"]


def end_lease(chain: ClusterChain) -> None:
    """As if its time had passed: whoever stands by takes it."""
    patch = ("--type=merge", "-p", '{"spec": {"holderIdentity": ""}}')
    chain.plane.kubectl("patch", "lease", "operator", "-n", chain.namespace, *patch)


def test_an_operator_is_upgraded_and_killed_while_a_job_runs_that_notices_nothing(
    chain: ClusterChain,
    replica: MakeReplica,
    pod_runner: PodRunner,
    record_property: Callable[[str, object], None],
) -> None:
    old, new, third = replica("old"), replica("new"), replica("third")
    for stage in ("tiny", "small"):
        pod_runner.hold(f"*-{stage}-*", "step:8")
    old.start()
    chain.apply()
    pod_runner.wait_for_held("*-tiny-*")
    (pod,) = chain.pods()

    new.start()  # a rolling update: the new one is ready before the old one is told to stop
    assert not new.leads()
    assert "standing by: old_" in new.said()
    assert old.terminate() == ExitCode.OK
    assert not str(lease(chain)["holderIdentity"]).startswith("old_"), (
        "a leader that stops hands over at once"
    )
    new.wait_to_lead()
    assert [one["metadata"]["uid"] for one in chain.pods()] == [pod["metadata"]["uid"]]
    pod_runner.release("*-tiny-*")
    pod_runner.wait_for_held("*-small-*")

    third.start()
    new.kill()
    left = lease(chain)
    third.wait_to_lead()
    taken = lease(chain)
    assert str(taken["holderIdentity"]).startswith("third_")
    assert taken["leaseTransitions"] == int(str(left["leaseTransitions"])) + 1
    replaced = _moment(taken["acquireTime"]) - _moment(left["renewTime"])
    record_property("seconds from the last renewal to the next leader", replaced.total_seconds())
    assert replaced >= timedelta(seconds=int(str(left["leaseDurationSeconds"]))), "none acts beside another"
    pod_runner.release()
    chain.wait("Complete", seconds=CHAIN_SECONDS)
    stages = chain.status()["stages"]
    assert [(one["attempt"], one["failures"]) for one in stages] == [(1, 0), (1, 0)]
    assert len(chain.jobs()) == 2


def test_whatever_a_killed_leader_was_about_to_do_is_done_once(
    chain: ClusterChain, replica: MakeReplica, pod_runner: PodRunner
) -> None:
    chain.document["spec"]["stages"] = chain.document["spec"]["stages"][:1]
    pod_runner.hold("*", "step:8")
    leader, standby = replica("first", *LONG), replica("second", *LONG)

    def attempt_is_recorded(request: Request) -> bool:
        return _stage(request).get("attempt") == 1

    def job_is_made(request: Request) -> bool:
        return request.method == "POST" and request.path.endswith("/pytorchjobs")

    def failure_is_counted(request: Request) -> bool:
        return _stage(request).get("failures") == 1

    def replace_leader() -> None:
        """Kill the leader where it is held, and let its Lease end. It comes back as the standby of the other one."""
        nonlocal leader, standby
        leader.api.wait_for_held()
        leader.kill()
        leader.api.release(forward=False)
        end_lease(chain)
        leader, standby = standby, leader
        leader.wait_to_lead()
        standby.start()

    leader.api.hold(attempt_is_recorded, "after")
    leader.start()
    leader.wait_to_lead()
    standby.api.hold(job_is_made, "before")
    standby.start()
    chain.apply()
    replace_leader()  # the attempt is in the status, its job is not there
    assert chain.stage("tiny")["attempt"] == 1
    standby.api.hold(job_is_made, "after")
    replace_leader()  # nor is it now: the request has reached nobody
    standby.api.hold(failure_is_counted, "before")
    replace_leader()  # the job is there, and who made it did not learn that
    pod_runner.wait_for_held("*")
    assert len(chain.jobs()) == 1
    standby.api.hold(failure_is_counted, "after")
    pod_runner.kill_together([pod["metadata"]["name"] for pod in chain.pods()])
    replace_leader()  # the attempt has failed, and nobody has said so
    replace_leader()  # now somebody has
    pod_runner.wait_for_held("*")
    pod_runner.release()
    chain.wait("Complete", seconds=CHAIN_SECONDS)
    assert (chain.stage("tiny")["attempt"], chain.stage("tiny")["failures"]) == (2, 1)
    asked = [request for one in (leader, standby) for request in one.api.writes if job_is_made(request)]
    assert len(asked) == 3, "that of attempt 1, which reached nobody; that of attempt 1; that of attempt 2"
    assert [job["metadata"]["labels"]["modelchain.dev/attempt"] for job in chain.jobs()] == ["2"]
    assert lease(chain)["leaseTransitions"] == 5


def test_a_leader_that_was_paused_for_longer_than_its_lease_writes_nothing(
    chain: ClusterChain, replica: MakeReplica, pod_runner: PodRunner
) -> None:
    chain.document["spec"]["stages"] = chain.document["spec"]["stages"][:1]
    pod_runner.hold("*", "step:8")
    paused, other = replica("paused", *SHORT), replica("other", *LONG)
    paused.start()
    paused.wait_to_lead()
    other.start()
    chain.apply()
    pod_runner.wait_for_held("*")
    (pod,) = chain.pods()

    paused.api.hold(lambda request: request.path.endswith(f"/modelchains/{chain.name}"), "after")
    chain.apply(suspend=True)
    paused.api.wait_for_held()  # with the answer, it would say that the chain is suspended, and delete the job
    paused.signal(signal.SIGSTOP)
    stopped_at = time.monotonic()
    end_lease(chain)
    chain.apply(suspend=False)
    other.wait_to_lead()
    wait_until(
        lambda: time.monotonic() - stopped_at > SHORT_DEADLINE_SECONDS,
        "by its own clock too, the leader that is paused leads no more",
        pause=0.1,
    )
    written = len(paused.api.writes)
    paused.api.release()
    paused.signal(signal.SIGCONT)
    assert paused.wait(PATIENCE_SECONDS) == ExitCode.HELD
    assert paused.api.writes[written:] == []
    assert "this operator ends" in paused.said()
    assert [one["metadata"]["uid"] for one in chain.pods()] == [pod["metadata"]["uid"]]
    pod_runner.release()
    chain.wait("Complete", seconds=CHAIN_SECONDS)
    assert chain.stage("tiny")["attempt"] == 1


def _moment(written: object) -> datetime:
    return datetime.fromisoformat(str(written))


def _stage(request: Request) -> dict[str, object]:
    """The first stage of a status that is to be written; empty for any other request."""
    stages = request.body.get("status", {}).get("stages") if request.path.endswith("/status") else None
    return stages[0] if stages else {}
