"""Which pods `modelchain logs` chooses, what it asks kubectl for, and what it says when there is nothing to show."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from modelchain.cli.cluster import ClusterChain, Pod
from modelchain.cli.kubectl import Kubectl
from modelchain.cli.logs import Attempt, NoPodYet, attempts_of, choose, log_arguments, not_started, show
from modelchain.errors import MissingInputError, UsageError
from modelchain.status import ChainPhase, ChainStatus, EndedAttempt, StagePhase, StageStatus
from tests.modelchain.documents import document

UID = "6a0c8f9e-0000-4000-8000-000000000001"
ENDED = EndedAttempt(
    attempt=2, reason="DataError", message="shard 3 is damaged", counted=True, time="2026-11-24T02:00:00Z"
)


def chain(
    *stages: StageStatus, stage: str | None = None, phase: ChainPhase = ChainPhase.RUNNING
) -> ClusterChain:
    status = ChainStatus(phase=phase, stage=stage, stages=stages)
    metadata = {"name": "family", "namespace": "research", "uid": UID}
    return ClusterChain.model_validate({"metadata": metadata, "spec": document()["spec"], "status": status})


def pod(
    name: str,
    stage: str = "small",
    attempt: int = 1,
    *,
    master: bool | None = None,
    index: int = 0,
    created: int = 0,
    status: dict[str, object] | None = None,
) -> Pod:
    """A pod of a PyTorchJob if `master` is given, else of an Indexed Job."""
    kind = {
        "training.kubeflow.org/replica-type": "master" if master else "worker",
        "training.kubeflow.org/replica-index": str(index),
    }
    labels = {"modelchain.dev/stage": stage, "modelchain.dev/attempt": str(attempt)}
    labels |= kind if master is not None else {"batch.kubernetes.io/job-completion-index": str(index)}
    metadata = {
        "name": name,
        "labels": labels,
        "creationTimestamp": f"2026-11-24T{created:02d}:00:00Z",
    }
    return Pod.model_validate({"metadata": metadata, "status": status or {"phase": "Running"}})


def names(chosen: Sequence[Attempt]) -> list[tuple[str, int, list[str]]]:
    return [(one.stage, one.number, [pod.metadata.name for pod in one.pods]) for one in chosen]


COMPLETE = StageStatus(name="tiny", phase=StagePhase.COMPLETE, attempt=1)
RUNNING = StageStatus(name="small", phase=StagePhase.RUNNING, attempt=3, last_ended=ENDED)
WAITING = StageStatus(name="base", reason="PredecessorIncomplete", message="waits for small")


def test_the_newest_attempt_of_the_running_stage_rank_0_first() -> None:
    pods = [
        pod("t-master-0", "tiny", master=True, created=9),
        pod("s2-master-0", attempt=2, master=True, created=3),
        pod("s3-worker-1", attempt=3, master=False, index=1, created=4),
        pod("s3-worker-0", attempt=3, master=False, index=0, created=4),
        pod("s3-master-0", attempt=3, master=True, created=4),
    ]
    chosen = choose(chain(COMPLETE, RUNNING, WAITING, stage="small"), attempts_of(pods))
    assert names(chosen) == [("small", 3, ["s3-master-0", "s3-worker-0", "s3-worker-1"])]


def test_a_model_that_is_trained_alone_has_logs_too() -> None:
    done = chain(COMPLETE, stage="tiny", phase=ChainPhase.COMPLETE)
    alone = StageStatus(name="tiny-alone", phase=StagePhase.RUNNING, attempt=1)
    assert done.status is not None
    status = done.status.model_copy(update={"baselines": (alone,)})
    pods = [pod("t", "tiny", created=1), pod("a", "tiny-alone", created=2)]
    chosen = choose(done.model_copy(update={"status": status}), attempts_of(pods))
    assert names(chosen) == [("tiny-alone", 1, ["a"])]


def test_attempts_are_numbers_not_words() -> None:
    pods = [pod("nine", attempt=9, created=1), pod("ten", attempt=10, created=1)]
    assert names(choose(chain(RUNNING), attempts_of(pods)))[-1][1] == 10


def test_the_pods_of_an_indexed_job_go_by_their_index() -> None:
    pods = [pod("j-10", index=10), pod("j-2", index=2), pod("j-0", index=0)]
    assert names(attempts_of(pods)) == [("small", 1, ["j-0", "j-2", "j-10"])]


def test_of_a_pod_that_was_made_again_the_newest_counts() -> None:
    pods = [pod("j-0-new", created=5), pod("j-0-old", created=2)]
    assert names(attempts_of(pods)) == [("small", 1, ["j-0-new"])]


def test_in_a_tree_the_running_stage_that_the_chain_names_is_meant() -> None:
    both = (RUNNING, WAITING.model_copy(update={"phase": StagePhase.RUNNING, "attempt": 1}))
    pods = attempts_of([pod("s", attempt=3, created=9), pod("b", "base", created=1)])
    assert names(choose(chain(*both, stage="base"), pods))[0][0] == "base"


def test_where_nothing_runs_the_stage_that_ran_last_is_meant() -> None:
    done = [
        stage.model_copy(update={"phase": StagePhase.COMPLETE, "attempt": 1}) for stage in (COMPLETE, RUNNING)
    ]
    pods = attempts_of([pod("s", created=7), pod("t", "tiny", created=1)])
    assert names(choose(chain(*done, phase=ChainPhase.COMPLETE), pods)) == [("small", 1, ["s"])]


def test_a_stage_and_an_attempt_may_be_asked_for() -> None:
    pods = attempts_of([pod("s1"), pod("s2", attempt=2), pod("t1", "tiny")])
    everything = chain(COMPLETE, RUNNING)
    assert names(choose(everything, pods, stage="tiny")) == [("tiny", 1, ["t1"])]
    assert names(choose(everything, pods, stage="small", attempt=1)) == [("small", 1, ["s1"])]
    assert names(choose(everything, pods, attempt=2)) == [("small", 2, ["s2"])]


def test_previous_attempts_come_first_up_to_the_one_that_is_asked_for() -> None:
    pods = attempts_of([pod(f"s{n}", attempt=n, created=n) for n in (1, 2, 3)])
    assert [number for _, number, _ in names(choose(chain(RUNNING), pods, previous=True))] == [1, 2, 3]
    assert [n for _, n, _ in names(choose(chain(RUNNING), pods, attempt=2, previous=True))] == [1, 2]


def test_pods_without_our_labels_are_passed_over() -> None:
    odd = Pod.model_validate({"metadata": {"name": "odd", "labels": {"modelchain.dev/stage": "small"}}})
    assert attempts_of([odd]) == []


@pytest.mark.parametrize(
    ("stages", "asked", "says"),
    [
        ((WAITING,), {"stage": "base"}, "stage base: it has not started yet (waits for small)"),
        ((RUNNING,), {}, "stage small: attempt 3 has no pod yet"),
        ((), {}, "nothing of it has started yet"),
    ],
    ids=["waiting", "running", "nothing"],
)
def test_a_pod_that_is_still_to_come_can_be_waited_for(
    stages: tuple[StageStatus, ...], asked: dict[str, str], says: str
) -> None:
    with pytest.raises(NoPodYet) as caught:
        choose(chain(*stages), [], **asked)  # pyright: ignore[reportArgumentType]
    assert says in str(caught.value) and "modelchain status family -n research" in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"stage": "tiny"}, "stage tiny: the pods of attempt 1 are gone; what was measured is in the store"),
        ({"attempt": 2}, "the pods of attempt 2 are gone (it ended: DataError: shard 3 is damaged)"),
        ({"attempt": 7}, "there was no attempt 7, the last is 3"),
        ({"stage": "base"}, "not trained here, its weights were in the store already"),
    ],
    ids=["complete", "ended", "never", "cached"],
)
def test_pods_that_are_gone_leave_the_store(asked: dict[str, str | int], says: str) -> None:
    cached = WAITING.model_copy(update={"phase": StagePhase.CACHED})
    with pytest.raises(MissingInputError) as caught:
        choose(chain(COMPLETE, RUNNING, cached), [], **asked)  # pyright: ignore[reportArgumentType]
    assert not isinstance(caught.value, NoPodYet)
    assert says in str(caught.value)
    assert "no attempt" in says or "modelchain report family -n research" in str(caught.value)


def test_attempts_that_still_have_pods_are_named() -> None:
    with pytest.raises(MissingInputError, match="those of attempt 3 are"):
        choose(chain(RUNNING), attempts_of([pod("s", attempt=3)]), attempt=1)


def test_a_stage_that_the_chain_lacks_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="has no such stage; did you mean small"):
        choose(chain(RUNNING), [], stage="smal")


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (
            {
                "phase": "Pending",
                "containerStatuses": [
                    {
                        "name": "pytorch",
                        "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such tag"}},
                    }
                ],
            },
            "ImagePullBackOff: no such tag",
        ),
        (
            {
                "phase": "Pending",
                "conditions": [
                    {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}
                ],
            },
            "0/3 nodes are available",
        ),
    ],
    ids=["image", "node"],
)
def test_a_pod_that_has_not_started_says_why(status: dict[str, object], says: str) -> None:
    (attempt,) = attempts_of([pod("s", status=status)])
    assert says in (not_started(attempt, "research") or "")


def test_a_pod_that_has_ended_has_a_log() -> None:
    (attempt,) = attempts_of([pod("s", status={"phase": "Failed"})])
    assert not_started(attempt, "research") is None


def arguments(**given: object) -> argparse.Namespace:
    nothing = {"all_pods": False, "tail": None, "since": None, "timestamps": False}
    return argparse.Namespace(**nothing | given)


def test_kubectl_is_asked_for_the_trainers_container_of_rank_0() -> None:
    (attempt,) = attempts_of([pod("s-worker-0", master=False), pod("s-master-0", master=True)])
    asked = log_arguments(
        attempt, chain(RUNNING), arguments(tail=5, since="10m", timestamps=True), follow=True
    )
    assert asked == [
        *("logs", "s-master-0", "-n", "research", "-c", "pytorch"),
        *("-f", "--tail=5", "--since=10m", "--timestamps"),
    ]


@pytest.mark.parametrize("kind", [{"master": False}, {}], ids=["pytorchjob", "indexed"])
def test_where_rank_0s_pod_is_gone_the_others_are_shown_and_it_is_said(
    kind: dict[str, Any], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kubectl = tmp_path / "kubectl"
    kubectl.write_text('#!/bin/sh\necho "$@"\n')
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    left = attempts_of([pod(f"s1-{n}", index=n, **kind) for n in (1, 2)])
    whole = attempts_of([pod("s2-0", attempt=2), pod("s2-1", attempt=2, index=1)])
    for attempt in (*left, *whole):
        assert show(Kubectl(), attempt, chain(RUNNING), arguments(), titled=True) == 0
    shown, said = capfd.readouterr()
    selector = f"modelchain.dev/chain-uid={UID},modelchain.dev/stage=small,modelchain.dev/attempt=1"
    assert shown.splitlines() == [
        "==> stage small, attempt 1, all pods <==",
        f"logs -l {selector} --prefix --max-log-requests=5 -n research -c pytorch --tail=-1",
        "==> stage small, attempt 2, s2-0 <==",
        "logs s2-0 -n research -c pytorch",
    ]
    assert said == "stage small, attempt 1: rank 0 has no pod (any more); shown are s1-1, s1-2\n"


def test_all_pods_are_asked_for_by_their_labels_whole_and_with_their_names() -> None:
    (attempt,) = attempts_of([pod(f"s-{index}", index=index) for index in range(8)])
    asked = log_arguments(attempt, chain(RUNNING), arguments(all_pods=True), follow=False)
    selector = f"modelchain.dev/chain-uid={UID},modelchain.dev/stage=small,modelchain.dev/attempt=1"
    assert asked == [
        *("logs", "-l", selector, "--prefix", "--max-log-requests=8"),
        *("-n", "research", "-c", "pytorch", "--tail=-1"),
    ]
