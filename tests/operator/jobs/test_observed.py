"""What a chain's jobs and pods look like, situation by situation."""

from collections.abc import Sequence
from typing import Any

import pytest

from modelchain.artifacts import Failure
from modelchain.reconcile.observation import Job, JobPhase
from modelchain_operator.jobs.observed import JobMemory, observe_jobs
from modelchain_operator.kubernetes_api import Object

NOW = 1_800_000_000.0
CHAIN = "chain-1"
LONG_AGO = "2026-01-01T00:00:00Z"


def metadata(name: str, owner: str, **more: Any) -> Object:
    labels = {"modelchain.dev/chain-uid": CHAIN, "modelchain.dev/stage": "s", "modelchain.dev/attempt": "3"}
    return {
        "name": name,
        "uid": name,
        "labels": labels | more.pop("labels", {}),
        "annotations": {"modelchain.dev/stage-digest": "d" * 64},
        "ownerReferences": [{"uid": owner, "name": owner}],
        **more,
    }


def job(*conditions: str, suspend: bool = False, reason: str = "", **more: Any) -> Object:
    told = [{"type": kind, "status": "True", "reason": reason, "message": "told"} for kind in conditions]
    return {
        "kind": "PyTorchJob",
        "metadata": metadata("job", more.pop("owner", CHAIN), **more),
        "spec": {
            "runPolicy": {"suspend": suspend},
            "pytorchReplicaSpecs": {"Master": {"replicas": 1}, "Worker": {"replicas": 1}},
        },
        "status": {"conditions": [{"type": "Created", "status": "True"}, *told]},
    }


def pod(place: int, phase: str = "Running", *, state: Object | None = None, **more: Any) -> Object:
    states: dict[str, Object] = {"Running": {"running": {}}, "Succeeded": {"terminated": {"exitCode": 0}}}
    status = {
        "phase": phase,
        "containerStatuses": [{"name": "pytorch", "state": state or states.get(phase, {})}],
    } | more.pop("status", {})
    labels = {"training.kubeflow.org/replica-index": str(place)}
    name = more.pop("name", f"job-{place}")
    return {
        "metadata": metadata(name, more.pop("owner", "job"), labels=labels, **more),
        "spec": {"nodeName": "node-a"},
        "status": status,
    }


def failed(
    place: int, code: int, reason: str = "Error", message: str = "", at: int = 0, **status: Any
) -> Object:
    end = {
        "exitCode": code,
        "reason": reason,
        "message": message,
        "finishedAt": f"2026-01-01T00:00:{at:02d}Z",
    }
    return pod(place, "Failed", state={"terminated": end}, status=status)


def said(code: int, reason: str, message: str) -> str:
    return Failure(exit_code=code, reason=reason, message=message).model_dump_json(by_alias=True)


def waiting(reason: str) -> Object:
    return pod(0, "Pending", state={"waiting": {"reason": reason, "message": "why"}})


def condition(kind: str, status: str, reason: str) -> Object:
    return {"conditions": [{"type": kind, "status": status, "reason": reason, "message": "why"}]}


def look(
    jobs: Sequence[Object], pods: Sequence[Object], memory: JobMemory | None = None, now: float = NOW
) -> Job:
    (seen,) = observe_jobs(jobs, pods, memory or JobMemory(), now)
    assert (seen.stage, seen.attempt, seen.digest, seen.name) == ("s", 3, "d" * 64, "job")
    return seen


P = JobPhase
BOTH = [pod(0), pod(1)]
DATA = said(65, "UserDataError", "shard broken")
LOST = said(1, "LostPeerError", "lost")
EVICTED = condition("DisruptionTarget", "True", "EvictionByEvictionAPI")
UNREACHABLE = pod(1, deletionTimestamp=LONG_AGO)


