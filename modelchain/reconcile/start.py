"""Which stages start their next attempt now, and why the others do not.

The checks are in one list, in the order in which their reasons matter to a person. A stage starts when none
holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from modelchain.reconcile.actions import Action, RemoveJob, StartJob
from modelchain.reconcile.completion import is_missing, job_lingers, was_missing
from modelchain.reconcile.foreign_lease import foreign_lease
from modelchain.reconcile.observation import Job, Observation
from modelchain.reconcile.retry import retry_due
from modelchain.reconcile.stage_context import StageContext
from modelchain.reconcile.stuck_jobs import blocked_text, is_blocked, why_blocked
from modelchain.reconcile.summary import failed_ancestor
from modelchain.status import StagePhase, StageReason, StageStatus, cut
from modelchain.times import rfc3339


@dataclass(frozen=True)
class Hold:
    """Why a stage does not start now."""

    phase: StagePhase
    reason: str
    message: str


_Check: TypeAlias = "Callable[[StageContext, Branches], Hold | None]"


@dataclass(frozen=True)
class Starts:
    statuses: dict[
        str, StageStatus
    ]  # of the stages that have neither finished, nor failed, nor an attempt that runs
    actions: tuple[Action, ...]


@dataclass(frozen=True)
class Branches:
    """What a stage's start depends on outside of itself."""

    contexts: Mapping[str, StageContext]
    observed: Observation
    missing: tuple[str, ...]  # finished stages whose artifacts have vanished
    limit: int | None  # of jobs at once; None: as many as there are branches
    superseded: tuple[Job, ...]  # of stages that were removed, renamed or edited, and that may live
    started: list[str] = field(default_factory=list)  # in this pass

    @property
    def running(self) -> int:
        """Jobs of the chain that may live, those asked for in this pass included."""
        return sum(job.live for job in self.observed.jobs) + len(self.started)


def start_stages(
    contexts: Mapping[str, StageContext],
    observed: Observation,
    *,
    at_once: int | None = None,
    superseded: tuple[Job, ...] = (),
) -> Starts:
    """Start what can start, `at_once` jobs at a time; say of every other idle stage what it waits for."""
    branches = Branches(contexts, observed, _missing(contexts.values()), at_once, superseded)
    return _start(contexts, branches, _CHECKS)


def start_baselines(
    contexts: Mapping[str, StageContext],
    chain: Mapping[str, StageContext],
    observed: Observation,
    *,
    at_once: int,
    superseded: tuple[Job, ...] = (),
) -> Starts:
    """The same of models that are trained alone once all stages of `chain` are complete, `at_once` at a time: one that
    has failed holds up no other.
    """
    branches = Branches(chain, observed, _missing(chain.values()), at_once, superseded)
    return _start(contexts, branches, (_chain_incomplete, *_CHECKS))


def _missing(contexts: Iterable[StageContext]) -> tuple[str, ...]:
    return tuple(context.stage.name for context in contexts if is_missing(context) or was_missing(context))


def _start(contexts: Mapping[str, StageContext], branches: Branches, checks: Sequence[_Check]) -> Starts:
    statuses: dict[str, StageStatus] = {}
    actions: list[Action] = []
    for name, context in contexts.items():
        if (
            context.status.finished
            or context.status.phase is StagePhase.FAILED
            or context.current_job is not None
        ):
            continue
        hold = next(
            (hold for hold in (check(context, branches) for check in checks) if hold is not None), None
        )
        if hold is not None:
            statuses[name] = context.status.model_copy(
                update={"phase": hold.phase, "reason": hold.reason, "message": cut(hold.message)}
            )
        elif context.jobs:  # all have ended: they are deleted before the next attempt
            actions.extend(RemoveJob(job) for job in context.jobs)
            text = f"removing what is left of {context.jobs[-1].name}"
            statuses[name] = context.status.model_copy(
                update={
                    "phase": _idle_phase(context),
                    "reason": StageReason.REMOVING_JOB,
                    "message": cut(text),
                }
            )
        else:
            statuses[name] = _intent(context)
            actions.append(StartJob(name, statuses[name].attempt))
            branches.started.append(name)
    return Starts(statuses, tuple(actions))


def _intent(context: StageContext) -> StageStatus:
    """The status that announces the next attempt: the same number again if its job was never seen.

    That job may still be made as it was announced first. If another one would be made now, neither is recorded.
    """
    status, told = context.status, context.stage.sha256()
    again = status.attempt > status.last_ended_attempt
    attempt = status.attempt if again else status.attempt + 1
    recorded = not again or status.told_sha256 == told
    return status.model_copy(
        update={
            "phase": StagePhase.PENDING,
            "reason": StageReason.STARTING,
            "message": f"attempt {attempt} is starting",
            "attempt": attempt,
            "resolved_sha256": told if recorded else None,
            "resolved_attempt": attempt if recorded else None,
            "job": None,
            "retry_at": None,
        }
    )


def _idle_phase(context: StageContext) -> StagePhase:
    ended = context.status.last_ended
    return StagePhase.RETRYING if ended is not None and ended.counted else StagePhase.PENDING


def _chain_incomplete(_: StageContext, branches: Branches) -> Hold | None:
    waiting = [name for name, context in branches.contexts.items() if not context.status.finished]
    if not waiting:
        return None
    return Hold(
        StagePhase.PENDING,
        StageReason.CHAIN_INCOMPLETE,
        f"trained alone once {', '.join(waiting)} is complete",
    )


