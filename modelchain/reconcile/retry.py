"""How an attempt ended, whether that counts, and when the next may start.

An attempt that failed is tried again whole, from its latest checkpoint, up to `retry.limit` times, with a
back-off that doubles. Eviction, preemption, node loss, a job deleted by hand and a lost race for the lease are
no failures; they have a back-off and a budget of their own, `retry.disruptionLimit`, which is whole again with each
new checkpoint: whatever ends attempts, they are neither retried without a pause nor for ever. Exit codes 64..78 are
permanent. The end of each attempt is recorded once: `StageStatus.last_ended` names the last one that was.
"""

from __future__ import annotations

from enum import Enum

from modelchain.artifacts import Failure
from modelchain.errors import ExitCode, is_permanent
from modelchain.reconcile.observation import Job, JobPhase, StoreProblem
from modelchain.reconcile.stage_context import StageContext
from modelchain.resolved import ResolvedRetry
from modelchain.status import EndedAttempt, StagePhase, StageReason, StageStatus, cut, word
from modelchain.times import from_rfc3339, rfc3339

MAX_BACKOFF_SECONDS = 600
FIRST_DISRUPTION_SECONDS = 1  # before another try after a disruption; doubled with each that follows
HELD_SECONDS = 10  # before another try, after another trainer has taken the stage's lease first
COMMIT_SECONDS = 60.0  # a job may have succeeded this long before its manifest must be seen


class End(Enum):
    """What the end of an attempt counts as."""

    FAILURE = "failure"  # against retry.limit
    DISRUPTION = "disruption"  # against retry.disruptionLimit
    REQUESTED = "requested"  # a person asked for it: against nothing


def reset_failures(context: StageContext) -> StageStatus:
    """Editing the chain, or running it again, retries a failed stage: its failures count from 0, and nothing
    is waited for.
    """
    status = context.status
    if not context.spec_changed or status.finished:
        return status
    if status.phase is StagePhase.FAILED:
        return status.model_copy(
            update={
                "phase": StagePhase.PENDING,
                "reason": "",
                "message": "",
                "failures": 0,
                "disruptions": 0,
                "retry_at": None,
            }
        )
    return status.model_copy(update={"retry_at": None, "disruptions": 0})


def record_attempt_end(context: StageContext) -> StageStatus:
    """Record the end of the current attempt, if its job has ended or has vanished."""
    status = context.status
    if status.finished or status.phase is StagePhase.FAILED or status.attempt <= status.last_ended_attempt:
        return status
    job = context.current_job
    if job is None:
        # Without a job ever seen or made, the attempt was intended and nothing more: its job is made under its number.
        known = status.job is not None or (status.name, status.attempt) in context.observed.made
        return _vanished(context) if known else status
    if job.phase is JobPhase.FAILED:
        # It may have failed right after it completed the stage: what the store says comes first.
        unknown = context.facts is None or context.facts.problem is StoreProblem.UNAVAILABLE
        return status if unknown else _failed(context, job)
    if job.phase is JobPhase.SUCCEEDED:
        return _succeeded_without_manifest(context, job)
    if job.disrupted and job.phase is not JobPhase.QUEUED:
        return _disrupted(context, job)
    return status


def end_attempt(
    context: StageContext,
    reason: str,
    message: str,
    end: End,
    *,
    exit_code: int | None = None,
    at_least: float = 0.0,
) -> StageStatus:
    """The status with the end of the current attempt recorded. The next one waits for the back-off, and
    `at_least` that many seconds.
    """
    retry = context.stage.retry
    status = with_end(context.status, reason, message, end, now=context.now, exit_code=exit_code)
    ended, failures, disruptions = status.last_ended, status.failures, status.disruptions
    assert ended is not None
    if end is End.FAILURE and exit_code is not None and is_permanent(exit_code):
        return _give_up(status, ended.reason, f"attempt {ended.attempt}: {ended.message}")
    if end is End.FAILURE and failures > retry.limit:
        text = (
            f"attempt {ended.attempt} was failure {failures}, retry.limit is {retry.limit}: {ended.message}"
        )
        return _give_up(status, StageReason.RETRIES_EXHAUSTED, text)
    if end is End.DISRUPTION and disruptions > retry.disruption_limit:
        text = (
            f"attempt {ended.attempt} was disruption {disruptions} since the last new checkpoint, "
            f"retry.disruptionLimit is {retry.disruption_limit}: {ended.reason}: {ended.message}"
        )
        return _give_up(status, StageReason.DISRUPTIONS_EXHAUSTED, text)
    wait = 0.0
    if end is not End.REQUESTED:
        wait = max(at_least, _wait_after(retry, end, failures, disruptions))
    return status.model_copy(update={"retry_at": rfc3339(context.now + wait) if wait > 0 else None})


def with_end(
    status: StageStatus, reason: str, message: str, end: End, *, now: float, exit_code: int | None = None
) -> StageStatus:
    """The status with the end of its attempt recorded, and nothing decided about the next."""
    before = (status.last_ended.checkpoint_step if status.last_ended is not None else None) or 0
    checkpoint = max(status.checkpoint_step or 0, before)
    ended = EndedAttempt(
        attempt=status.attempt,
        reason=word(reason),
        message=cut(message),
        exit_code=exit_code,
        counted=end is End.FAILURE,
        checkpoint_step=checkpoint or None,
        time=rfc3339(now),
    )
    return status.model_copy(
        update={
            "last_ended": ended,
            "failures": status.failures + (end is End.FAILURE),
            "disruptions": (0 if checkpoint > before else status.disruptions) + (end is End.DISRUPTION),
            "job": None,
            "activity": None,
            "samples_per_second": None,
            "eta_seconds": None,
        }
    )


