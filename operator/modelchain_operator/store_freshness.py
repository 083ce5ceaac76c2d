"""Looks at the store that something has made old: they are taken again before anything is decided on them."""

from __future__ import annotations

from modelchain.reconcile.observation import Observation
from modelchain.status import ChainStatus, ConditionType
from modelchain_operator.kubernetes.key import Key
from modelchain_operator.observe import ChainMemory
from modelchain_operator.stores.views import StoreLooks


def missing_said(status: ChainStatus | None) -> tuple[str, str] | None:
    """What a status says of missing artifacts, and since when; None if nothing."""
    condition = status.condition(ConditionType.ARTIFACTS_MISSING) if status is not None else None
    return None if condition is None else (condition.status, condition.last_transition_time)


def expire_artifacts(key: Key, status: ChainStatus | None, memory: ChainMemory, stores: StoreLooks) -> bool:
    """Another operator has said that artifacts are missing, or no longer: what we saw of them is older.
    Returns whether they are looked at again.
    """
    before, memory.missing_said = memory.missing_said, missing_said(status)
    if status is None or before is None or before == memory.missing_said:
        return False
    for stage in status.all_stages:
        if stage.finished:
            stores.look_again(key, stage.name)
    return True


def expire_ended(key: Key, observed: Observation, memory: ChainMemory, stores: StoreLooks) -> bool:
    """A job has ended: what the store says about its stage is old. Returns whether that is news."""
    memory.looked_again &= {(job.stage, job.attempt) for job in observed.jobs}
    status = observed.status
    news = False
    for job in observed.jobs:
        known = status.find_stage(job.stage) if status is not None else None
        open_end = known is not None and not known.finished and known.attempt > known.last_ended_attempt
        if open_end and not job.live and (job.stage, job.attempt) not in memory.looked_again:
            memory.looked_again.add((job.stage, job.attempt))
            stores.look_again(key, job.stage)
            news = True
    return news
