"""Carries out actions one by one, and remembers which jobs the API server has refused."""

from __future__ import annotations

import logging
import time

from modelchain.reconcile.actions import Action, RemoveJob, StartJob, StopJob
from modelchain_operator.acceptance import Accepted
from modelchain_operator.informers.cache import Cache
from modelchain_operator.job_writer import JobRefused, JobWriter
from modelchain_operator.kubernetes.api import Object
from modelchain_operator.kubernetes.key import Key
from modelchain_operator.observe import ChainMemory, ClusterSnapshot, CreateRefusal, generation_of

logger = logging.getLogger(__name__)

RETRY_SECONDS = 30.0  # before the next dry run of a job that the API server has refused


class Executor:
    """Acts on the jobs of chains. Used in one event loop."""

    def __init__(self, job_writer: JobWriter, cache: Cache) -> None:
        self._jobs = job_writer
        self._cache = cache

    async def carry_out(
        self, key: Key, snapshot: ClusterSnapshot, accepted: Accepted, action: Action, memory: ChainMemory
    ) -> None:
        """Carry out one action. Raises ApiError if the API server can't be reached; a refusal goes into `memory`."""
        match action:
            case StartJob():
                await self._start(key, snapshot, accepted, action, memory)
            case StopJob():
                await self._jobs.stop(action, snapshot)
            case RemoveJob():
                await self._jobs.remove(action, snapshot)

    async def probe_refusals(self, body: Object, accepted: Accepted, memory: ChainMemory) -> None:
        """Find out by dry runs whether jobs that were refused would be admitted now, so that a chain that can't go on
        writes nothing.
        """
        for stage, refusal in list(memory.refusals.items()):
            if refusal.generation != generation_of(body) or stage not in accepted.jobs:
                del memory.refusals[stage]
                continue
            if time.monotonic() < refusal.ask_at:
                continue
            try:
                await self._jobs.start(accepted, StartJob(stage, refusal.attempt), dry_run=True)
            except JobRefused as error:
                refusal.message = str(error)
                refusal.ask_at = time.monotonic() + RETRY_SECONDS
            else:
                del memory.refusals[stage]

    async def _start(
        self, key: Key, snapshot: ClusterSnapshot, accepted: Accepted, action: StartJob, memory: ChainMemory
    ) -> None:
        try:
            made = await self._jobs.start(accepted, action)
        except JobRefused as error:
            logger.warning("%s: stage %s: %s", key, action.stage, error)
            memory.refusals[action.stage] = CreateRefusal(
                generation=snapshot.generation,
                attempt=action.attempt,
                message=str(error),
                ask_at=time.monotonic() + RETRY_SECONDS,
            )
            return
        logger.info("%s: stage %s: attempt %d starts", key, action.stage, action.attempt)
        memory.made = {one for one in memory.made if one[0] != action.stage}
        memory.made.add((action.stage, action.attempt))
        for kind, item in made:
            self._cache.show(kind, item)