def _wait_after(retry: ResolvedRetry, end: End, failures: int, disruptions: int) -> int:
    return backoff_seconds(retry, failures) if end is End.FAILURE else disruption_seconds(disruptions)


def backoff_seconds(retry: ResolvedRetry, failures: int) -> int:
    """The wait after that many failures: `retry.backoffSeconds`, doubled each time, at most 600 s."""
    return _doubled(retry.backoff_seconds, failures)


def disruption_seconds(disruptions: int) -> int:
    """The wait after that many disruptions in a row: a second, doubled each time, at most 600 s."""
    return _doubled(FIRST_DISRUPTION_SECONDS, disruptions)


def retry_due(status: StageStatus, now: float) -> float | None:
    """When the next attempt may start, seconds since the epoch; None: at once. Nobody waits longer than the longest
    back-off: a time further ahead was written by a clock that was wrong.
    """
    due = from_rfc3339(status.retry_at) if status.retry_at else None
    return None if due is None or due - now > MAX_BACKOFF_SECONDS else due


def commit_deadline(context: StageContext) -> float | None:
    """Until when a job that has succeeded may leave its manifest to be seen. An old look at the store is no
    failure.
    """
    job = context.current_job
    if context.status.finished or job is None or job.phase is not JobPhase.SUCCEEDED or job.ended_at is None:
        return None
    return max(job.ended_at, context.observed.store_readable_since) + COMMIT_SECONDS


def awaits_read(context: StageContext) -> bool:
    """Whether only a fresh read of the store tells if a job that has succeeded has left its manifest."""
    deadline = commit_deadline(context)
    return (
        context.readable
        and deadline is not None
        and context.now >= deadline
        and not context.read_since(deadline)
    )


def _failed(context: StageContext, job: Job) -> StageStatus:
    code, reason, text = job.exit_code, job.reason, job.message
    recorded = _recorded_failure(context) if code is None else None
    if recorded is not None and (is_permanent(recorded.exit_code) or not job.disrupted):
        code, reason, text = (
            recorded.exit_code,
            recorded.reason,
            recorded.message,
        )  # no pod is left that could say
    elif job.disrupted:
        return _disrupted(context, job, exit_code=code)
    if code == ExitCode.HELD:
        text = text or "somebody else trains this stage"
        return end_attempt(
            context, StageReason.LEASE_HELD, text, End.DISRUPTION, exit_code=code, at_least=HELD_SECONDS
        )
    text = text or f"{job.name} ended with exit code {code if code is not None else 'unknown'}"
    if job.unscheduled and (code is None or not is_permanent(code)):
        waited = f"not all pods of {job.name} had a node before its first one ended: {text}"
        return end_attempt(context, StageReason.UNSCHEDULABLE, waited, End.DISRUPTION, exit_code=code)
    return end_attempt(context, reason or StageReason.TRAINER_FAILED, text, End.FAILURE, exit_code=code)


def _disrupted(context: StageContext, job: Job, *, exit_code: int | None = None) -> StageStatus:
    text = job.message or "a pod was evicted, preempted or lost"
    return end_attempt(context, StageReason.DISRUPTED, text, End.DISRUPTION, exit_code=exit_code)


def _vanished(context: StageContext) -> StageStatus:
    """The job is gone, and its end was not seen: failure.json may still say why."""
    status, facts = context.status, context.facts
    if facts is None or facts.problem is not None:
        return status  # why it ended may be in the store, which can't be read now
    failure = _recorded_failure(context)
    if failure is not None and is_permanent(failure.exit_code):
        return end_attempt(context, failure.reason, failure.message, End.FAILURE, exit_code=failure.exit_code)
    return end_attempt(context, StageReason.JOB_VANISHED, vanished_text(status), End.DISRUPTION)


def vanished_text(status: StageStatus) -> str:
    """That the job of its attempt is gone, for people."""
    return f"job {status.job or 'just made'} is gone: deleted, or lost with its node or its runner"


def _recorded_failure(context: StageContext) -> Failure | None:
    """What the current attempt itself wrote about its end, into the store."""
    facts = context.facts
    if facts is None or facts.problem is not None or facts.failure_attempt != context.status.attempt:
        return None
    return facts.failure


def _succeeded_without_manifest(context: StageContext, job: Job) -> StageStatus:
    deadline = commit_deadline(context)
    if deadline is None or context.now < deadline or not context.read_since(deadline):
        return context.status
    text = (
        f"{job.name} ended with exit code 0 but {context.stage.folder}/manifest.json is not there: "
        "is the job's command the trainer, and its store the chain's?"
    )
    return end_attempt(context, StageReason.MANIFEST_MISSING, text, End.FAILURE, exit_code=0)


def _give_up(status: StageStatus, reason: str, message: str) -> StageStatus:
    final = {"phase": StagePhase.FAILED, "reason": reason, "message": cut(message), "retry_at": None}
    return status.model_copy(update=final)


def _doubled(seconds: int, times: int) -> int:
    if times < 1:
        return 0
    doublings = min(times - 1, 32)  # 2**32 seconds are over the bound from one second on
    return min(MAX_BACKOFF_SECONDS, seconds * 2**doublings)
