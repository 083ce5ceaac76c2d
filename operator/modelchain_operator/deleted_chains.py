"""Chains that somebody has deleted and that are still there: a finalizer may hold one for days.

Nothing of it trains on meanwhile. Its jobs would go with it anyway; they end at a checkpoint.
"""

from __future__ import annotations

import time

from modelchain.reconcile.actions import StopJob
from modelchain.reconcile.observation import Job
from modelchain_operator.act import Actor
from modelchain_operator.jobs.observed import observe_jobs
from modelchain_operator.kubernetes.api import Object
from modelchain_operator.live_view import LiveView
from modelchain_operator.observe import ChainMemory, View

CHAIN_DELETED = "ChainDeleted"


async def end_jobs(body: Object, memory: ChainMemory, cluster: LiveView, actor: Actor) -> bool:
    """End what still runs of the chain. Returns whether that was anything. Raises ApiError."""
    if not _running(cluster.cached(body, memory), memory):
        return False
    view = await cluster.live(body, memory)
    for job in _running(view, memory):
        await actor.stop(StopJob(job, CHAIN_DELETED), view)
    return True


def _running(view: View, memory: ChainMemory) -> list[Job]:
    return [job for job in observe_jobs(view.trees, memory.jobs, time.time()) if job.stoppable]
