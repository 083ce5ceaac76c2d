"""`spec.suspend` ends the running attempt at a checkpoint; the next one continues from there. It is no
failure.
"""

from __future__ import annotations

from modelchain.reconcile.observation import Observation
from modelchain.reconcile.retry import End, end_attempt
from modelchain.reconcile.stage_context import Look
from modelchain.resolved import ResolvedChain
from modelchain.status import StagePhase, StageStatus

SUSPENDED = "Suspended"


def why_suspended(chain: ResolvedChain, observed: Observation) -> str:
    """Why nothing may run now, for people; empty if it may."""
    if observed.interrupted:
        return "the run was interrupted; run it again to go on from the latest checkpoint"
    return "spec.suspend is set; unset it to go on from the latest checkpoint" if chain.suspend else ""


def end_suspended(look: Look) -> StageStatus:
    """End the current attempt, if the chain is suspended and its job lives."""
    if not look.suspended or look.status.finished or look.status.phase is StagePhase.FAILED:
        return look.status
    job = look.current_job
    if job is None or not job.live:
        return look.status
    return end_attempt(look, SUSPENDED, look.suspended, End.REQUESTED)
