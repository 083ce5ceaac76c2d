"""An edit that changes a stage's digest restarts it; one that changes its job alone replaces a job that has not
started. Attempts count on, so no job name is used twice.
"""

from __future__ import annotations

from modelchain.reconcile.observation import JobPhase
from modelchain.reconcile.retry import End, end_attempt
from modelchain.reconcile.stage_context import StageContext
from modelchain.status import EndedAttempt, StageReason, StageStatus
from modelchain.times import rfc3339

_EDITED = "the stage was edited: its weights would be others"


def carry_over(context: StageContext) -> StageStatus:
    """The status of the stage as the spec has it now, with every attempt counted of which there is a job."""
    status = context.status
    if status.digest != context.stage.digest:
        status = restarted(context, StageReason.SUPERSEDED, _EDITED)
    newest = max(context.jobs, key=lambda job: job.attempt, default=None)
    if newest is None or newest.attempt < status.attempt:
        return status
    if newest.digest != status.digest:
        if newest.attempt <= status.last_ended_attempt:
            return status
        return status.model_copy(
            update={
                "attempt": newest.attempt,
                "job": None,
                "last_ended": ended(newest.attempt, StageReason.SUPERSEDED, _EDITED, context.now),
            }
        )
    if newest.attempt > status.attempt or (status.job is None and newest.attempt > status.last_ended_attempt):
        started = status.started_at or rfc3339(newest.started_at or context.now)
        return status.model_copy(
            update={"attempt": newest.attempt, "job": newest.name, "started_at": started}
        )
    return status


def end_outdated(context: StageContext) -> StageStatus:
    """End the attempt if its job does not run, and would be another one today: an image, a Secret or a request that
    can't be had is corrected by an edit, which the job that waits for it would never see. One that runs goes on, until
    its queue takes it back.
    """
    job = context.current_job
    if context.status.finished or job is None or not job.outdated:
        return context.status
    if job.phase not in (JobPhase.PENDING, JobPhase.QUEUED):
        return context.status
    text = "its job was edited, and is made anew as the chain is now"
    return end_attempt(context, StageReason.SUPERSEDED, text, End.REQUESTED)


def restarted(context: StageContext, reason: str, message: str) -> StageStatus:
    """The status of a stage that begins again: nothing of it is left but the number of its attempts, the last
    of which has ended for `reason`, uncounted.
    """
    stage, attempt = context.stage, context.status.attempt
    return StageStatus(
        name=stage.name,
        digest=stage.digest,
        attempt=attempt,
        steps=stage.training.steps,
        last_ended=ended(attempt, reason, message, context.now) if attempt else None,
    )


def ended(attempt: int, reason: str, message: str, now: float) -> EndedAttempt:
    """The end of an attempt that an edit has superseded."""
    return EndedAttempt(attempt=attempt, reason=reason, message=message, counted=False, time=rfc3339(now))
