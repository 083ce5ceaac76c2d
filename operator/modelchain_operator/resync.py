"""Lists everything from time to time: watches lose events, above all deletions between two of them."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence

from modelchain_operator import memory
from modelchain_operator.cache import Cache
from modelchain_operator.kinds import CHAIN, JOB, POD, PYTORCHJOB, Kind
from modelchain_operator.kubernetes_api import ApiError, KubernetesApi, NotServed, Object, ObjectVersion
from modelchain_operator.queue import Key, KeyQueue

logger = logging.getLogger(__name__)

RETRY_SECONDS = 5.0  # after a listing that failed
WATCH_SECONDS = 2.0  # in which a watch shows what a listing has shown, unless it has missed it
MANY = 50  # chains whose jobs are listed one by one; those of more are listed all together


class Resync:
    """Holds the cache against listings, and wakes the chains for which they show something new."""

    def __init__(
        self,
        api: KubernetesApi,
        cache: Cache,
        queue: KeyQueue,
        not_served: set[Kind],
        *,
        namespaces: Sequence[str] = (),
    ) -> None:
        """`not_served` is kept up to date: the kinds of jobs that the cluster does not know."""
        self._api = api
        self._cache = cache
        self._queue = queue
        self._not_served = not_served
        self._namespaces: tuple[str | None, ...] = tuple(namespaces) or (None,)
        self._told: set[Kind] = set()
        self.listed = asyncio.Event()  # everything was listed once
        self.attempted_at: float | None = None  # monotonic: the last listing ended, well or not

    async def run(self, every_seconds: float) -> None:
        """Resync for ever: at once, then about every `every_seconds`."""
        while True:
            wait = every_seconds * random.uniform(0.9, 1.1)  # noqa: S311
            try:
                await self.once()
            except ApiError as error:
                wait = RETRY_SECONDS
                logger.warning("a listing failed: %s; again in %.0f s", error, wait)
            except Exception:
                logger.exception("a listing failed; again in %.0f s", wait)
            self.attempted_at = time.monotonic()
            memory.give_back()  # what the listing has used
            await asyncio.sleep(wait)

    async def once(self) -> None:
        """One whole listing. Raises ApiError."""
        for kind in (PYTORCHJOB, JOB, POD):
            for key in await self._list_belongings(kind):
                self._queue.add(key)
        await self._list_chains()
        self.listed.set()

    async def _list_belongings(self, kind: Kind) -> set[Key]:
        before = self._cache.uids(kind)
        try:
            listed = await self._list_versions(kind)
            changed = await self._read_stale(kind, listed)
        except NotServed as error:
            if kind not in self._told:
                logger.warning("%s; chains that need it wait", error)
                self._told.add(kind)
            waiting = set() if kind in self._not_served else set(self._cache)
            self._not_served.add(kind)
            return waiting | self._cache.drop_absent(kind, set(), before)
        served_anew = kind in self._not_served
        if served_anew:
            logger.info("the cluster serves %s %s now", kind.api_version, kind.kind)
            self._told.discard(kind)
            self._not_served.discard(kind)
        changed |= self._cache.drop_absent(kind, {one.uid for one in listed}, before)
        return changed | (set(self._cache) if served_anew else set())

    async def _read_stale(self, kind: Kind, listed: Sequence[ObjectVersion]) -> set[Key]:
        """Read what the listing shows newer than it is known here. Returns the chains for which that is news."""
        owners = self._cache.stale_owners(kind, listed)
        if owners and self.listed.is_set():
            await asyncio.sleep(WATCH_SECONDS)
            owners = self._cache.stale_owners(kind, listed)
        found: list[Object] = []
        if len(owners) > MANY:
            for namespace in self._namespaces:
                found += await self._api.list_labelled(kind, namespace, None)
        else:
            for namespace, chain_uid in owners:
                found += await self._api.list_labelled(kind, namespace, chain_uid)
        shown = [self._cache.show(kind, item) for item in found]
        return {key for key in shown if key is not None}

    async def _list_chains(self) -> None:
        before = self._cache.chain_uids()
        listed = await self._list_versions(CHAIN)
        stale, gone = self._cache.stale_chains(listed, before)
        for key in stale:
            body = await self._api.get_chain(*key)
            if body is not None and self._cache.show_chain(body) is not None:
                self._queue.add(key)
        for key in gone:
            if self._cache.drop_chain(key, before[key]):
                self._queue.add(key)

    async def _list_versions(self, kind: Kind) -> list[ObjectVersion]:
        listed: list[ObjectVersion] = []
        for namespace in self._namespaces:
            listed += await self._api.list_versions(kind, namespace)
        return listed
