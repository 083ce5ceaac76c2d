"""Writes statuses, and reports what has changed: in the log, in metrics and as Kubernetes Events."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress

from modelchain.reconcile.conditions import unwritable
from modelchain.status import ChainStatus, StageReason
from modelchain_operator.informers.cache import Cache
from modelchain_operator.kubernetes.api import ApiError, Forbidden, Invalid, KubernetesApi, Object
from modelchain_operator.kubernetes.key import Key
from modelchain_operator.observe import status_object
from modelchain_operator.pruned_fields import PrunedFields
from modelchain_operator.telemetry.events import WARNING, Note, event_of, notes
from modelchain_operator.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

EVENTS_UNDER_WAY = 256


class StatusWriter:
    """Writes the statuses of chains. Used in one event loop."""

    def __init__(self, api: KubernetesApi, cache: Cache, metrics: Metrics, identity: str) -> None:
        """`identity` is the name of this process in Events."""
        self._api = api
        self._cache = cache
        self._metrics = metrics
        self._identity = identity
        self._pruned = PrunedFields()
        self._posting: set[asyncio.Task[None]] = set()

    def as_stored(self, status: ChainStatus) -> ChainStatus:
        """The status as the API server would return it: an older CRD drops fields."""
        return self._pruned.of(status)

    async def write(self, key: Key, body: Object, before: ChainStatus | None, status: ChainStatus) -> Object:
        """Write the status over the version of the chain that it was decided on; then report what has happened. Returns
        the chain as it is then. Raises Conflict if it was changed meanwhile, ApiError.

        Where the API server or an admission rule refuses the status, the chain says so, if it may, before Invalid or
        Forbidden is raised: nothing may be done that was not recorded.
        """
        asked = status_object(status)
        try:
            written = await self._api.write_status(body, asked)
        except (Invalid, Forbidden) as error:
            await self._write_refusal(key, body, before, error)
            raise
        self._pruned.learn(asked, written.get("status") or {})
        self._cache.show_chain(written)
        self._metrics.status_written(key, before, status)
        reported = list(notes(before, self._pruned.of(status)))
        for note in reported:
            log = logger.warning if note.type == WARNING else logger.info
            log("%s: %s: %s", key, note.reason, note.message)
        await self._post(key, body, reported)
        return written

    async def _write_refusal(
        self, key: Key, body: Object, before: ChainStatus | None, error: ApiError
    ) -> None:
        generation = body["metadata"].get("generation")
        said = self._pruned.of(unwritable(before, str(error), generation=generation, now=time.time()))
        if said == before:
            return
        with suppress(ApiError):  # the refusal itself is raised, and said in the log
            self._cache.show_chain(await self._api.write_status(body, status_object(said)))
        await self._post(key, body, [Note(WARNING, StageReason.STATUS_REFUSED, said.message, once=True)])

    async def close(self, seconds: float) -> None:
        """Wait `seconds` at most for Events that are being posted."""
        if self._posting:
            await asyncio.wait(self._posting, timeout=seconds)

    async def _post(self, key: Key, body: Object, reported: Sequence[Note]) -> None:
        """Post Events beside the pass: they must not hold up a job. Twice the same of one version of a chain is one."""
        if not reported:
            return
        now = time.time()
        events = [event_of(body, note, time=now, instance=self._identity) for note in reported]
        if len(self._posting) >= EVENTS_UNDER_WAY:
            await asyncio.wait(self._posting, return_when=asyncio.FIRST_COMPLETED)

        async def post() -> None:
            for event in events:
                try:
                    await self._api.create_event(event)
                except ApiError as error:
                    logger.warning("%s: no event was posted: %s", key, error)

        task = asyncio.create_task(post())
        self._posting.add(task)
        task.add_done_callback(self._posting.discard)
