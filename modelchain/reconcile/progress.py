"""What the running attempt says of itself, for the status."""

from __future__ import annotations

from modelchain.reconcile.stage_context import StageContext
from modelchain.status import StageStatus, bounded, cut, whole_seconds


def show_progress(context: StageContext) -> StageStatus:
    """The status with the figures of progress.json, if they are those of the attempt that runs."""
    status, facts = context.status, context.facts
    if status.finished or context.current_job is None or facts is None or facts.problem is not None:
        return status
    progress = facts.progress
    if progress is None or facts.progress_attempt != status.attempt:
        return status
    return status.model_copy(
        update={
            "activity": cut(progress.phase, 32),
            # An attempt that goes on says 0 until it has read its checkpoint.
            "step": progress.step or status.step or 0,
            "steps": progress.steps,
            "samples_per_second": progress.samples_per_second,
            "eta_seconds": whole_seconds(progress.eta_seconds),
            "checkpoint_step": progress.checkpoint_step,
            "loss": bounded(progress.loss),
            "metrics": bounded(progress.metrics) or status.metrics,
        }
    )
