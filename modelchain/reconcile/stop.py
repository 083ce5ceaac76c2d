"""Which jobs must end: all that live, or whose pods do, but for the one whose attempt is open."""

from __future__ import annotations

from modelchain.reconcile.actions import StopJob
from modelchain.reconcile.completion import linger_deadline
from modelchain.reconcile.observation import Job
from modelchain.reconcile.stage_context import StageContext
from modelchain.status import StageReason


def jobs_to_stop(context: StageContext) -> list[StopJob]:
    """The jobs of a stage that must be ended now."""
    stops = []
    for job in context.jobs:
        reason = _why(context, job)
        if reason and job.stoppable:
            stops.append(StopJob(job, reason))
    return stops


def _why(context: StageContext, job: Job) -> str:
    status = context.status
    if job.digest != status.digest:
        return StageReason.SUPERSEDED
    if status.finished:
        return StageReason.STAGE_COMPLETE if context.now >= linger_deadline(context) else ""
    if job.attempt <= status.last_ended_attempt:
        ended = status.last_ended
        return ended.reason if ended is not None and ended.attempt == job.attempt else StageReason.SUPERSEDED
    if job.attempt < status.attempt:
        return StageReason.SUPERSEDED
    return ""
