"""A chain that can't be trained as it is written now: nothing of it starts, and what runs stays under control.

A bad edit must not cost the work of a good one, nor leave it alone: a job that hangs is ended, one that ends is
recorded, and spec.suspend works even beside a field that is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from modelchain.reconcile.actions import Decision, StartJob
from modelchain.reconcile.conditions import refused
from modelchain.reconcile.decide import decide
from modelchain.reconcile.observation import Job, Observation
from modelchain.reconcile.retry import End, vanished_text, with_end
from modelchain.resolved import ResolvedChain
from modelchain.status import ChainStatus, Condition, ConditionType, StagePhase, StageReason, StageStatus, cut

# Conditions about what runs; those about the chain as a whole (Complete, ArtifactsMissing) stay as they are.
_OF_STAGES = (
    ConditionType.PROGRESSING,
    ConditionType.FAILED,
    ConditionType.UNRESPONSIVE,
    ConditionType.DISRUPTED,
)
_NO_OTHER = "the chain is refused as it is written now, so no other is made"


def under_way(status: ChainStatus | None) -> tuple[StageStatus, ...]:
    """The stages with an attempt whose end is open."""
    return tuple(
        stage
        for stage in (status.all_stages if status is not None else ())
        if not stage.finished
        and stage.phase is not StagePhase.FAILED
        and stage.attempt > stage.last_ended_attempt
    )


def decide_refused(
    running: ResolvedChain | None,
    observed: Observation,
    problems: Sequence[str],
    *,
    generation: int | None,
    now: float,
) -> Decision:
    """As `decide`. `running`: the stages that run, as they were when their jobs were made, as far as these say so; None
    if none does. Of the others, only the end is recorded of those whose job was seen once and is not among
    `observed.jobs`.
    """
    previous = observed.status or ChainStatus()
    if running is None:
        left = previous.model_copy(update=_stages(previous, {}, observed.jobs, now))
        return Decision(refused(left, problems, generation=generation, now=now))
    decision = decide(running, replace(observed, generation=None, refused=True), now)
    current = {stage.name: stage for stage in decision.status.stages}
    stages = _stages(previous, current, observed.jobs, now)
    conditions = _merged(previous.conditions, decision.status)
    going_on = previous.model_copy(
        update={"phase": decision.status.phase, "conditions": conditions, **stages}
    )
    actions = tuple(
        action
        for action in decision.actions
        if not isinstance(action, StartJob) and action.job.stage in current
    )
    return replace(
        decision, status=refused(going_on, problems, generation=generation, now=now), actions=actions
    )


def _stages(
    previous: ChainStatus, current: Mapping[str, StageStatus], jobs: Sequence[Job], now: float
) -> dict[str, tuple[StageStatus, ...]]:
    """All stages and baselines, those that run as they are now."""
    there = {(job.stage, job.attempt): job.name for job in jobs}
    return {
        name: tuple(
            current.get(stage.name) or _left_alone(stage, there.get((stage.name, stage.attempt)), now)
            for stage in stages
        )
        for name, stages in (("stages", previous.stages), ("baselines", previous.baselines))
    }


def _left_alone(stage: StageStatus, job: str | None, now: float) -> StageStatus:
    """A stage of which nothing reliable is known that runs. `job`: the name of its attempt's, if there is one."""
    if stage.finished or stage.phase is StagePhase.FAILED:
        return stage
    phase, message = StagePhase.PENDING, stage.message
    if stage.attempt > stage.last_ended_attempt:
        if job is not None:
            phase = stage.phase
            message = (
                f"what {job} says that it trains is not known to be what attempt {stage.attempt} was told, so it goes "
                "on by itself: no deadline and no spec.suspend ends it until the chain is accepted"
            )
        elif stage.job is not None:
            message = f"{vanished_text(stage)}; {_NO_OTHER}"
            stage = with_end(stage, StageReason.JOB_VANISHED, vanished_text(stage), End.DISRUPTION, now=now)
        else:
            message = f"attempt {stage.attempt} has no job yet; the chain is refused as it is written now"
    update = {"phase": phase, "reason": StageReason.SPEC_REFUSED, "message": cut(message)}
    return stage.model_copy(update=update)


def _merged(previous: Sequence[Condition], status: ChainStatus) -> tuple[Condition, ...]:
    reported: Mapping[str, Condition] = {one.type: one for one in status.conditions if one.type in _OF_STAGES}
    known = {one.type for one in previous}
    return (
        *(reported.get(one.type, one) for one in previous),
        *(one for kind, one in reported.items() if kind not in known),
    )
