"""`spec.suspend` ends the running attempt at a checkpoint; the next one continues from there. It is no
failure.
"""

from __future__ import annotations

from modelchain.reconcile.look import Look
from modelchain.reconcile.retry import end_attempt
from modelchain.status import StagePhase, StageStatus

SUSPENDED = "Suspended"


def end_suspended(look: Look) -> StageStatus:
    """End the current attempt, if the chain is suspended and its job lives."""
    if not look.suspended or look.status.finished or look.status.phase is StagePhase.FAILED:
        return look.status
    job = look.current_job
    if job is None or not job.live:
        return look.status
    return end_attempt(look, SUSPENDED, "spec.suspend was set", counted=False)
