"""Facts of the store that something has made stale: they are read again before anything is decided on them."""

from __future__ import annotations

from modelchain.reconcile.observation import Observation
from modelchain.status import ChainStatus, ConditionType
from modelchain_operator.kubernetes.key import Key
from modelchain_operator.observe import ChainMemory
from modelchain_operator.stores.views import StoreViews


def reported_missing(status: ChainStatus | None) -> tuple[str, str] | None:
    """Status and transition time of condition ArtifactsMissing; None without one."""
    condition = status.condition(ConditionType.ARTIFACTS_MISSING) if status is not None else None
    return None if condition is None else (condition.status, condition.last_transition_time)


def expire_artifacts(key: Key, status: ChainStatus | None, memory: ChainMemory, stores: StoreViews) -> bool:
    """Expire what is known of finished stages, if another operator has reported that artifacts are missing or are back.
    Returns whether they are read again.
    """
    before, memory.reported_missing = memory.reported_missing, reported_missing(status)
    if status is None or before is None or before == memory.reported_missing:
        return False
    for stage in status.all_stages:
        if stage.finished:
            stores.refresh(key, stage.name)
    return True


def expire_ended(key: Key, observed: Observation, memory: ChainMemory, stores: StoreViews) -> bool:
    """Expire what is known of stages whose job has ended. Returns whether there are any new ones."""
    memory.refreshed &= {(job.stage, job.attempt) for job in observed.jobs}
    status = observed.status
    expired = False
    for job in observed.jobs:
        known = status.find_stage(job.stage) if status is not None else None
        open_end = known is not None and not known.finished and known.attempt > known.last_ended_attempt
        if open_end and not job.live and (job.stage, job.attempt) not in memory.refreshed:
            memory.refreshed.add((job.stage, job.attempt))
            stores.refresh(key, job.stage)
            expired = True
    return expired
