"""Stages that a chain no longer has: their attempts count on, and jobs of them that still run are neither forgotten nor
duplicated.

An edit may remove a stage, add it again, or give it another name. The name of a job follows from chain, stage and
attempt, so a stage that comes back must not begin at 1 again; and a stage under a new name must wait for the job under
the old one, which trains the very same weights.
"""

from __future__ import annotations

from modelchain.reconcile.observation import Job, Observation
from modelchain.reconcile.stuck_jobs import blocked_text, is_blocked
from modelchain.reconcile.supersede import ended
from modelchain.resolved import ResolvedChain, ResolvedStage
from modelchain.status import MAX_FORMER_STAGES, ChainStatus, FormerStage, StageReason, StageStatus

_REMOVED = "the stage was removed, and added again"


def first_status(stage: ResolvedStage, status: ChainStatus, now: float) -> StageStatus:
    """The status of a stage that the chain's status does not have: it starts after the attempts that its name has
    had.
    """
    new = StageStatus(name=stage.name, digest=stage.digest, steps=stage.training.steps)
    former = next((one for one in status.former_stages if one.name == stage.name), None)
    if former is None:
        return new
    last = ended(former.attempt, StageReason.SUPERSEDED, _REMOVED, now)
    return new.model_copy(update={"attempt": former.attempt, "last_ended": last})


def former_stages(chain: ResolvedChain, observed: Observation) -> tuple[FormerStage, ...]:
    """The stages with an attempt that the chain has had and no longer has; of more than MAX_FORMER_STAGES, the latest
    removed.
    """
    status = observed.status or ChainStatus()
    names = {stage.name for stage in chain.all_stages}
    attempts = status.last_attempts
    for job in observed.jobs:
        attempts[job.stage] = max(attempts.get(job.stage, 0), job.attempt)
    left = [
        FormerStage(name=name, attempt=attempt)
        for name, attempt in attempts.items()
        if attempt and name not in names
    ]
    return tuple(left[-MAX_FORMER_STAGES:])


def superseded_jobs(chain: ResolvedChain, observed: Observation) -> tuple[Job, ...]:
    """The jobs that may live and train what no stage of their name asks for any more."""
    digests = {stage.name: stage.digest for stage in chain.all_stages}
    return tuple(job for job in observed.jobs if job.live and digests.get(job.stage) != job.digest)


def jobs_left(chain: ResolvedChain, observed: Observation) -> tuple[Job, ...]:
    """The jobs of removed stages that may live."""
    names = {stage.name for stage in chain.all_stages}
    return tuple(job for job in observed.jobs if job.stage not in names and job.live)


def blocked_remains(chain: ResolvedChain, observed: Observation, now: float) -> str:
    """What holds up the end of a removed stage's job, for people; empty if nothing does."""
    for job in jobs_left(chain, observed):
        if is_blocked(job, now):
            return f"removed stage {job.stage}: {blocked_text(job)}"
    return ""


def to_stop(chain: ResolvedChain, observed: Observation) -> tuple[Job, ...]:
    """The jobs of removed stages that are not being ended yet."""
    return tuple(job for job in jobs_left(chain, observed) if job.stoppable)
