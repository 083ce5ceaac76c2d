"""Whatever ends the pods of a stage: it goes on, only its own mistakes count, and its weights come out the same."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from modelchain.artifacts import WEIGHTS
from modelchain.cluster_labels import ATTEMPT
from modelchain.commit import list_checkpoints, verify_stage
from tests.control_plane.pods import PodRunner
from tests.operator.chains import ClusterChain
from tests.operator.operator_process import OperatorProcess
from tests.processes import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("control-plane")]

STAGE_SECONDS = 300.0


class Disrupter:
    """Strikes the only stage of a chain in mid-training, and sees what becomes of it."""

    def __init__(self, chain: ClusterChain, pods: PodRunner) -> None:
        self.chain, self.runner = chain, pods
        self.attempt, self.failures, self.step = 1, 0, 0
        pods.hold("*", "checkpoint-committed:2")  # each attempt makes progress, and waits for its end

    def pod(self) -> str:
        """The name of the running pod, once it has written further checkpoints."""
        attempt = str(self.attempt)
        wait_until(
            lambda: any(pod["metadata"]["labels"][ATTEMPT] == attempt for pod in self.chain.pods()),
            f"attempt {attempt} has a pod",
            seconds=240,
            pause=0.1,
        )
        (pod,) = [pod for pod in self.chain.pods() if pod["metadata"]["labels"][ATTEMPT] == attempt]
        self.runner.wait_for_held(pod["metadata"]["name"])
        assert self._newest() > self.step, "it goes on where the one before it was"
        self.step = self._newest()
        return pod["metadata"]["name"]

    def _newest(self) -> int:
        stored = list_checkpoints(self.chain.store, self.chain.resolved().stages[0].folder)
        return max((checkpoint.step for checkpoint in stored if checkpoint.finished), default=0)

    def expect(self, reason: str, message: str = "", *, counts: bool = False) -> None:
        """The attempt has ended for this reason, and the next one begins."""
        self.expect_end(reason, message, counts=counts)
        self.expect_next()

    def expect_end(self, reason: str, message: str = "", *, counts: bool = False) -> None:
        """The attempt has ended for this reason."""
        wait_until(
            lambda: (self.chain.stage("tiny").get("lastEnded") or {}).get("attempt") == self.attempt,
            f"the end of attempt {self.attempt} is accounted for",
            seconds=240,
            pause=0.2,
        )
        ended = self.chain.stage("tiny")["lastEnded"]
        self.failures += counts
        assert (ended["reason"], ended["counted"]) == (reason, counts), ended
        assert message in ended["message"]
        assert self.chain.stage("tiny")["failures"] == self.failures

    def expect_next(self) -> None:
        """The next attempt begins."""
        self.attempt += 1
        wait_until(
            lambda: self.chain.stage("tiny")["attempt"] == self.attempt,
            f"attempt {self.attempt} begins",
            seconds=240,
            pause=0.2,
        )


def test_whatever_ends_its_pods_a_stage_comes_out_the_same(
    chain: ClusterChain, operator: OperatorProcess, pod_runner: PodRunner, tmp_path: Path
) -> None:
    chain.document["spec"]["stages"] = chain.document["spec"]["stages"][:1]
    chain.document["spec"]["training"]["epochs"] = 60  # more steps than all attempts take until they are held
    disrupter = Disrupter(chain, pod_runner)
    operator.start()
    chain.apply()

    pod_runner.evict(disrupter.pod())
    disrupter.expect("Disrupted", "low on resource")
    pod_runner.preempt(disrupter.pod())
    disrupter.expect("Disrupted", "PreemptionByScheduler")
    chain.plane.kubectl("delete", "pod", disrupter.pod(), "-n", chain.namespace, "--wait=false")
    disrupter.expect("Disrupted")
    disrupter.pod()
    chain.plane.kubectl("delete", "pytorchjobs", "--all", "-n", chain.namespace, "--wait=false")
    disrupter.expect("JobVanished")
    pod_runner.out_of_memory(disrupter.pod())
    disrupter.expect("OOMKilled", "memory", counts=True)
    pod_runner.kill(disrupter.pod(), signal.SIGKILL)
    disrupter.expect("TrainerFailed", "137", counts=True)
    disrupter.pod()
    pod_runner.lose_node()
    disrupter.expect_end("Disrupted", "DeletionByTaintManager")
    chain.wait_at_rest(3)
    assert "is ending (Disrupted)" in chain.status()["message"]
    assert chain.stage("tiny")["attempt"] == disrupter.attempt, "there is no other while its pod may live"
    pod_runner.return_node()
    pod_runner.release()
    disrupter.expect_next()
    chain.wait_for_phase("tiny", "Complete", seconds=STAGE_SECONDS)
    assert weights(chain) == undisturbed(chain, tmp_path)


def weights(chain: ClusterChain) -> str:
    """The hash of the weights of the only stage."""
    (stage,) = chain.resolved().stages
    manifest = verify_stage(chain.store, stage.folder, stage.digest)
    assert manifest is not None
    (entry,) = [entry for entry in manifest.files if entry.path.endswith(WEIGHTS)]
    return entry.sha256


def undisturbed(chain: ClusterChain, folder: Path) -> str:
    """The hash of the weights of the same stage, trained once more in a store of its own."""
    prefix = f"{chain.prefix}/undisturbed"
    other = ClusterChain(
        chain.plane, chain.server, chain.namespace, folder, name="undisturbed", prefix=prefix
    )
    other.document["spec"]["stages"] = chain.document["spec"]["stages"]
    other.document["spec"]["training"] = chain.document["spec"]["training"]
    other.apply()
    other.wait_for_phase("tiny", "Complete", seconds=STAGE_SECONDS)
    assert other.stage("tiny")["attempt"] == 1
    return weights(other)
