"""An edit that changes a stage's digest starts it anew; attempts count on, so no job name comes twice."""

from __future__ import annotations

from modelchain.reconcile.look import Look
from modelchain.status import EndedAttempt, StageStatus
from modelchain.times import rfc3339

SUPERSEDED = "Superseded"


def carry_over(look: Look) -> StageStatus:
    """The status of the stage as it is asked for now, with every attempt counted that a job shows."""
    status = _for_digest(look)
    newest = max(look.jobs, key=lambda job: job.attempt, default=None)
    if newest is None or newest.attempt < status.attempt:
        return status
    if newest.digest != status.digest:
        if newest.attempt <= status.settled:
            return status
        return status.model_copy(
            update={
                "attempt": newest.attempt,
                "job": None,
                "last_ended": _superseded(newest.attempt, look.now),
            }
        )
    if newest.attempt > status.attempt or (status.job is None and newest.attempt > status.settled):
        started = status.started_at or rfc3339(newest.started_at or look.now)
        return status.model_copy(
            update={"attempt": newest.attempt, "job": newest.name, "started_at": started}
        )
    return status


def _for_digest(look: Look) -> StageStatus:
    status, digest = look.status, look.stage.digest
    if status.digest == digest:
        return status
    steps = look.stage.training.steps
    fresh = StageStatus(name=look.stage.name, digest=digest, attempt=status.attempt, steps=steps)
    if status.attempt == 0:
        return fresh
    return fresh.model_copy(update={"last_ended": _superseded(status.attempt, look.now)})


def _superseded(attempt: int, now: float) -> EndedAttempt:
    return EndedAttempt(
        attempt=attempt,
        reason=SUPERSEDED,
        message="the stage was edited: its weights would be others",
        counted=False,
        time=rfc3339(now),
    )
