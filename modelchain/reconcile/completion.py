"""A stage is complete when its manifest verifies. Once seen, that is recorded and final for the digest."""

from __future__ import annotations

from collections.abc import Iterable

from modelchain.artifacts import Manifest, attempt_folder
from modelchain.reconcile.observation import StoreTrouble
from modelchain.reconcile.stage_context import Look
from modelchain.reconcile.supersede import anew
from modelchain.status import ConditionType, StagePhase, StageStatus, bounded, cut
from modelchain.times import from_rfc3339, rfc3339

LINGER_SECONDS = 30.0  # a trainer that has committed its stage may take this long to go


def recognise(look: Look) -> StageStatus:
    """Record a verified manifest; forget a vanished one only if that was asked for."""
    status = look.status
    if status.finished:
        if not (is_missing(look) and look.observed.retrains_missing):
            return status
        text = "its artifacts have vanished, and training them again was asked for"
        return anew(look, "ArtifactsMissing", text)
    if not look.readable or look.facts is None or look.facts.manifest is None:
        return status
    return _completed(look, look.facts.manifest)


def is_missing(look: Look) -> bool:
    """Whether the stage was complete and its artifact is gone or damaged. Forbidden or unavailable is not
    missing.
    """
    if not look.status.finished or look.facts is None:
        return False
    if look.facts.trouble is StoreTrouble.DAMAGED:
        return True
    return look.facts.trouble is None and look.facts.manifest is None and not look.facts.present


def retrained(before: Iterable[Look], after: Iterable[Look]) -> bool:
    """Whether what was missing has begun anew in this decision, and all that could be missing was looked for: what is
    found missing later was not meant by whoever asked.
    """
    finished = [look for look in before if look.status.finished]
    reset = {look.stage.name for look in after if not look.status.finished}
    return any(look.stage.name in reset for look in finished) and all(
        look.readable or is_missing(look) for look in finished
    )


def was_missing(look: Look) -> bool:
    """Whether the stage may still be missing: the status says so of one, and this one was not looked at since."""
    status = look.observed.status
    missed = status is not None and status.is_true(ConditionType.ARTIFACTS_MISSING)
    return missed and look.status.finished and not look.readable


def job_lingers(look: Look) -> bool:
    """Whether a job of the finished stage, or a pod of it, still ends. One on an unreachable node is not waited
    for: it has nothing to do any more, and the node may never come back.
    """
    return look.status.finished and any(
        (job.live or job.holds_pods) and not job.blocked_by_node for job in look.jobs
    )


def linger_deadline(look: Look) -> float:
    """When a job that still lives after its stage was complete is ended."""
    completed_at = look.status.completed_at
    return (from_rfc3339(completed_at) if completed_at else look.now) + LINGER_SECONDS


def _completed(look: Look, manifest: Manifest) -> StageStatus:
    status, stage = look.status, look.stage
    trained_here = status.started_at is not None
    found = f"found in the store: trained as stage {manifest.stage} of {manifest.chain}"
    return status.model_copy(
        update={
            "phase": StagePhase.COMPLETE if trained_here else StagePhase.CACHED,
            "reason": "Complete" if trained_here else "Cached",
            "message": "" if trained_here else cut(found),
            "retry_at": None,
            "completed_at": rfc3339(look.now) if trained_here else cut(manifest.completed_at, 40),
            "step": manifest.steps,
            "steps": manifest.steps,
            "activity": None,
            "eta_seconds": None,
            "metrics": bounded(manifest.metrics),
            "weights_uri": stage.store.uri_of(attempt_folder(stage.folder, manifest.attempt)),
        }
    )