def _suspended(context: StageContext, _: Branches) -> Hold | None:
    if not context.suspended:
        return None
    blocked = next((job for job in context.jobs if job.live and is_blocked(job, context.now)), None)
    text = context.suspended if blocked is None else f"{context.suspended}; {blocked_text(blocked)}"
    return Hold(StagePhase.SUSPENDED, StageReason.SUSPENDED, text)


def _refused(context: StageContext, branches: Branches) -> Hold | None:
    if not branches.observed.refused:
        return None
    text = "not started: the chain is refused as it is written now (condition Accepted)"
    return Hold(_idle_phase(context), StageReason.SPEC_REFUSED, text)


def _predecessor_incomplete(context: StageContext, branches: Branches) -> Hold | None:
    for other in context.stage.needs:
        if not branches.contexts[other.name].status.finished:
            predecessor = context.stage.predecessor
            grows = predecessor is not None and predecessor.name == other.name
            verb = "grows out of" if grows else "learns from"
            return Hold(StagePhase.PENDING, StageReason.PREDECESSOR_INCOMPLETE, f"{verb} stage {other.name}")
    return None


def _predecessor_failed(context: StageContext, branches: Branches) -> Hold | None:
    """A failure ends the stages that grow out of it; other branches of the tree go on."""
    failed = failed_ancestor(context, branches.contexts)
    if failed is None:
        return None
    return Hold(
        _idle_phase(context), StageReason.PREDECESSOR_FAILED, f"it needs stage {failed}, which has failed"
    )


def _artifacts_missing(context: StageContext, branches: Branches) -> Hold | None:
    if not branches.missing:
        return None
    text = f"not started: the artifacts of {', '.join(branches.missing)} were complete and are gone"
    return Hold(_idle_phase(context), StageReason.ARTIFACTS_MISSING, text)


def _last_job_ending(context: StageContext, _: Branches) -> Hold | None:
    live = [job for job in context.jobs if job.live]
    if not live:
        return None
    blocked = next((job for job in live if is_blocked(job, context.now)), None)
    if blocked is not None:
        return Hold(_idle_phase(context), why_blocked(blocked, context.now), blocked_text(blocked))
    ended = context.status.last_ended
    why = f" ({ended.reason})" if ended is not None else ""
    return Hold(
        _idle_phase(context),
        StageReason.STOPPING,
        f"{live[0].name} is ending{why}; the next attempt starts when it is gone",
    )


def _same_weights_elsewhere(context: StageContext, branches: Branches) -> Hold | None:
    job = next((job for job in branches.superseded if job.digest == context.stage.digest), None)
    if job is None:
        return None
    if is_blocked(job, context.now):
        return Hold(_idle_phase(context), why_blocked(job, context.now), blocked_text(job))
    text = f"{job.name} trains the very same weights as stage {job.stage}; this one starts when it is gone"
    return Hold(_idle_phase(context), StageReason.STOPPING, text)


def _store_unknown(context: StageContext, _: Branches) -> Hold | None:
    facts = context.facts
    if facts is None:
        return Hold(_idle_phase(context), StageReason.NOT_OBSERVED, "the store was not read yet")
    if facts.problem is None:
        return None
    return Hold(
        _idle_phase(context), facts.problem.value, facts.message or f"the store {context.stage.store.uri}"
    )


def _held_by_another(context: StageContext, _: Branches) -> Hold | None:
    lease = foreign_lease(context)
    if lease is None:
        return None
    text = (
        f"{lease.chain} trains this very stage now ({lease.holder}); its weights will be used when it is done"
    )
    return Hold(StagePhase.WAITING, StageReason.LEASE_HELD, text)


def _backing_off(context: StageContext, _: Branches) -> Hold | None:
    due = retry_due(context.status, context.now)
    if due is None or context.now >= due:
        return None
    ended = context.status.last_ended
    why = f"{ended.reason}: {ended.message}" if ended is not None else "the last attempt failed"
    text = f"the next attempt starts at {rfc3339(due)}; attempt {context.status.attempt} ended with {why}"
    return Hold(_idle_phase(context), StageReason.BACK_OFF, text)


def _predecessor_ending(context: StageContext, branches: Branches) -> Hold | None:
    for other in context.stage.needs:
        if job_lingers(branches.contexts[other.name]):
            return Hold(
                _idle_phase(context),
                StageReason.PREDECESSOR_ENDING,
                f"the job of stage {other.name} is ending",
            )
    return None


def _backend_problem(context: StageContext, branches: Branches) -> Hold | None:
    problem = branches.observed.backend_problem.get(context.stage.name)
    return Hold(_idle_phase(context), StageReason.BACKEND_UNAVAILABLE, problem) if problem else None


def _too_many_jobs(context: StageContext, branches: Branches) -> Hold | None:
    limit = branches.limit
    if limit is None or branches.running < limit:
        return None
    return Hold(
        _idle_phase(context), StageReason.PARALLEL_LIMIT, f"{limit} job(s) at once; another stage's runs"
    )


def _too_many_chains(context: StageContext, branches: Branches) -> Hold | None:
    text = branches.observed.namespace_limit
    return Hold(_idle_phase(context), StageReason.NAMESPACE_LIMIT, text) if text else None


_CHECKS: tuple[_Check, ...] = (
    _suspended,
    _refused,
    _predecessor_failed,
    _artifacts_missing,
    _predecessor_incomplete,
    _last_job_ending,
    _same_weights_elsewhere,
    _store_unknown,
    _held_by_another,
    _backing_off,
    _predecessor_ending,
    _backend_problem,
    _too_many_jobs,
    _too_many_chains,  # last: who stands in line for a place could begin at once
)
