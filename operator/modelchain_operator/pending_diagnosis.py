"""Why jobs do not start, where neither their status nor that of their pods tells: Events and Kueue's Workloads do.

A quota that refuses pods, or a volume that can't be mounted, is told in Events and nowhere else. What is found is for
the next pass.
"""

from __future__ import annotations

import logging
import time

from modelchain.reconcile.observation import Observation
from modelchain_operator.jobs.events import Silence, why_it_waits
from modelchain_operator.kubernetes.api import ApiError, KubernetesApi
from modelchain_operator.kubernetes.key import Key
from modelchain_operator.kueue.waits import ask_why_queued
from modelchain_operator.observe import ChainMemory, Told, View, queued_jobs, silent_jobs
from modelchain_operator.work_queue import KeyQueue

logger = logging.getLogger(__name__)

POD_PATIENCE_SECONDS = 15.0  # for pods to be made and set up, before it is asked why they are not
ASK_AGAIN_SECONDS = 30.0  # while it is not known, and while it lasts


class PendingDiagnosis:
    """Finds out why jobs wait. Used in one event loop."""

    def __init__(self, api: KubernetesApi, queue: KeyQueue) -> None:
        self._api = api
        self._queue = queue

    async def update(self, key: Key, view: View, observed: Observation, memory: ChainMemory) -> None:
        """Ask about the jobs that wait now, as far as that is due, and queue the chain where the answer is news."""
        await self._ask_events(key, silent_jobs(view, observed), memory)
        now = time.monotonic()
        if await ask_why_queued(self._api, queued_jobs(view, observed), memory.queued, now):
            self._queue.add(key)
        for inquiry in memory.queued.values():
            self._queue.add_after(key, inquiry.ask_at - now)

    async def _ask_events(self, key: Key, silent: dict[str, Silence], memory: ChainMemory) -> None:
        now = time.monotonic()
        memory.told = {
            name: told
            if (told := memory.told.get(name)) is not None and told.lacks_pods == one.lacks_pods
            else Told(lacks_pods=one.lacks_pods, ask_at=now + POD_PATIENCE_SECONDS)
            for name, one in silent.items()
        }
        for name, told in memory.told.items():
            if now >= told.ask_at:
                told.ask_at = now + ASK_AGAIN_SECONDS
                said = await self._explain(key, silent[name])
                if said != (told.reason, told.message):
                    told.reason, told.message = said
                    self._queue.add(key)
            self._queue.add_after(key, told.ask_at - now)

    async def _explain(self, key: Key, silence: Silence) -> tuple[str, str]:
        """Reason and message; both empty if nothing is told, or may be read."""
        try:
            listed = [await self._api.list_events(key.namespace, uid) for uid in silence.uids]
        except ApiError as error:  # a chain goes on without
            logger.warning("%s: %s", key, error)
            return "", ""
        return why_it_waits(event for events in listed for event in events)
