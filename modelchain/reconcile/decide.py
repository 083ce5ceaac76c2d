"""`decide`: from an observation of a chain to what is done about it. Pure and level-based.

Whatever was missed, repeated or seen out of order: the next observation gives the right answer. It never has two
live jobs of one stage, never trains again what is complete, and always comes to an end.

The caller's part: write `Decision.status` first (with the resource version it was read at), then carry out
the actions, each after a fresh observation that still asks for it; then observe again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from modelchain.reconcile import (
    baseline,
    completion,
    former_stages,
    progress,
    retry,
    stall,
    summary,
    supersede,
    suspend,
)
from modelchain.reconcile.actions import Action, Decision, StopJob
from modelchain.reconcile.conditions import conditions
from modelchain.reconcile.observation import Observation
from modelchain.reconcile.stage_context import StageContext
from modelchain.reconcile.start import Starts, start_baselines, start_stages
from modelchain.reconcile.stop import jobs_to_stop
from modelchain.reconcile.stuck_jobs import stuck_at
from modelchain.resolved import ResolvedChain, ResolvedStage
from modelchain.status import ChainStatus, StageReason, StageStatus, cut

# What has happened to a stage: each policy updates its status in turn. The order matters.
POLICIES: tuple[Callable[[StageContext], StageStatus], ...] = (
    supersede.carry_over,
    retry.reset_failures,
    completion.mark_complete,  # before anything that could take a finished stage for a failed one
    progress.show_progress,
    retry.record_attempt_end,
    suspend.end_suspended,
    supersede.end_outdated,
    stall.end_stalled,
    stall.end_overdue,
    stall.end_unstarted,
    summary.show_job,
)


def decide(chain: ResolvedChain, observed: Observation, now: float) -> Decision:
    """What to write and what to do, given everything seen. `now` is in seconds since the epoch."""
    initial = {stage.name: _initial_context(chain, stage, observed, now) for stage in chain.all_stages}
    superseded = former_stages.superseded_jobs(chain, observed)
    contexts = {stage.name: _apply_policies(initial[stage.name]) for stage in chain.stages}
    limits = [limit for limit in (observed.max_parallel_jobs, chain.max_parallel_stages) if limit is not None]
    starts = start_stages(contexts, observed, at_once=min(limits, default=None), superseded=superseded)
    in_order = _started(contexts, starts)
    alone = {stage.name: _apply_policies(initial[stage.name]) for stage in chain.baselines}
    alone = {
        name: context.with_status(baseline.give_way(context, in_order)) for name, context in alone.items()
    }
    alone_starts = start_baselines(alone, contexts, observed, at_once=baseline.AT_ONCE, superseded=superseded)
    baselines = _started(alone, alone_starts)
    every = (*in_order, *baselines)
    stops = [stop for context in every for stop in jobs_to_stop(context)]
    stops += [StopJob(job, StageReason.SUPERSEDED) for job in former_stages.to_stop(chain, observed)]
    status = _status(chain, observed, in_order, baselines, now)
    if observed.retrains_missing and completion.retrained(initial.values(), every):
        status = status.model_copy(update={"retrained": cut(observed.retrain_missing)})
    reads = tuple(
        context.stage.name
        for context in every
        if any(policy.awaits_read(context) for policy in (completion, stall, retry))
    )
    actions: tuple[Action, ...] = (*stops, *starts.actions, *alone_starts.actions)
    return Decision(status=status, actions=actions, reads=reads, wake_at=_wake_at(every))


def _status(
    chain: ResolvedChain,
    observed: Observation,
    in_order: tuple[StageContext, ...],
    baselines: tuple[StageContext, ...],
    now: float,
) -> ChainStatus:
    """What is said of the chain, given how its stages stand."""
    previous = observed.status or ChainStatus()
    phase = summary.chain_phase(in_order, suspended=bool(suspend.why_suspended(chain, observed)))
    headline = summary.headline(in_order, observed)
    compared = baseline.assess(chain, in_order, baselines, phase, observed)
    measured = compared.measurement if compared is not None else None
    acceleration = measured.acceleration if measured is not None else None
    planned = previous.speedup_planned if observed.speedup_planned is None else observed.speedup_planned
    remains = former_stages.blocked_remains(chain, observed, now)
    return previous.model_copy(
        update={
            "phase": phase,
            "message": summary.chain_message(in_order, phase, baselines, remains=remains),
            "observed_generation": observed.generation,
            "stage": headline.stage,
            "step": headline.step,
            "steps": headline.steps,
            "eta_seconds": headline.eta_seconds,
            "quality": headline.quality,
            "speedup_planned": planned,
            "speedup_measured": acceleration.factor if acceleration else None,
            "columns": summary.columns(headline, planned=planned, measured=acceleration),
            "measurement": measured,
            "former_stages": former_stages.former_stages(chain, observed),
            "stages": tuple(context.status for context in in_order),
            "baselines": tuple(context.status for context in baselines),
            "conditions": conditions(
                previous.conditions, in_order, phase, compared, generation=observed.generation, now=now
            ),
        }
    )


def _started(contexts: Mapping[str, StageContext], starts: Starts) -> tuple[StageContext, ...]:
    return tuple(
        context.with_status(starts.statuses.get(name, context.status)) for name, context in contexts.items()
    )


def _initial_context(
    chain: ResolvedChain, stage: ResolvedStage, observed: Observation, now: float
) -> StageContext:
    known = observed.status.find_stage(stage.name) if observed.status is not None else None
    return StageContext(
        stage=stage,
        status=known or former_stages.first_status(stage, observed.status or ChainStatus(), now),
        jobs=observed.jobs_of(stage.name),
        facts=observed.store.get(stage.name),
        observed=observed,
        suspended=suspend.why_suspended(chain, observed),
        now=now,
    )


def _apply_policies(context: StageContext) -> StageContext:
    for policy in POLICIES:
        context = context.with_status(policy(context))
    return context


def _wake_at(contexts: tuple[StageContext, ...]) -> float | None:
    """The next time at which something is due by the clock alone."""
    due: list[float] = [at for job in contexts[0].observed.jobs if (at := stuck_at(job)) is not None]
    for context in contexts:
        if completion.job_lingers(context):
            due.append(completion.linger_deadline(context))
        due.extend(
            time
            for time in (
                retry.retry_due(context.status, context.now),
                retry.commit_deadline(context),
                stall.stall_deadline(context),
                stall.time_limit(context),
                stall.start_deadline(context),
            )
            if time is not None
        )
    later = [time for time in due if time > contexts[0].now]
    return min(later, default=None)
