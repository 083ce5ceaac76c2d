"""Jobs whose deletion is stuck: something holds them that the operator can't end.

A node that does not answer may still run a pod; an object may have a finalizer that nobody removes. Both are
reported, and neither is taken for an end.
"""

from __future__ import annotations

from modelchain.reconcile.observation import Job, JobPhase
from modelchain.status import StageReason

STUCK_SECONDS = 600.0  # a job that was deleted this long ago, grace periods included, does not go by itself


def stuck_at(job: Job) -> float | None:
    """When a job that is being deleted counts as stuck; None if it is not being deleted."""
    if job.phase is not JobPhase.TERMINATING or job.deleted_at is None:
        return None
    return job.deleted_at + STUCK_SECONDS


def is_blocked(job: Job, now: float) -> bool:
    """Whether its end waits for a person."""
    return why_blocked(job, now) != ""


def why_blocked(job: Job, now: float) -> str:
    """The reason, in one word, for which its end waits for a person; empty if it does not."""
    if job.blocked_by_node:
        return StageReason.NODE_UNREACHABLE
    at = stuck_at(job)
    return StageReason.DELETION_STUCK if at is not None and now >= at else ""


def blocked_text(job: Job) -> str:
    """What holds it and what to do."""
    if job.blocked_by_node:
        return (
            f"node {job.blocked_by_node} does not answer and still holds a pod of {job.name}: bring it back, or "
            "delete the node object (or force-delete the pod) once its machine is certainly off"
        )
    held = job.held_by or "its pods"
    return f"{job.name} was deleted long ago and does not go: {held} holds it; have that finish, or end it by hand"
