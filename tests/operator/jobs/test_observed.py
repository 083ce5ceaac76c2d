"""What a chain's jobs and pods look like, situation by situation."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from modelchain.artifacts import Failure
from modelchain.reconcile.observation import Job, JobPhase
from modelchain.resolved import ChainReference
from modelchain_operator.jobs import names
from modelchain_operator.jobs.history import JobMemory
from modelchain_operator.jobs.observed import observe_jobs
from modelchain_operator.jobs.trees import job_trees
from modelchain_operator.kubernetes.api import Object

NOW = 1_800_000_000.0
CHAIN = ChainReference(namespace="team", name="family", uid="chain-1")
JOB = names.job_name(CHAIN, "s", 3)
LONG_AGO = "2026-01-01T00:00:00Z"


def metadata(name: str, owner: Object, **more: Any) -> Object:
    labels = {
        "modelchain.dev/chain-uid": CHAIN.uid,
        "modelchain.dev/stage": "s",
        "modelchain.dev/attempt": "3",
    }
    return {
        "name": name,
        "namespace": CHAIN.namespace,
        "uid": name,
        "labels": labels | more.pop("labels", {}),
        "annotations": {"modelchain.dev/stage-digest": "d" * 64},
        "ownerReferences": [owner],
        **more,
    }


OF_CHAIN: Object = {
    "apiVersion": "modelchain.dev/v1alpha1", "kind": "ModelChain", "name": CHAIN.name, "uid": CHAIN.uid,
    "controller": True,
}  # fmt: skip
OF_JOB: Object = {
    "apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "name": JOB, "uid": JOB, "controller": True,
}  # fmt: skip


def job(*conditions: str, suspend: bool = False, reason: str = "", **more: Any) -> Object:
    told = [{"type": kind, "status": "True", "reason": reason, "message": "told"} for kind in conditions]
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": metadata(more.pop("name", JOB), more.pop("owner", OF_CHAIN), **more),
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
    labels = {"training.kubeflow.org/replica-index": str(place)} | more.pop("labels", {})
    name = more.pop("name", f"{JOB}-{place}")
    return {
        "metadata": metadata(name, more.pop("owner", OF_JOB), labels=labels, **more),
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


def being_deleted(ended: Object, by: int, grace: int) -> Object:
    times = {"deletionTimestamp": f"2026-01-01T00:00:{by:02d}Z", "deletionGracePeriodSeconds": grace}
    return {**ended, "metadata": ended["metadata"] | times}


def said(code: int, reason: str, message: str) -> str:
    return Failure(exit_code=code, reason=reason, message=message).model_dump_json(by_alias=True)


def waiting(reason: str) -> Object:
    return pod(0, "Pending", state={"waiting": {"reason": reason, "message": "why"}})


def condition(kind: str, status: str, reason: str) -> Object:
    return {"conditions": [{"type": kind, "status": status, "reason": reason, "message": "why"}]}


def observe(
    jobs: Sequence[Object],
    pods: Sequence[Object],
    memory: JobMemory | None = None,
    now: float = NOW,
    clock_step: float = 0.0,
) -> tuple[Job, ...]:
    memory = memory or JobMemory()
    trees = job_trees(CHAIN, {}, jobs, pods, memory.pods)
    return observe_jobs(trees, memory, now, clock_step=clock_step)


def look(
    jobs: Sequence[Object], pods: Sequence[Object], memory: JobMemory | None = None, now: float = NOW
) -> Job:
    (seen,) = observe(jobs, pods, memory, now)
    assert (seen.stage, seen.attempt, seen.digest, seen.name) == ("s", 3, "d" * 64, JOB)
    return seen


P = JobPhase
BOTH = [pod(0), pod(1)]
DATA = said(65, "UserDataError", "shard broken")
LOST = said(1, "LostPeerError", "lost")
ASKED = said(143, "Terminated", "asked to end")
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
        pytest.param(
            job("Failed"), [failed(0, 137, at=2), failed(1, 1, message=LOST, at=2)], P.FAILED, "TrainerFailed", 137,
            False, id="root-cause-was-killed"),
        pytest.param(
            job("Failed"), [failed(0, 143, message=ASKED, at=2), failed(1, 1, message=LOST, at=1)], P.FAILED,
            "Terminated", 143, False, id="root-cause-was-asked-to-end"),
        pytest.param(
            job("Failed"), [being_deleted(failed(0, 137, at=1), by=30, grace=0), failed(1, 1, message=LOST, at=2)],
            P.FAILED, "TrainerFailed", 137, False, id="root-cause-was-killed-and-deleted-afterwards"),
        pytest.param(
            job("Failed"), [being_deleted(failed(0, 137, at=33), by=33, grace=30), failed(1, 1, message=LOST, at=2)],
            P.FAILED, "LostPeerError", 1, False, id="killed-because-the-peer-was-lost"),
        pytest.param(
            job("Failed"), [being_deleted(failed(0, 137, at=5), by=33, grace=30), failed(1, 1, message=LOST, at=5)],
            P.FAILED, "TrainerFailed", 137, False, id="root-cause-was-killed-within-its-grace-period"),
        pytest.param(
            job("Failed"), [being_deleted(failed(0, 143, at=2), by=33, grace=30), failed(1, 1, message=LOST, at=2)],
            P.FAILED, "LostPeerError", 1, False, id="asked-to-end-by-a-node-whose-clock-is-a-second-behind"),
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
        pytest.param(job("Failed"), [], P.FAILED, "JobFailed", None, False, id="failed-pods-never-seen"),
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


def test_a_job_that_is_being_deleted_says_what_it_waits_for() -> None:
    deleted = job(deletionTimestamp=LONG_AGO, finalizers=["example.com/hold"])
    held = look([deleted], [])
    assert (held.phase, held.held_by) == (P.TERMINATING, "finalizer example.com/hold")
    assert held.deleted_at is not None
    later = "2026-01-01T00:02:00Z"
    waits = look([deleted], [pod(0, deletionTimestamp=later), pod(1)])
    assert waits.held_by == f"pod {JOB}-0 (and 1 more)"
    assert waits.deleted_at == held.deleted_at + 120, "its pods have their grace period"
    assert look([job()], BOTH).deleted_at is None


def test_a_node_that_does_not_answer_holds_its_pod() -> None:
    assert look([job("Failed")], [failed(0, 1), UNREACHABLE]).blocked_by_node == "node-a"
    recent = pod(1, deletionTimestamp="2099-01-01T00:00:00Z")
    assert look([job("Failed")], [failed(0, 1), recent]).blocked_by_node is None


OTHER: Object = {"namespace": "other"}
HUGE: Object = {"labels": {"modelchain.dev/attempt": str(2**63 - 1)}}


@pytest.mark.parametrize(
    ("jobs", "pods"),
    [
        pytest.param([job(owner=OF_CHAIN | {"uid": "somebody"})], BOTH, id="another-owner"),
        pytest.param([job(owner=OF_CHAIN | {"controller": False})], BOTH, id="owner-is-no-controller"),
        pytest.param([job(owner=OF_CHAIN | {"kind": "ConfigMap"})], BOTH, id="controller-of-another-kind"),
        pytest.param([job(name="my-job")], [], id="not-our-name"),
        pytest.param([job(**HUGE)], [], id="attempt-no-counter-can-hold"),
        pytest.param([job(labels={"modelchain.dev/attempt": "4"})], [], id="name-of-another-attempt"),
        pytest.param([job(**OTHER)], [], id="job-of-another-namespace"),
        pytest.param([], [pod(0, **OTHER)], id="pod-of-another-namespace"),
        pytest.param([], [pod(0, **OTHER, labels={"modelchain.dev/attempt": "0"})], id="attempt-zero"),
        pytest.param([], [pod(0, **HUGE)], id="pod-with-a-huge-attempt"),
        pytest.param(
            [], [pod(0, ownerReferences=[])], id="pod-of-nobody, as kubectl debug --copy-to makes one"
        ),
        pytest.param([], [pod(0, owner=OF_JOB | {"name": "mine"})], id="pod-of-a-job-not-named-by-us"),
        pytest.param([], [pod(0, owner=OF_JOB | {"kind": "ReplicaSet"})], id="pod-of-another-kind"),
    ],
)
def test_labels_alone_make_nothing_the_chains(jobs: list[Object], pods: list[Object]) -> None:
    lone = [one for one in pods if one not in BOTH]
    assert observe(jobs, lone) == ()
    (own,) = observe(
        [job("Running"), *(one for one in jobs if one["metadata"]["name"] != JOB)], [*BOTH, *lone]
    )
    assert (own.name, own.phase, own.disrupted) == (JOB, P.RUNNING, False)


def test_an_attempt_that_is_not_the_next_one_is_nobodys() -> None:
    """Whoever may create jobs in the namespace can make one that looks like any attempt to come."""
    for last, believed in ((0, False), (1, False), (2, True), (3, True), (10**7, True)):
        for jobs, pods in (([job()], BOTH), ([job()], []), ([], BOTH)):
            assert bool(job_trees(CHAIN, {"s": last}, jobs, pods)) is believed
    assert job_trees(CHAIN, {"another": 1}, [job()], []), "of a stage of which nothing is recorded"


def test_a_pod_that_looks_like_a_success_of_the_running_job_is_not_its_pod() -> None:
    forged = pod(0, "Succeeded", name="forged", ownerReferences=[])
    assert look([job("Running")], [*BOTH, forged]).phase is P.RUNNING


def test_a_pod_made_anew_or_gone_disrupts_its_job() -> None:
    memory = JobMemory()
    first = look([job("Running")], BOTH, memory)
    assert not first.disrupted
    for after in ([pod(0), pod(1, name="another")], [pod(0)]):
        seen = look([job("Running")], after, memory, NOW + 1)
        assert seen.disrupted
        assert seen.started_at == NOW


def test_a_step_of_the_clock_moves_what_was_seen_before() -> None:
    memory, step = JobMemory(), 8 * 3600.0
    assert look([job("Running")], BOTH, memory).started_at == NOW
    (after,) = observe([job("Running")], BOTH, memory, NOW + step + 5, clock_step=step)
    assert after.started_at == NOW + step
    (back,) = observe([job("Running")], BOTH, memory, NOW - step + 9, clock_step=-step)
    assert back.started_at == NOW - step


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
        f"{JOB}-0 ended with exit code 1; last line: ModuleNotFoundError: No module named 'torch'"
    )


# ---- what nodes, schedulers and queues do to pods


def taken(place: int, reason: str, phase: str = "Failed", code: int | None = 143, **more: Any) -> Object:
    """A pod that somebody outside of its job has ended, as its status tells."""
    state = {"terminated": {"exitCode": code, "reason": "Error"}} if code is not None else {"running": {}}
    return pod(place, phase, state=state, status=condition("DisruptionTarget", "True", reason), **more)


def shut_down(reason: str, message: str) -> Object:
    """A pod that its kubelet has ended, or not let in."""
    return pod(0, "Failed", state={}, status={"reason": reason, "message": message})


GRACE = "2099-01-01T00:00:00Z"
MAKES_ROOM = "Preempted in order to admit critical pod"
SHUTDOWN = "Pod was terminated in response to imminent node shutdown."


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        pytest.param(taken(0, "PreemptionByScheduler"), "PreemptionByScheduler", id="preempted"),
        pytest.param(taken(0, "EvictionByEvictionAPI"), "EvictionByEvictionAPI", id="drained"),
        pytest.param(taken(0, "DeletionByPodGC"), "DeletionByPodGC", id="node-gone"),
        pytest.param(taken(0, "TerminationByKubelet"), "TerminationByKubelet", id="kubelet"),
        pytest.param(shut_down("Preempting", MAKES_ROOM), "critical pod", id="critical-pod"),
        pytest.param(shut_down("Terminated", SHUTDOWN), "node shutdown", id="shutdown"),
        pytest.param(shut_down("OutOfcpu", "Node didn't have enough resource: cpu"), "cpu", id="admission"),
        pytest.param(failed(0, 137, "ContainerStatusUnknown"), "node is restarted", id="node-restarted"),
        pytest.param(failed(0, 255, "Unknown"), "node is restarted", id="container-lost"),
    ],
)
def test_what_nodes_and_schedulers_do_is_no_failure(lost: Object, message: str) -> None:
    seen = look([job("Failed")], [lost, failed(1, 1, message=LOST, at=9)])
    assert (seen.phase, seen.reason, seen.disrupted) == (P.FAILED, "Disrupted", True)
    assert message in seen.message


@pytest.mark.parametrize(
    ("code", "reason"), [(137, "Error"), (255, "Error"), (137, "OOMKilled")], ids=["killed", "255", "memory"]
)
def test_what_looks_like_a_lost_container_but_ended_by_itself_is_a_failure(code: int, reason: str) -> None:
    assert not look([job("Failed")], [failed(0, code, reason)]).disrupted


def test_a_pod_that_is_being_preempted_has_disrupted_its_job_before_it_ends() -> None:
    leaving = taken(0, "PreemptionByScheduler", "Running", None, deletionTimestamp=GRACE)
    seen = look([job("Running")], [leaving, pod(1)])
    assert (seen.phase, seen.disrupted) == (P.RUNNING, True)


def test_a_lost_node_holds_the_job_until_its_pod_is_gone() -> None:
    memory = JobMemory()
    lost = taken(1, "DeletionByTaintManager", "Running", None, deletionTimestamp=LONG_AGO)
    seen = look([job("Failed")], [failed(0, 1, message=LOST), lost], memory)
    assert (seen.phase, seen.disrupted, seen.blocked_by_node) == (P.TERMINATING, True, "node-a")
    seen = look([job("Failed")], [failed(0, 1, message=LOST), taken(1, "DeletionByTaintManager")], memory)
    assert (seen.phase, seen.reason, seen.blocked_by_node) == (P.FAILED, "Disrupted", None)


# ---- other containers of a pod: a service mesh's proxy, a log shipper


def with_proxy(place: int, phase: str, trainer: Object, proxy: Object) -> Object:
    one = pod(place, phase, state=trainer)
    one["status"]["containerStatuses"].append({"name": "proxy", "state": proxy})
    return one


def ended(code: int, message: str = "") -> Object:
    return {"terminated": {"exitCode": code, "reason": "Error", "message": message, "finishedAt": LONG_AGO}}


RUNS: Object = {"running": {}}


def test_the_end_of_the_trainer_is_the_end_of_the_attempt_though_its_pods_run_on() -> None:
    memory = JobMemory()
    assert (
        look([job("Running")], [with_proxy(n, "Running", RUNS, RUNS) for n in (0, 1)], memory).phase
        is P.RUNNING
    )
    one_left = [with_proxy(0, "Running", ended(65, DATA), RUNS), with_proxy(1, "Running", RUNS, RUNS)]
    assert look([job("Running")], one_left, memory).phase is P.TERMINATING
    both = [with_proxy(0, "Running", ended(65, DATA), RUNS), with_proxy(1, "Running", ended(1, LOST), RUNS)]
    seen = look([job("Running")], both, memory)
    assert (seen.phase, seen.exit_code, seen.reason, seen.message) == (
        P.FAILED,
        65,
        "UserDataError",
        "shard broken",
    )
    assert seen.holds_pods


def test_a_trainer_that_is_done_is_done_whatever_other_containers_do() -> None:
    run_on = [with_proxy(n, "Running", ended(0), RUNS) for n in (0, 1)]
    seen = look([job("Running")], run_on)
    assert (seen.phase, seen.exit_code, seen.holds_pods) == (P.SUCCEEDED, 0, True)
    crashed = [with_proxy(n, "Failed", ended(0), ended(1)) for n in (0, 1)]
    seen = look([job("Failed")], crashed)
    assert (seen.phase, seen.exit_code, seen.holds_pods) == (P.SUCCEEDED, 0, False)


def test_a_pod_whose_containers_have_all_ended_is_about_to_end_and_its_job_is_left_for_its_log() -> None:
    pods = [pod(n, "Running", state=ended(1, LOST)) for n in (0, 1)]  # as a kubelet says it first
    seen = look([job("Running")], pods)
    assert (seen.phase, seen.holds_pods, seen.stoppable) == (P.FAILED, False, False)
    sidecar = {"initContainerStatuses": [{"name": "proxy", "state": RUNS}]}
    pods[0]["status"] |= sidecar
    assert look([job("Running")], pods).holds_pods


def test_another_container_that_ends_first_ends_nothing() -> None:
    pods = [with_proxy(n, "Running", RUNS, ended(1)) for n in (0, 1)]
    assert look([job("Running")], pods).phase is P.RUNNING


# ---- an Indexed Job


def indexed(*conditions: str, reason: str = "", suspend: bool = False, **more: Any) -> Object:
    like = job(*conditions, reason=reason, **more)
    spec = {"completions": 2, "parallelism": 2, "suspend": suspend}
    return like | {"apiVersion": "batch/v1", "kind": "Job", "spec": spec}


ENDING = [failed(0, 65, message=DATA), pod(1, deletionTimestamp=GRACE)]
ENDED = [failed(0, 65, message=DATA), failed(1, 143, at=9)]


@pytest.mark.parametrize(
    ("seen_job", "pods", "phase", "reason", "code", "disrupted"),
    [
        pytest.param(indexed(), BOTH, P.RUNNING, "", None, False, id="running"),
        pytest.param(indexed(), [pod(0, "Succeeded"), pod(1)], P.RUNNING, "", None, False, id="one-is-done"),
        pytest.param(
            indexed("SuccessCriteriaMet", reason="CompletionsReached"), [pod(0, "Succeeded"), pod(1)], P.TERMINATING,
            "", None, False, id="succeeding"),
        pytest.param(
            indexed("SuccessCriteriaMet", "Complete"), [pod(0, "Succeeded"), pod(1, "Succeeded")], P.SUCCEEDED, "", 0,
            False, id="succeeded"),
        pytest.param(indexed("SuccessCriteriaMet", "Complete"), [], P.SUCCEEDED, "", 0, False, id="cleaned-up"),
        pytest.param(
            indexed("FailureTarget", reason="BackoffLimitExceeded"), ENDING, P.TERMINATING, "UserDataError", 65, False,
            id="failing"),
        pytest.param(
            indexed("FailureTarget", "Failed", reason="BackoffLimitExceeded"), ENDED, P.FAILED, "UserDataError", 65,
            False, id="failed"),
        pytest.param(
            indexed("FailureTarget", reason="BackoffLimitExceeded"),
            [taken(0, "EvictionByEvictionAPI"), pod(1, deletionTimestamp=GRACE)], P.TERMINATING, "Disrupted", 143, True,
            id="evicted"),
        pytest.param(
            indexed("FailureTarget", "Failed", reason="BackoffLimitExceeded"), [], P.FAILED, "JobFailed", None, False,
            id="failed-pods-never-seen"),
        pytest.param(
            indexed("FailureTarget", "Failed", reason="PodFailurePolicy"), [], P.FAILED, "TrainerFailed", None, False,
            id="policy-of-a-stranger"),
        pytest.param(
            indexed("FailureTarget", "Failed", reason="DeadlineExceeded"), [], P.FAILED, "TimedOut", None, False,
            id="deadline"),
        pytest.param(indexed("Suspended", suspend=True), [], P.QUEUED, "", None, False, id="suspended-by-kueue"),
    ],
)  # fmt: skip
def test_an_indexed_job_is_seen_as(
    seen_job: Object, pods: list[Object], phase: JobPhase, reason: str, code: int | None, disrupted: bool
) -> None:
    seen = look([seen_job], pods)
    assert (seen.phase, seen.reason, seen.exit_code, seen.disrupted) == (phase, reason, code, disrupted)


def test_a_job_whose_pods_were_seen_and_are_gone_was_disrupted() -> None:
    memory = JobMemory()
    look([job("Running")], BOTH, memory)
    seen = look([job("Failed")], [], memory)
    assert (seen.phase, seen.reason, seen.disrupted) == (P.FAILED, "Disrupted", True)


UNSCHEDULED = pod(1, "Pending", status=condition("PodScheduled", "False", "Unschedulable"))
del UNSCHEDULED["spec"]["nodeName"]
LONELY = failed(0, 1, message=LOST)


def test_a_gang_of_which_a_part_never_had_a_node_has_not_failed() -> None:
    memory = JobMemory()
    seen = look([job("Running")], [pod(0), UNSCHEDULED], memory)
    assert (seen.phase, seen.unscheduled, seen.pending_since) == (P.PENDING, True, NOW)
    seen = look([job("Failed")], [LONELY], memory, NOW + 900)  # the other is cleaned up
    assert (seen.phase, seen.reason, seen.unscheduled) == (P.FAILED, "LostPeerError", True)


def test_nothing_is_said_of_nodes_where_the_waiting_was_not_seen_or_is_over() -> None:
    assert not look([job("Failed")], [LONELY], JobMemory()).unscheduled
    memory = JobMemory()
    look([job("Running")], [pod(0), UNSCHEDULED], memory)
    look([job("Running")], BOTH, memory)
    assert not look([job("Failed")], [LONELY], memory).unscheduled


def test_what_a_queue_takes_back_waits_anew() -> None:
    memory = JobMemory()
    look([job("Running")], [pod(0), UNSCHEDULED], memory)
    assert look([job(suspend=True)], [], memory).pending_since is None
    assert look([job()], [], memory, NOW + 50).pending_since == NOW + 50


ELSEWHERE = "kueue.x-k8s.io/multikueue"


def sent_away(kind: Callable[..., Object], *conditions: str, ready: int = 0) -> Object:
    """A job on Kueue's manager cluster: its pods are on another, and only its status is told."""
    sent = kind(*conditions)
    (sent["spec"].get("runPolicy") or sent["spec"])["managedBy"] = ELSEWHERE
    if kind is indexed:
        sent["status"]["ready"] = ready
    return sent


