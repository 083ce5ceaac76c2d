"""Models trained alone come after the chain, one at a time; their outcome does not change the chain's own.

What they show is measured once all of them are complete, and stays in the status for as long as it speaks of the same
weights, the same models and the same metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelchain.reconcile.completion import is_missing
from modelchain.reconcile.observation import Observation, Unmeasurable
from modelchain.reconcile.retry import End, end_attempt
from modelchain.reconcile.stage_context import StageContext
from modelchain.resolved import ResolvedChain
from modelchain.status import (
    ChainPhase,
    ChainStatus,
    ConditionType,
    Measurement,
    StagePhase,
    StageReason,
    StageStatus,
)

AT_ONCE = 1  # jobs of baselines
FAILED = "RunsFailed"  # reasons of the condition
NOT_MEASURED = "NotMeasured"
MEASURED = "Measured"
MEASURING = "Measuring"
FINAL_REASONS = frozenset({MEASURED, NOT_MEASURED, FAILED})  # until the chain is edited


@dataclass(frozen=True)
class Verdict:
    """The condition BaselineComplete, and what was measured."""

    holds: bool
    reason: str
    message: str
    measurement: Measurement | None = None


def give_way(context: StageContext, chain: Sequence[StageContext]) -> StageStatus:
    """End the current attempt of a baseline, uncounted, if a stage of the chain has to be trained (again)."""
    job = context.current_job
    if (
        all(other.status.finished for other in chain)
        or context.status.finished
        or job is None
        or not job.live
    ):
        return context.status
    text = "the chain is to be trained first; this goes on from the latest checkpoint"
    return end_attempt(context, StageReason.CHAIN_INCOMPLETE, text, end=End.REQUESTED)


def assess(
    chain: ResolvedChain,
    contexts: Sequence[StageContext],
    baselines: Sequence[StageContext],
    phase: ChainPhase,
    observed: Observation,
) -> Verdict | None:
    """The state of the comparison; None if the chain asks for none."""
    if chain.baseline is None:
        return None
    if phase is not ChainPhase.COMPLETE:
        return Verdict(
            False, StageReason.CHAIN_INCOMPLETE, "models are trained alone once the chain is complete"
        )
    statuses = [context.status for context in baselines]
    failed = [status for status in statuses if status.phase is StagePhase.FAILED]
    unfinished = [status for status in statuses if not status.finished and status not in failed]
    done = sum(context.status.finished for context in baselines)
    if unfinished:
        first = next((one for one in unfinished if one.phase is StagePhase.RUNNING), unfinished[0])
        if first.reason == "Suspended":
            return Verdict(False, "Suspended", first.message)
        detail = f": {first.message}" if first.message else ""
        reason = "Training" if first.phase is StagePhase.RUNNING else first.reason or first.phase.value
        return Verdict(False, reason, f"{done} of {len(baselines)} runs are complete; {first.name}{detail}")
    if failed:
        text = "; ".join(f"{one.name}: {one.message}" for one in failed)
        return Verdict(False, FAILED, f"{text}. The chain is complete all the same")
    found = observed.measurement or _known(chain, contexts, baselines, observed)
    if isinstance(found, Measurement) and fits(found, chain):
        return Verdict(True, MEASURED, describe(found), found)
    if isinstance(found, Unmeasurable):
        return Verdict(True, NOT_MEASURED, f"all models were trained alone, but {found.message}")
    gone = [context.stage.name for context in (*contexts, *baselines) if is_missing(context)]
    if gone:
        return Verdict(
            False, "ArtifactsMissing", f"nothing can be measured: {', '.join(gone)} is gone or damaged"
        )
    return Verdict(False, MEASURING, f"all {done} runs are complete; their evaluations are being read")


def is_due(chain: ResolvedChain, status: ChainStatus | None) -> bool:
    """Whether the evaluations have to be read now, by the last status."""
    condition = status.condition(ConditionType.BASELINE_COMPLETE) if status is not None else None
    if chain.baseline is None or condition is None or condition.reason != MEASURING or status is None:
        return False
    digests = {stage.name: stage.digest for stage in chain.all_stages}
    return {stage.name: stage.digest for stage in status.all_stages if stage.finished} == digests


def describe(measurement: Measurement) -> str:
    """What was measured, in one line."""
    names = [model.name if model.reached else f"{model.name} (not reached)" for model in measurement.models]
    return (
        f"{measurement.acceleration} measured at equal {measurement.metric}: "
        f"{', '.join(names)} alone, over the chain's compute"
    )


def fits(measurement: Measurement, chain: ResolvedChain) -> bool:
    """Whether it is about what the chain asks for now. That its weights are the same, the caller knows."""
    wanted = chain.baseline
    return (
        wanted is not None
        and measurement.metric == wanted.metric
        and tuple(model.name for model in measurement.models) == wanted.stages
    )


def _known(
    chain: ResolvedChain,
    contexts: Sequence[StageContext],
    baselines: Sequence[StageContext],
    observed: Observation,
) -> Measurement | Unmeasurable | None:
    """The measurement of the last status, if it is of the same weights."""
    before = observed.status
    condition = before.condition(ConditionType.BASELINE_COMPLETE) if before is not None else None
    if before is None or condition is None or condition.status != "True":
        return None
    digests = {stage.name: stage.digest for stage in chain.all_stages}
    if {stage.name: stage.digest for stage in before.all_stages if stage.finished} != digests:
        return None
    if condition.reason == NOT_MEASURED:
        spec_changed = any(context.spec_changed for context in (*contexts, *baselines))
        return None if spec_changed else Unmeasurable(condition.message.partition(", but ")[2])
    return before.measurement
