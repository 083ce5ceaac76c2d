"""A stage is complete when its manifest verifies. Once seen, that is recorded and final for the digest."""

from __future__ import annotations

from collections.abc import Iterable

from modelchain.artifacts import Manifest, attempt_folder
from modelchain.reconcile.observation import Observation, StoreProblem
from modelchain.reconcile.stage_context import StageContext
from modelchain.reconcile.supersede import restarted
from modelchain.status import ConditionType, StagePhase, StageReason, StageStatus, bounded, cut
from modelchain.text import without_controls
from modelchain.times import from_rfc3339, rfc3339

LINGER_SECONDS = 30.0  # for which a trainer that has committed its stage may still run


def mark_complete(context: StageContext) -> StageStatus:
    """Record a verified manifest; forget a vanished one only if that was asked for, and at once with all others that
    have vanished: what is lost after that was not meant.
    """
    status, observed = context.status, context.observed
    if status.finished:
        if not (is_missing(context) and observed.retrains_missing and _all_were_looked_for(observed)):
            return status
        text = "its artifacts have vanished, and training them again was asked for"
        return restarted(context, StageReason.ARTIFACTS_MISSING, text)
    if not context.readable or context.facts is None or context.facts.manifest is None:
        return status
    return _completed(context, context.facts.manifest)


def is_missing(context: StageContext) -> bool:
    """Whether the stage was complete and its artifact is gone or damaged. Forbidden or unavailable is not
    missing.
    """
    if not context.status.finished or context.facts is None:
        return False
    if context.facts.problem is StoreProblem.DAMAGED:
        return True
    return context.facts.problem is None and context.facts.manifest is None and not context.facts.present


def retrained(before: Iterable[StageContext], after: Iterable[StageContext]) -> bool:
    """Whether what was missing is reset in this decision."""
    reset = {context.stage.name for context in after if not context.status.finished}
    return any(is_missing(context) and context.stage.name in reset for context in before)


def awaits_read(context: StageContext) -> bool:
    """Whether the store was not read since the operator was started, and more can be said of the chain once it was."""
    unread = context.status.finished and context.facts is None
    return unread and (context.observed.retrains_missing or was_missing(context))


def was_missing(context: StageContext) -> bool:
    """Whether the stage may still be missing: the status says so of one, and this one was not read since."""
    status = context.observed.status
    missed = status is not None and status.is_true(ConditionType.ARTIFACTS_MISSING)
    return missed and context.status.finished and not context.readable


def job_lingers(context: StageContext) -> bool:
    """Whether a job of the finished stage, or a pod of it, still ends. One on an unreachable node is not waited
    for: it has nothing to do any more, and the node may never come back.
    """
    return context.status.finished and any(
        (job.live or job.holds_pods) and not job.blocked_by_node for job in context.jobs
    )


def linger_deadline(context: StageContext) -> float:
    """When a job that still runs after its stage was complete is stopped."""
    completed_at = context.status.completed_at
    return (from_rfc3339(completed_at) if completed_at else context.now) + LINGER_SECONDS


def _all_were_looked_for(observed: Observation) -> bool:
    finished = (
        [stage.name for stage in observed.status.all_stages if stage.finished] if observed.status else []
    )
    found = [observed.store.get(name) for name in finished]
    return all(facts is not None and facts.problem in (None, StoreProblem.DAMAGED) for facts in found)


def _completed(context: StageContext, manifest: Manifest) -> StageStatus:
    status, stage = context.status, context.stage
    trained_here = status.started_at is not None
    found = f"found in the store: trained as stage {manifest.stage} of {manifest.chain}"
    return status.model_copy(
        update={
            "phase": StagePhase.COMPLETE if trained_here else StagePhase.CACHED,
            "reason": StageReason.COMPLETE if trained_here else StageReason.CACHED,
            "message": "" if trained_here else cut(found),
            "retry_at": None,
            "completed_at": rfc3339(context.now) if trained_here else manifest.completed_at,
            "step": manifest.steps,
            "steps": manifest.steps,
            "activity": None,
            "eta_seconds": None,
            "metrics": bounded(manifest.metrics),
            "weights_uri": without_controls(
                stage.store.uri_of(attempt_folder(stage.folder, manifest.attempt))
            ),
        }
    )