@pytest.mark.parametrize("kind", [job, indexed], ids=["pytorchjob", "indexed-job"])
def test_a_job_that_runs_on_another_cluster_is_seen_by_its_status_alone(kind: Callable[..., Object]) -> None:
    memory = JobMemory()
    seen = look([sent_away(kind)], [], memory)
    assert (seen.phase, ELSEWHERE in seen.message) == (P.PENDING, True)
    seen = look([sent_away(kind, "Running", ready=2)], [], memory, NOW + 5)
    assert (seen.phase, seen.started_at, seen.disrupted) == (P.RUNNING, NOW + 5, False)
    seen = look([sent_away(kind, "Failed")], [], memory)
    assert (seen.phase, seen.reason, seen.disrupted) == (P.FAILED, "JobFailed", False)


# ---- queues


@pytest.mark.parametrize("kind", [job, indexed], ids=["pytorchjob", "indexed-job"])
def test_what_a_queue_took_back_is_not_held_against_what_follows(kind: Callable[..., Object]) -> None:
    memory = JobMemory()
    look([kind("Running")], BOTH, memory)
    leaving = [failed(0, 143), pod(1, deletionTimestamp=GRACE)]
    assert look([kind("Suspended", suspend=True)], leaving, memory).phase is P.QUEUED
    anew = [pod(0, name="a"), pod(1, name="b")]
    seen = look([kind()], [*leaving, *anew], memory, NOW + 9)
    assert (seen.phase, seen.disrupted, seen.started_at) == (P.RUNNING, False, NOW + 9)
    seen = look([kind()], [anew[0], pod(1, name="c")], memory, NOW + 20)
    assert seen.disrupted, "a pod made anew is told even after that"
    seen = look(
        [kind("Failed")], [failed(0, 1) | {"metadata": anew[0]["metadata"]}, leaving[1]], memory, NOW + 30
    )
    assert seen.phase is P.TERMINATING, "a pod taken back may still live"
    assert (seen.reason, seen.exit_code) == ("TrainerFailed", 1)