@pytest.mark.parametrize(
    ("seen_job", "pods", "phase", "reason", "code", "disrupted"),
    [
        pytest.param(job(), [], P.PENDING, "", None, False, id="no-pods"),
        pytest.param(job(), [waiting("ErrImagePull")], P.PENDING, "ErrImagePull", None, False, id="image"),
        pytest.param(
            job(), [waiting("CreateContainerConfigError")], P.PENDING, "CreateContainerConfigError", None, False,
            id="secret"),
        pytest.param(
            job(), [pod(0, "Pending", status=condition("PodScheduled", "False", "Unschedulable"))], P.PENDING,
            "Unschedulable", None, False, id="unschedulable"),
        pytest.param(job(), [waiting("ContainerCreating")], P.PENDING, "", None, False, id="creating"),
        pytest.param(job(suspend=True), [], P.QUEUED, "", None, False, id="queued"),
        pytest.param(job("Running"), [pod(0), waiting("")], P.PENDING, "", None, False, id="one-of-two"),
        pytest.param(job("Running"), BOTH, P.RUNNING, "", None, False, id="running"),
        pytest.param(job("Succeeded"), [pod(0, "Succeeded")], P.SUCCEEDED, "", 0, False, id="succeeded"),
        pytest.param(
            job("Succeeded"), [pod(0, "Succeeded"), pod(1)], P.TERMINATING, "", None, False, id="worker-lives"),
        pytest.param(
            job("Failed"), [failed(0, 143, at=1), failed(1, 65, message=DATA, at=9)], P.FAILED, "UserDataError", 65,
            False, id="root-cause-permanent"),
        pytest.param(
            job("Failed"), [failed(0, 1, message=LOST, at=1), failed(1, 1, at=9)], P.FAILED, "TrainerFailed", 1, False,
            id="root-cause-not-the-peer"),
        pytest.param(job("Failed"), [failed(0, 137, "OOMKilled")], P.FAILED, "OOMKilled", 137, False, id="memory"),
        pytest.param(
            job("Failed"), [failed(0, 1, message="no {json")], P.FAILED, "TrainerFailed", 1, False, id="no-json"),
        pytest.param(
            job("Failed"), [failed(0, 143, **EVICTED)], P.FAILED, "Disrupted", 143, True, id="disruption-target"),
        pytest.param(
            job("Failed"), [failed(0, 137, reason="Error") | {"status": {"phase": "Failed", "reason": "Evicted"}}],
            P.FAILED, "Disrupted", None, True, id="evicted"),
        pytest.param(
            job("Failed"), [failed(0, 65, message=DATA, **EVICTED)], P.FAILED, "UserDataError", 65, False,
            id="permanent-though-evicted"),
        pytest.param(
            job("Failed"),
            [{**pod(0, "Failed"), "status": {"phase": "Failed", "reason": "Evicted",
                                           "message": 'Usage of EmptyDir volume "tmp" exceeds the limit "1Gi".'}}],
            P.FAILED, "StorageLimitExceeded", None, False, id="own-storage-limit"),
        pytest.param(job("Failed"), [], P.FAILED, "Disrupted", None, True, id="failed-pod-gone"),
        pytest.param(
            job("Failed", reason="DeadlineExceeded"), [], P.FAILED, "TimedOut", None, False, id="deadline"),
        pytest.param(
            job("Running"), [pod(0), pod(1, deletionTimestamp="2099-01-01T00:00:00Z")], P.RUNNING, "", None, True,
            id="pod-deleted-by-hand"),
        pytest.param(job("Running"), [pod(0), failed(1, 1)], P.TERMINATING, "TrainerFailed", 1, False, id="ending"),
        pytest.param(
            job(deletionTimestamp=LONG_AGO), BOTH, P.TERMINATING, "", None, False, id="job-deleted-by-hand"),
    ],
)  # fmt: skip
def test_a_job_is_seen_as(
    seen_job: Object, pods: list[Object], phase: JobPhase, reason: str, code: int | None, disrupted: bool
) -> None:
    seen = look([seen_job], pods)
    assert (seen.phase, seen.reason, seen.exit_code, seen.disrupted) == (phase, reason, code, disrupted)
    assert (seen.ended_at is not None) == (not seen.live)
    if reason:
        assert seen.message


def test_pods_outlive_their_job() -> None:
    assert look([], BOTH).phase is P.TERMINATING


def test_a_node_that_does_not_answer_holds_its_pod() -> None:
    assert look([job("Failed")], [failed(0, 1), UNREACHABLE]).blocked_by_node == "node-a"
    recent = pod(1, deletionTimestamp="2099-01-01T00:00:00Z")
    assert look([job("Failed")], [failed(0, 1), recent]).blocked_by_node is None


def test_what_is_not_owned_by_the_chain_is_not_its_job() -> None:
    assert observe_jobs([job(owner="somebody")], BOTH, JobMemory(), NOW) == ()


def test_a_pod_made_anew_or_gone_disrupts_its_job() -> None:
    memory = JobMemory()
    first = look([job("Running")], BOTH, memory)
    assert not first.disrupted
    for after in ([pod(0), pod(1, name="another")], [pod(0)]):
        seen = look([job("Running")], after, memory, NOW + 1)
        assert seen.disrupted
        assert seen.started_at == NOW


def test_workers_cleaned_up_after_the_master_are_no_disruption() -> None:
    memory = JobMemory()
    look([job("Running")], BOTH, memory)
    assert not look([job("Running")], [pod(0, "Succeeded")], memory).disrupted


def test_a_queue_may_take_a_job_back_and_let_it_go_on() -> None:
    memory = JobMemory()
    look([job("Running")], BOTH, memory)
    assert look([job(suspend=True)], [], memory).phase is P.QUEUED
    seen = look([job("Running")], [pod(0, name="a"), pod(1, name="b")], memory, NOW + 9)
    assert (seen.disrupted, seen.started_at) == (False, NOW + 9)


def test_a_job_that_nobody_takes_up_says_so() -> None:
    memory, untouched = JobMemory(), job()
    del untouched["status"]
    look([untouched], [], memory)
    seen = look([untouched], [], memory, NOW + 61)
    assert seen.reason == "NoController"
    assert "training operator" in seen.message


def test_a_trainer_that_could_not_say_why_is_quoted_from_its_log() -> None:
    log = "Traceback (most recent call last):\n  ...\nModuleNotFoundError: No module named 'torch'\n\n"
    seen = look([job("Failed")], [failed(0, 1, message=log)])
    assert seen.message == (
        "job-0 ended with exit code 1; its last words: ModuleNotFoundError: No module named 'torch'"
    )
