"""A job that does not start, gives no sign of life or is over its time is ended."""

from __future__ import annotations

from modelchain.reconcile.observation import Job, JobPhase
from modelchain.reconcile.retry import End, end_attempt
from modelchain.reconcile.stage_context import Look
from modelchain.status import StageStatus

STALLED = "Stalled"


def end_stalled(look: Look) -> StageStatus:
    """End the attempt if nothing of progress.json has changed for `retry.stallSeconds`, by the observer's clock, and
    a read of the store that began after that has shown it. An old read is no proof: with many chains the store is
    read less often than a trainer writes.
    """
    deadline = stall_deadline(look)
    if deadline is None or look.now < deadline or not look.read_since(deadline):
        return look.status
    seconds = look.stage.retry.stall_seconds
    text = f"no progress for {seconds} s (retry.stallSeconds): ended, to go on from the latest checkpoint"
    return end_attempt(look, STALLED, text, End.FAILURE)


def end_overdue(look: Look) -> StageStatus:
    """End the attempt if its job has run longer than `job.activeDeadlineSeconds`."""
    deadline = time_limit(look)
    if deadline is None or look.now < deadline:
        return look.status
    text = f"the job ran longer than {look.stage.job.active_deadline_seconds} s (job.activeDeadlineSeconds)"
    return end_attempt(look, "TimedOut", text, End.FAILURE)


def awaits_read(look: Look) -> bool:
    """Whether only a fresh read of the store tells if the attempt is hung."""
    deadline = stall_deadline(look)
    return deadline is not None and look.now >= deadline and not look.read_since(deadline)


def end_unstarted(look: Look) -> StageStatus:
    """End the attempt if its job has not started within `job.startDeadlineSeconds`: the pods that did start hold their
    nodes for nothing. Where some had no node yet, that is the cluster's fault and not the stage's.
    """
    deadline, job = start_deadline(look), look.current_job
    if deadline is None or job is None or look.now < deadline:
        return look.status
    text = (
        f"not all of its pods ran within {look.stage.job.start_deadline_seconds} s (job.startDeadlineSeconds)"
    )
    waited = f": {job.reason + ': ' if job.reason else ''}{job.message}" if job.message else ""
    end = End.DISRUPTION if job.unscheduled else End.FAILURE
    return end_attempt(look, "StartDeadlineExceeded", text + waited, end)


def start_deadline(look: Look) -> float | None:
    """When a job that has not started is ended; None without a limit."""
    job, limit = look.current_job, look.stage.job.start_deadline_seconds
    if look.status.finished or job is None or job.phase is not JobPhase.PENDING:
        return None
    return None if limit is None or job.pending_since is None else job.pending_since + limit


def stall_deadline(look: Look) -> float | None:
    """When the running job is taken for hung, if no progress is seen before.

    While the store can't be read nobody sees progress, and the trainer may be waiting for the store too:
    that time does not count.
    """
    job = _running(look)
    if job is None or job.started_at is None or not look.readable:
        return None
    since = max(job.started_at, job.progress_changed_at or 0.0, look.observed.store_readable_since)
    return since + look.stage.retry.stall_seconds


def time_limit(look: Look) -> float | None:
    """When the running job is over its time; None without a limit."""
    job, limit = _running(look), look.stage.job.active_deadline_seconds
    if job is None or job.started_at is None or not limit:
        return None
    return job.started_at + limit


def _running(look: Look) -> Job | None:
    if look.status.finished:
        return None
    job = look.current_job
    return job if job is not None and job.phase is JobPhase.RUNNING else None
