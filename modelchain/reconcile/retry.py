"""How an attempt ended, whether that counts, and when the next may start.

An attempt that failed is tried again whole, from its latest checkpoint, up to `retry.limit` times, with a
back-off that doubles. Eviction, preemption, node loss, a job deleted by hand and a lost race for the lease
do not count. Exit codes 64..78 are permanent. Each attempt is accounted for once: `StageStatus.last_ended`
names the last one that was.
"""

from __future__ import annotations

from modelchain.errors import ExitCode, is_permanent
from modelchain.reconcile.look import Look
from modelchain.reconcile.observation import Job, JobPhase, StoreTrouble
from modelchain.resolved import ResolvedRetry
from modelchain.status import EndedAttempt, StagePhase, StageStatus, cut
from modelchain.times import from_rfc3339, rfc3339

MAX_BACKOFF_SECONDS = 600
HELD_SECONDS = 10  # before another try, after somebody else was quicker to take the stage's lease
COMMIT_SECONDS = 60.0  # a job may have succeeded this long before its manifest must be seen


def ask_again(look: Look) -> StageStatus:
    """Editing the chain, or running it again, asks a failed stage again: its failures count afresh, without
    a wait.
    """
    status = look.status
    if not look.asked_again or status.finished:
        return status
    if status.phase is StagePhase.FAILED:
        return status.model_copy(
            update={"phase": StagePhase.PENDING, "reason": "", "message": "", "failures": 0, "retry_at": None}
        )
    return status.model_copy(update={"retry_at": None}) if status.retry_at else status


def settle(look: Look) -> StageStatus:
    """Account for the end of the current attempt, if its job has ended or has vanished."""
    status = look.status
    if status.finished or status.phase is StagePhase.FAILED or status.attempt <= status.settled:
        return status
    job = look.current_job
    if job is None:
        # Without a job ever seen, the attempt was intended but may never have been made: it is made under
        # its number.
        return status if status.job is None else _vanished(look)
    if job.phase is JobPhase.FAILED:
        # It may have failed right after it completed the stage: what the store says comes first.
        unknown = look.facts is None or look.facts.trouble is StoreTrouble.UNAVAILABLE
        return status if unknown else _failed(look, job)
    if job.phase is JobPhase.SUCCEEDED:
        return _succeeded_without_manifest(look, job)
    if job.disrupted and job.phase is not JobPhase.QUEUED:
        return _disrupted(look, job)
    return status


def end_attempt(
    look: Look, reason: str, message: str, *, counted: bool, exit_code: int | None = None, wait: float = 0.0
) -> StageStatus:
    """The status once the current attempt has been accounted for. `wait` seconds pass before the next, or
    the back-off.
    """
    status, retry = look.status, look.stage.retry
    failures = status.failures + counted
    ended = EndedAttempt(
        attempt=status.attempt,
        reason=cut(reason, 64),
        message=cut(message),
        exit_code=exit_code,
        counted=counted,
        time=rfc3339(look.now),
    )
    update: dict[str, object] = {
        "last_ended": ended,
        "failures": failures,
        "job": None,
        "activity": None,
        "samples_per_second": None,
        "eta_seconds": None,
    }
    if counted and exit_code is not None and is_permanent(exit_code):
        return _give_up(status, update, ended.reason, f"attempt {ended.attempt}: {ended.message}")
    if failures > retry.limit:
        text = (
            f"attempt {ended.attempt} was failure {failures}, retry.limit is {retry.limit}: {ended.message}"
        )
        return _give_up(status, update, "RetriesExhausted", text)
    wait = backoff_seconds(retry, failures) if counted else wait
    return status.model_copy(update={**update, "retry_at": rfc3339(look.now + wait) if wait > 0 else None})


def backoff_seconds(retry: ResolvedRetry, failures: int) -> int:
    """The wait after that many failures: `retry.backoffSeconds`, doubled each time, at most 600 s."""
    if failures < 1:
        return 0
    doublings = min(failures - 1, 32)  # 2**32 seconds are over the bound from one second on
    return min(MAX_BACKOFF_SECONDS, retry.backoff_seconds * 2**doublings)


def retry_due(status: StageStatus) -> float | None:
    """When the next attempt may start, seconds since the epoch; None: at once."""
    return from_rfc3339(status.retry_at) if status.retry_at else None


def commit_deadline(look: Look) -> float | None:
    """Until when a job that has succeeded may leave its manifest to be seen. An old look at the store is no
    failure.
    """
    job = look.current_job
    if look.status.finished or job is None or job.phase is not JobPhase.SUCCEEDED or job.ended_at is None:
        return None
    return max(job.ended_at, look.observed.store_readable_since) + COMMIT_SECONDS


def _failed(look: Look, job: Job) -> StageStatus:
    code = job.exit_code
    if job.disrupted:
        return _disrupted(look, job, exit_code=code)
    if code == ExitCode.HELD:
        text = job.message or "somebody else trains this stage"
        return end_attempt(look, "LeaseHeld", text, counted=False, exit_code=code, wait=HELD_SECONDS)
    reason = job.reason or "TrainerFailed"
    text = job.message or f"{job.name} ended with exit code {code if code is not None else 'unknown'}"
    return end_attempt(look, reason, text, counted=True, exit_code=code)


def _disrupted(look: Look, job: Job, *, exit_code: int | None = None) -> StageStatus:
    text = job.message or "a pod was evicted, preempted or lost"
    return end_attempt(look, "Disrupted", text, counted=False, exit_code=exit_code)


def _vanished(look: Look) -> StageStatus:
    """The job is gone, and nobody saw how it ended: failure.json may still tell."""
    status, facts = look.status, look.facts
    if facts is None or facts.trouble is not None:
        return status  # its end may be written down where nobody can read it now; there is no hurry
    failure = facts.failure if facts.failure_attempt == status.attempt else None
    if failure is not None and is_permanent(failure.exit_code):
        return end_attempt(look, failure.reason, failure.message, counted=True, exit_code=failure.exit_code)
    text = f"job {status.job} is gone: deleted, or lost with its node or its runner"
    return end_attempt(look, "JobVanished", text, counted=False)


def _succeeded_without_manifest(look: Look, job: Job) -> StageStatus:
    deadline = commit_deadline(look)
    if not look.readable or deadline is None or look.now < deadline:
        return look.status
    text = (
        f"{job.name} ended with exit code 0 but {look.stage.folder}/manifest.json is not there: "
        "is the job's command the trainer, and its store the chain's?"
    )
    return end_attempt(look, "ManifestMissing", text, counted=True, exit_code=0)


def _give_up(status: StageStatus, update: dict[str, object], reason: str, message: str) -> StageStatus:
    final = {"phase": StagePhase.FAILED, "reason": reason, "message": cut(message), "retry_at": None}
    return status.model_copy(update={**update, **final})
