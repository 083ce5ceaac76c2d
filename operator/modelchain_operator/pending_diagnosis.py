"""Why jobs do not start, where neither their status nor that of their pods says so: from Events and Kueue's Workloads.

A quota that refuses pods, or a volume that can't be mounted, is reported in Events and nowhere else. What is found is
for the next pass.
"""

from __future__ import annotations

import logging
import time

from modelchain.reconcile.observation import Observation
from modelchain_operator.jobs.events import UnexplainedJob, explain_pending
from modelchain_operator.kubernetes.api import ApiError, KubernetesApi
from modelchain_operator.kubernetes.key import Key
from modelchain_operator.kueue.waits import ask_why_queued
from modelchain_operator.observe import (
    ChainMemory,
    ClusterSnapshot,
    PendingReason,
    queued_jobs,
    unexplained_jobs,
)
from modelchain_operator.work_queue import KeyQueue

logger = logging.getLogger(__name__)

POD_SETUP_SECONDS = 15.0  # for pods to be created and set up, before their Events are read
RETRY_SECONDS = 30.0  # between readings of the Events of a job that still waits


class PendingDiagnosis:
    """Finds out why jobs wait. Used in one event loop."""

    def __init__(self, api: KubernetesApi, queue: KeyQueue) -> None:
        self._api = api
        self._queue = queue

    async def update(
        self, key: Key, snapshot: ClusterSnapshot, observed: Observation, memory: ChainMemory
    ) -> None:
        """Look up the jobs that wait now, as far as that is due, and queue the chain if the answer has changed."""
        await self._ask_events(key, unexplained_jobs(snapshot, observed), memory)
        now = time.monotonic()
        if await ask_why_queued(self._api, queued_jobs(snapshot, observed), memory.queued, now):
            self._queue.add(key)
        for inquiry in memory.queued.values():
            self._queue.add_after(key, inquiry.ask_at - now)

    async def _ask_events(
        self, key: Key, unexplained: dict[str, UnexplainedJob], memory: ChainMemory
    ) -> None:
        now = time.monotonic()
        memory.pending_reasons = {
            name: known
            if (known := memory.pending_reasons.get(name)) is not None and known.lacks_pods == one.lacks_pods
            else PendingReason(lacks_pods=one.lacks_pods, ask_at=now + POD_SETUP_SECONDS)
            for name, one in unexplained.items()
        }
        for name, known in memory.pending_reasons.items():
            if now >= known.ask_at:
                known.ask_at = now + RETRY_SECONDS
                found = await self._explain(key, unexplained[name])
                if found != (known.reason, known.message):
                    known.reason, known.message = found
                    self._queue.add(key)
            self._queue.add_after(key, known.ask_at - now)

    async def _explain(self, key: Key, unexplained: UnexplainedJob) -> tuple[str, str]:
        """Reason and message; both empty if no Event says why, or none may be read."""
        try:
            listed = [await self._api.list_events(key.namespace, uid) for uid in unexplained.uids]
        except ApiError as error:  # the chain goes on without a reason
            logger.warning("%s: %s", key, error)
            return "", ""
        return explain_pending(event for events in listed for event in events)