# ---- jobs that somebody else deletes


def test_a_job_deleted_by_its_ttl_is_over_once_its_pods_are() -> None:
    memory, done = JobMemory(), [pod(0, "Succeeded"), pod(1, "Succeeded")]
    assert look([indexed("Complete")], done, memory).phase is P.SUCCEEDED
    assert look([indexed("Complete", deletionTimestamp=LONG_AGO)], done, memory).phase is P.TERMINATING
    assert look([], done, memory).phase is P.SUCCEEDED
    assert observe([], [], memory) == ()


@pytest.mark.parametrize(
    ("pods", "phase", "reason", "disrupted"),
    [
        ([pod(0), pod(1)], P.TERMINATING, "", False),
        ([pod(0, "Succeeded"), pod(1)], P.TERMINATING, "", False),
        ([pod(0, "Succeeded"), pod(1, "Succeeded")], P.SUCCEEDED, "", False),
        ([failed(0, 65, message=DATA), failed(1, 143)], P.FAILED, "UserDataError", False),
        ([taken(0, "EvictionByEvictionAPI"), pod(1, "Succeeded")], P.FAILED, "Disrupted", True),
        ([pod(0, "Succeeded", deletionTimestamp=GRACE)], P.TERMINATING, "", False),
    ],
    ids=["run", "one-runs", "succeeded", "failed", "evicted", "go"],
)
def test_orphaned_pods_are_a_job_until_they_end(
    pods: list[Object], phase: JobPhase, reason: str, disrupted: bool
) -> None:
    memory = JobMemory()
    assert look([job("Running")], [pod(0), pod(1)], memory).phase is P.RUNNING
    orphans = copy.deepcopy(pods)
    for one in orphans:
        del one["metadata"]["ownerReferences"]
    seen = look([], orphans, memory)
    assert (seen.phase, seen.reason, seen.disrupted) == (phase, reason, disrupted)


@pytest.mark.parametrize(
    "message",
    [
        'container has runAsNonRoot and image will run as root (pod: "a_b(c)", container: pytorch)',
        'container has runAsNonRoot and image has non-numeric user (nobody), cannot verify user is non-root (pod: "a")',
        'container\'s runAsUser breaks non-root policy (pod: "a_b(c)", container: pytorch)',
    ],
)
def test_an_image_that_runs_as_root_is_told_from_a_secret_that_is_missing(message: str) -> None:
    reason = "CreateContainerConfigError"
    states = {
        text: {"waiting": {"reason": reason, "message": text}} for text in (message, 'secret "s3" not found')
    }
    root, secret = (look([job()], [pod(0, "Pending", state=state)]).message for state in states.values())
    assert "a user other than root by number" in root
    assert "the Secret" not in root
    assert "create what it names: the Secret" in secret
