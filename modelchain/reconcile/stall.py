"""A job that does not start, makes no progress or exceeds its time is ended."""

from __future__ import annotations

from modelchain.reconcile.observation import Job, JobPhase
from modelchain.reconcile.retry import End, end_attempt
from modelchain.reconcile.stage_context import StageContext
from modelchain.status import StageReason, StageStatus


def end_stalled(context: StageContext) -> StageStatus:
    """End the attempt if nothing of progress.json has changed for `retry.stallSeconds`, by the observer's clock, and
    a read of the store that began after that has shown it. An old read is no proof: with many chains the store is
    read less often than a trainer writes.
    """
    deadline = stall_deadline(context)
    if deadline is None or context.now < deadline or not context.read_since(deadline):
        return context.status
    seconds = context.stage.retry.stall_seconds
    text = f"no progress for {seconds} s (retry.stallSeconds): ended, to go on from the latest checkpoint"
    return end_attempt(context, StageReason.STALLED, text, End.FAILURE)


def end_overdue(context: StageContext) -> StageStatus:
    """End the attempt if its job has run longer than `job.activeDeadlineSeconds`."""
    deadline = time_limit(context)
    if deadline is None or context.now < deadline:
        return context.status
    text = (
        f"the job ran longer than {context.stage.job.active_deadline_seconds} s (job.activeDeadlineSeconds)"
    )
    return end_attempt(context, StageReason.TIMED_OUT, text, End.FAILURE)


def awaits_read(context: StageContext) -> bool:
    """Whether only a fresh read of the store tells if the attempt is hung."""
    deadline = stall_deadline(context)
    return deadline is not None and context.now >= deadline and not context.read_since(deadline)


def end_unstarted(context: StageContext) -> StageStatus:
    """End the attempt if its job has not started within `job.startDeadlineSeconds`: the pods that did start hold their
    nodes for nothing. Where some had no node yet, the cluster is to blame, not the stage.
    """
    deadline, job = start_deadline(context), context.current_job
    if deadline is None or job is None or context.now < deadline:
        return context.status
    text = f"not all of its pods ran within {context.stage.job.start_deadline_seconds} s (job.startDeadlineSeconds)"
    waited = f": {job.reason + ': ' if job.reason else ''}{job.message}" if job.message else ""
    end = End.DISRUPTION if job.unscheduled else End.FAILURE
    return end_attempt(context, StageReason.START_DEADLINE_EXCEEDED, text + waited, end)


def start_deadline(context: StageContext) -> float | None:
    """When a job that has not started is ended; None without a limit."""
    job, limit = context.current_job, context.stage.job.start_deadline_seconds
    if context.status.finished or job is None or job.phase is not JobPhase.PENDING:
        return None
    return None if limit is None or job.pending_since is None else job.pending_since + limit


def stall_deadline(context: StageContext) -> float | None:
    """When the running job counts as hung, if no progress is seen before.

    While the store can't be read nobody sees progress, and the trainer may be waiting for the store too:
    that time does not count.
    """
    job = _running(context)
    if job is None or job.started_at is None or not context.readable:
        return None
    since = max(job.started_at, job.progress_changed_at or 0.0, context.observed.store_readable_since)
    return since + context.stage.retry.stall_seconds


def time_limit(context: StageContext) -> float | None:
    """When the running job exceeds its time; None without a limit."""
    job, limit = _running(context), context.stage.job.active_deadline_seconds
    if job is None or job.started_at is None or not limit:
        return None
    return job.started_at + limit


def _running(context: StageContext) -> Job | None:
    if context.status.finished:
        return None
    job = context.current_job
    return job if job is not None and job.phase is JobPhase.RUNNING else None
