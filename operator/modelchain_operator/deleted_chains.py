"""Chains that are being deleted: a finalizer may hold one for days.

Its jobs are stopped at once, at a checkpoint, rather than train until the chain is gone.
"""

from __future__ import annotations

import time

from modelchain.clock import clock_step
from modelchain.reconcile.actions import StopJob
from modelchain.reconcile.observation import Job
from modelchain_operator.job_writer import JobWriter
from modelchain_operator.jobs.observed import observe_jobs
from modelchain_operator.kubernetes.api import Object
from modelchain_operator.live_view import LiveView
from modelchain_operator.observe import ChainMemory, ClusterSnapshot

CHAIN_DELETED = "ChainDeleted"


async def end_jobs(body: Object, memory: ChainMemory, cluster: LiveView, job_writer: JobWriter) -> bool:
    """Stop what still runs of the chain. Returns whether anything did. Raises ApiError."""
    if not _running(cluster.cached(body, memory), memory):
        return False
    snapshot = await cluster.live(body, memory)
    for job in _running(snapshot, memory):
        await job_writer.stop(StopJob(job, CHAIN_DELETED), snapshot)
    return True


def _running(snapshot: ClusterSnapshot, memory: ChainMemory) -> list[Job]:
    seen = observe_jobs(snapshot.trees, memory.jobs, time.time(), clock_step=clock_step())
    return [job for job in seen if job.stoppable]
