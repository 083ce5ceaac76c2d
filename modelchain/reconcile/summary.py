"""The summary of a chain's status: phase, stage, progress, time to go, accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from modelchain.acceleration import Acceleration
from modelchain.evaluations import higher_is_better, leading_metrics
from modelchain.reconcile.observation import Job, JobPhase, Observation
from modelchain.reconcile.stage_context import StageContext
from modelchain.reconcile.stuck_jobs import blocked_text, is_blocked, why_blocked
from modelchain.resolved import ResolvedStage
from modelchain.spec import EvaluationSpec
from modelchain.status import (
    ChainPhase,
    Columns,
    Quality,
    StagePhase,
    StageReason,
    StageStatus,
    cut,
    whole_seconds,
    word,
)

T = TypeVar("T")

_OF_JOB = {
    JobPhase.PENDING: (StagePhase.PENDING, StageReason.JOB_PENDING),
    JobPhase.QUEUED: (StagePhase.QUEUED, StageReason.QUEUED),
    JobPhase.RUNNING: (StagePhase.RUNNING, StageReason.RUNNING),
    JobPhase.SUCCEEDED: (StagePhase.RUNNING, StageReason.COMMITTING),  # its manifest was not seen yet
    JobPhase.FAILED: (StagePhase.RUNNING, StageReason.ENDING),
    JobPhase.TERMINATING: (StagePhase.RUNNING, StageReason.STOPPING),
}


@dataclass(frozen=True)
class Headline:
    """The figures of the chain as a whole."""

    stage: str | None
    step: int | None
    steps: int | None
    eta_seconds: int | None
    quality: Quality | None
    top1: float | None


def show_job(context: StageContext) -> StageStatus:
    """The status of a stage whose attempt is open, as its job has it."""
    job = context.current_job
    if context.status.finished or context.status.phase is StagePhase.FAILED or job is None:
        return context.status
    phase, reason = _OF_JOB[job.phase]
    if blocked := why_blocked(job, context.now):
        reason = blocked
    elif job.phase in (JobPhase.PENDING, JobPhase.QUEUED) and job.reason:  # why it does not start
        reason = word(job.reason)
    return context.status.model_copy(
        update={"phase": phase, "reason": reason, "message": cut(_job_message(context, job))}
    )


def chain_phase(contexts: Sequence[StageContext], *, suspended: bool) -> ChainPhase:
    """The chain's phase, from its stages'."""
    phases = {context.status.phase for context in contexts}
    by_name = {context.stage.name: context for context in contexts}
    unfinished = [context for context in contexts if not context.status.finished]
    if not unfinished:
        return ChainPhase.COMPLETE
    if all(
        context.status.phase is StagePhase.FAILED or failed_ancestor(context, by_name)
        for context in unfinished
    ):
        return ChainPhase.FAILED
    if suspended:
        return ChainPhase.SUSPENDED
    if phases & {StagePhase.RUNNING, StagePhase.RETRYING}:
        return ChainPhase.RUNNING
    if StagePhase.QUEUED in phases:
        return ChainPhase.QUEUED
    return ChainPhase.PENDING


def failed_ancestor(context: StageContext, contexts: Mapping[str, StageContext]) -> str | None:
    """A stage that this one grows out of or learns from, directly or not, and that has failed for good."""
    waiting = [other.name for other in context.stage.needs]
    known = set(waiting)  # ways of needing a stage are many where each has a teacher beside its predecessor
    while waiting:
        other = contexts[waiting.pop()]
        if other.status.phase is StagePhase.FAILED:
            return other.stage.name
        further = [one.name for one in other.stage.needs if one.name not in known]
        known.update(further)
        waiting += further
    return None


def chain_message(
    contexts: Sequence[StageContext],
    phase: ChainPhase,
    baselines: Sequence[StageContext] = (),
    *,
    remains: str = "",
) -> str:
    """One sentence on the stage that matters most now, and one on what `remains` of removed stages."""
    return cut("; ".join(part for part in (_stage_message(contexts, phase, baselines), remains) if part))


def _stage_message(
    contexts: Sequence[StageContext], phase: ChainPhase, baselines: Sequence[StageContext]
) -> str:
    if phase is ChainPhase.COMPLETE:
        alone = [context.stage.name for context in baselines if context.status.phase is StagePhase.RUNNING]
        after = f"; {', '.join(alone)} is trained to compare" if alone else ""
        return f"all {len(contexts)} stages are complete{after}"
    current = _current(contexts, StagePhase.FAILED, StagePhase.RUNNING)
    text = current.status.message if current is not None else ""
    return f"stage {current.stage.name}: {text}" if current is not None and text else ""


def headline(contexts: Sequence[StageContext], observed: Observation) -> Headline:
    """The stage that is worked on (the last one when all are done), how far it is, and how good."""
    current = _current(contexts, StagePhase.RUNNING, StagePhase.FAILED) or contexts[-1]
    status = current.status
    steps = status.steps if status.step is not None else None
    eta = _eta(contexts, current, observed) if status.phase is StagePhase.RUNNING else None
    return Headline(
        stage=current.stage.name,
        step=status.step if steps else None,
        steps=steps or None,
        eta_seconds=whole_seconds(eta),
        quality=_quality(contexts),
        top1=_latest(contexts, lambda context: top1_of(context.stage, context.status.metrics)),
    )


def columns(headline: Headline, *, planned: float | None, measured: Acceleration | None) -> Columns:
    """The same as texts, for the columns of kubectl."""
    seconds, top1 = headline.eta_seconds, headline.top1
    return Columns(
        progress=None if headline.step is None else f"{headline.step}/{headline.steps}",
        eta=None if seconds is None else duration(seconds),
        top1=None if top1 is None else cut(percent(top1), 16),
        speedup_planned=None if planned is None else cut(times(planned), 16),
        speedup_measured=None if measured is None else cut(str(measured), 16),
    )


def top1_of(stage: ResolvedStage, metrics: Mapping[str, float]) -> float | None:
    """Accuracy on the stage's first zero-shot set, if it was measured."""
    return top1_on(stage.evaluation, metrics)


