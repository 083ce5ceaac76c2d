"""Why a job waits in a queue, from Workloads as Kueue 0.19 writes them."""

from __future__ import annotations

from typing import Any

import pytest

from modelchain.status import MAX_REASON
from modelchain_operator.kubernetes.api import Object
from modelchain_operator.kubernetes.kinds import PYTORCHJOB
from modelchain_operator.kueue.workloads import (
    LASTING_REASONS,
    WORKLOAD_WAIT_SECONDS,
    QueueWait,
    explain,
)

NAME = "squares-tiny-0a1b2c3d-1"
NO_QUOTA = (
    "couldn't assign flavors to pod set master: insufficient unused quota for nvidia.com/gpu in flavor a100, "
    "8 more needed"
)


def job(queue: str = "research") -> Object:
    metadata: Object = {"name": NAME, "namespace": "vision", "uid": "1"}
    if queue:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": queue}
    return {"apiVersion": PYTORCHJOB.api_version, "kind": PYTORCHJOB.kind, "metadata": metadata}


def condition(kind: str, status: str, reason: str, message: str) -> Object:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def workload(
    *conditions: Object, active: bool = True, made: str = "2026-11-24T09:00:00Z", **status: Any
) -> Object:
    name = f"pytorchjob-{NAME}-5d1c2"
    return {
        "metadata": {"name": name, "namespace": "vision", "creationTimestamp": made},
        "spec": {"active": active, "queueName": "research"},
        "status": {"conditions": list(conditions), **status},
    }


def explained(*workloads: Object, since_seconds: float = 0.0) -> QueueWait:
    return explain(workloads, job=job(), since_seconds=since_seconds)


def test_a_quota_that_is_used_up_passes_by_itself() -> None:
    wait = explained(workload(condition("QuotaReserved", "False", "Pending", NO_QUOTA)))
    assert wait == QueueWait("", f"{NAME} waits in LocalQueue research: {NO_QUOTA}")


def test_what_took_the_job_back_stands_before_what_it_waits_for_now() -> None:
    evicted = condition("Evicted", "True", "Preempted", "Preempted to accommodate a workload (UID: 7)")
    wait = explained(workload(evicted, condition("QuotaReserved", "False", "Pending", NO_QUOTA)))
    assert wait.message.endswith(f": Preempted to accommodate a workload (UID: 7); {NO_QUOTA}")
    same = condition("QuotaReserved", "False", "Pending", evicted["message"])
    assert explained(workload(evicted, same)).message.count("Preempted to accommodate") == 1
    before = {**evicted, "status": "False"}
    assert (
        "Preempted"
        not in explained(workload(before, condition("QuotaReserved", "False", "Pending", NO_QUOTA))).message
    )


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("Inadmissible", "Inadmissible"),
        ("Misconfigured", "Inadmissible"),
        ("Suspended", "QueueStopped"),
        ("ExceedsMaxQuota", "ExceedsMaxQuota"),
        ("NoMatchingFlavor", "NoMatchingFlavor"),
        ("WaitingForQuota", ""),
        ("WaitingForPreemptedWorkloads", ""),
    ],
)
def test_what_no_time_lets_go_has_a_reason_of_its_own(said: str, reason: str) -> None:
    wait = explained(workload(condition("QuotaReserved", "False", said, "flavor a100 is not there")))
    assert wait.reason == reason
    assert "flavor a100 is not there" in wait.message


@pytest.mark.parametrize("queue", ["LocalQueue research", "ClusterQueue gpus"])
def test_a_stopped_queue_is_told_from_one_that_is_wrong(queue: str) -> None:
    """By Kueue's words: its reason is the same, unless a feature gate is on."""
    for said in (f"{queue} is stopped", f"{queue} is inactive"):
        stopped = condition("QuotaReserved", "False", "Inadmissible", said)
        assert explained(workload(stopped)).reason == "QueueStopped"
    missing = condition("QuotaReserved", "False", "Inadmissible", f"{queue} is terminating or missing")
    assert explained(workload(missing)).reason == "Inadmissible"


def test_a_deactivated_workload_comes_with_the_command_that_activates_it() -> None:
    evicted = condition("Evicted", "True", "Deactivated", "The workload is deactivated")
    wait = explained(workload(evicted, active=False))
    assert wait.reason == "WorkloadDeactivated"
    assert evicted["message"] in wait.message
    assert "kubectl -n vision patch workloads.kueue.x-k8s.io" in wait.message
    assert '{"spec":{"active":true}}' in wait.message


@pytest.mark.parametrize("active", [False, True], ids=["deactivated", "activated-in-vain"])
def test_one_that_kueue_has_given_up_is_to_be_made_anew(active: bool) -> None:
    why = "The workload is deactivated due to exceeding the maximum number of re-queuing retries"
    reason = "DeactivatedDueToRequeuingLimitExceeded"
    conditions = (condition("Evicted", "True", reason, why), condition("Requeued", "False", reason, why))
    wait = explained(workload(*conditions, active=active))
    assert wait.reason == "WorkloadDeactivated"
    assert why in wait.message
    assert wait.message.endswith(f"kubectl -n vision delete workloads.kueue.x-k8s.io pytorchjob-{NAME}-5d1c2")


def test_checks_that_have_to_be_passed_are_named() -> None:
    checks = [
        {"name": "capacity", "state": "Pending", "message": "provisioning request is pending"},
        {"name": "budget", "state": "Ready", "message": "ok"},
    ]
    wait = explained(
        workload(condition("QuotaReserved", "True", "QuotaReserved", ""), admissionChecks=checks)
    )
    assert wait.message.endswith("admission check capacity is Pending (provisioning request is pending)")
    assert "budget" not in wait.message


def test_a_job_of_which_kueue_takes_no_notice_is_told_after_a_while() -> None:
    assert explained() == QueueWait()
    wait = explained(since_seconds=WORKLOAD_WAIT_SECONDS)
    assert wait.reason == "NoWorkload"
    assert "is its controller running" in wait.message


def test_what_somebody_else_has_suspended_is_not_kueues() -> None:
    assert explain([], job=job(queue=""), since_seconds=1000.0) == QueueWait()


def test_the_newest_workload_counts() -> None:
    old = workload(condition("QuotaReserved", "False", "Inadmissible", "old"))
    new = workload(condition("QuotaReserved", "False", "Pending", NO_QUOTA), made="2026-11-24T10:00:00Z")
    assert explained(old, new) == explained(new, old) == explained(new)


def test_reasons_fit_a_status() -> None:
    assert max(map(len, LASTING_REASONS)) <= MAX_REASON
