"""`spec.suspend` ends the running attempt at a checkpoint; the next one continues from there. It is no
failure.
"""

from __future__ import annotations

from modelchain.reconcile.observation import Observation
from modelchain.reconcile.retry import End, end_attempt
from modelchain.reconcile.stage_context import StageContext
from modelchain.resolved import ResolvedChain
from modelchain.status import StagePhase, StageReason, StageStatus


def why_suspended(chain: ResolvedChain, observed: Observation) -> str:
    """Why nothing may run now, for people; empty if it may."""
    if observed.interrupted:
        return "the run was interrupted; run it again to go on from the latest checkpoint"
    return "spec.suspend is set; unset it to go on from the latest checkpoint" if chain.suspend else ""


def end_suspended(context: StageContext) -> StageStatus:
    """End the current attempt, if the chain is suspended and its job lives."""
    if not context.suspended or context.status.finished or context.status.phase is StagePhase.FAILED:
        return context.status
    job = context.current_job
    if job is None or not job.live:
        return context.status
    return end_attempt(context, StageReason.SUSPENDED, context.suspended, End.REQUESTED)