def top1_on(evaluation: Sequence[EvaluationSpec], metrics: Mapping[str, float]) -> float | None:
    """The most telling accuracy of these sets, if it was measured."""
    first = next((name for name in leading_metrics(evaluation) if name.endswith("/top1")), None)
    return None if first is None else metrics.get(first)


def percent(share: float) -> str:
    """A share of 1 in one word, as columns need it: 93.3%."""
    return f"{share:.1%}"


def times(factor: float) -> str:
    """How many times as much: 2.09x."""
    return f"{factor:.2f}x"


def duration(seconds: float) -> str:
    """A length of time as kubectl writes ages: 45s, 12m, 2h05m, 3d04h."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if minutes < 60:
        return f"{minutes}m"
    if hours < 24:
        return f"{hours}h{minutes % 60:02d}m"
    return f"{days}d{hours % 24:02d}h"


def _job_message(context: StageContext, job: Job) -> str:
    if is_blocked(job, context.now):
        return blocked_text(job)
    if job.phase is JobPhase.TERMINATING:
        return f"{job.name} is being ended"
    if job.phase is JobPhase.QUEUED:
        return job.message or f"a queue holds {job.name}"
    if job.phase is JobPhase.PENDING:
        return job.message or f"{job.name} has not started yet"
    return context.facts.message if context.facts is not None and context.facts.problem is not None else ""


def _current(contexts: Sequence[StageContext], *phases: StagePhase) -> StageContext | None:
    """The first stage in one of these phases, else the first that is not finished."""
    open_stages = [context for context in contexts if not context.status.finished]
    for wanted in phases:
        found = next((context for context in open_stages if context.status.phase is wanted), None)
        if found is not None:
            return found
    return open_stages[0] if open_stages else None


def _eta(contexts: Sequence[StageContext], current: StageContext, observed: Observation) -> float | None:
    """Seconds to the end of the chain: the running stage's own, and the others' cost at the running stage's
    speed.
    """
    status, training = current.status, current.stage.training
    if status.eta_seconds is None:
        return None
    others = [
        context.stage.name for context in contexts if context is not current and not context.status.finished
    ]
    if not others:
        return status.eta_seconds
    cost = observed.macs.get(current.stage.name)
    samples = training.steps * training.global_batch_size
    if not cost or not status.samples_per_second or any(name not in observed.macs for name in others):
        return None
    macs_per_second = cost / samples * status.samples_per_second
    if not macs_per_second > 0:
        return None
    return status.eta_seconds + sum(observed.macs[name] for name in others) / macs_per_second


def _quality(contexts: Sequence[StageContext]) -> Quality | None:
    """By the first leading metric of the latest stage that has one."""

    def of(context: StageContext) -> Quality | None:
        values = context.status.metrics
        metric = next((one for one in leading_metrics(context.stage.evaluation) if one in values), None)
        if metric is None:
            return None
        return Quality(metric=metric, value=values[metric], higher_is_better=higher_is_better(metric))

    return _latest(contexts, of)


def _latest(contexts: Sequence[StageContext], of: Callable[[StageContext], T | None]) -> T | None:
    """The figure of the latest stage that has one."""
    found = (of(context) for context in reversed(contexts) if context.status.phase is not StagePhase.PENDING)
    return next((value for value in found if value is not None), None)
