"""Lists everything every few minutes: watches lose events, above all deletions between two of them.

The watches are the source. A listing is of metadata alone; it is read what the watches have not shown a moment later.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from modelchain_operator import gc_tuning
from modelchain_operator.informers.cache import Cache
from modelchain_operator.jobs import JOB_KINDS
from modelchain_operator.kubernetes.api import (
    ApiError,
    Forbidden,
    KubernetesApi,
    NotServed,
    ObjectVersion,
    Unavailable,
)
from modelchain_operator.kubernetes.key import Key
from modelchain_operator.kubernetes.kinds import CHAIN, POD, Kind
from modelchain_operator.work_queue import KeyQueue

logger = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_SECONDS = 5.0  # after a listing that failed; of one kind: at first
WATCH_SECONDS = 2.0  # in which a watch shows what a listing has shown, unless it has missed it
START_SECONDS = 15.0  # the same at the start, before the watches are established
POLL_SECONDS = 0.5
HINT_SECONDS = 15.0  # between listings that are made because a watch has missed something
FEW = 20  # objects that are read at once at the start, one by one; more of them a watch reads sooner
UNANSWERED = 5  # single objects in a row, after which it is the API server that does not answer
_KINDS = (CHAIN, *JOB_KINDS, POD)
MANY = 50  # chains whose jobs are listed one by one; those of more are listed all together


class Resync:
    """Compares the cache with listings, and queues the chains for which they differ."""

    def __init__(
        self,
        api: KubernetesApi,
        cache: Cache,
        queue: KeyQueue,
        not_served: set[Kind],
        *,
        namespaces: Sequence[str] = (),
    ) -> None:
        """`not_served` is kept up to date: the kinds of jobs that the cluster does not serve."""
        self._api = api
        self._cache = cache
        self._queue = queue
        self._not_served = not_served
        self._namespaces: tuple[str | None, ...] = tuple(namespaces) or (None,)
        self._told: set[Kind] = set()
        self._refused: set[tuple[Kind, str | None]] = set()  # what the operator's rights do not let it list
        self._incomplete: set[Kind] = set()  # the API server did not answer for all of them
        self._unanswered = 0  # single objects in a row that the API server did not answer for
        self.listed = asyncio.Event()  # everything was listed once
        self.attempted_at: float | None = (
            None  # monotonic: the last listing ended, well or not, or came further
        )
        self._hinted = asyncio.Event()

    async def run(self, every_seconds: float) -> None:
        """Resync for ever: at once, then about every `every_seconds`, and soon after each hint. What has failed for a
        kind alone is listed again before that, after waits that double.
        """
        retry, whole_at = RETRY_SECONDS, 0.0  # the latter monotonic: when all kinds are listed again
        while True:
            failed = False
            whole = time.monotonic() >= whole_at
            try:
                await self.once(_KINDS if whole else [kind for kind in _KINDS if kind in self._incomplete])
            except ApiError as error:
                failed = True
                logger.warning("a listing failed: %s; again in %.0f s", error, RETRY_SECONDS)
            except Exception:
                logger.exception("a listing failed; again in %.0f s", every_seconds)
            now = self.attempted_at = time.monotonic()
            if whole:
                whole_at = now + every_seconds * random.uniform(0.9, 1.1)  # noqa: S311
            wait = whole_at - now
            if failed:
                wait, whole_at = RETRY_SECONDS, 0.0
            elif self._incomplete:
                wait, retry = min(wait, retry), 2 * retry
            else:
                retry = RETRY_SECONDS
            gc_tuning.give_back()  # what the listing has used
            if await self._sleep(max(0.0, wait)):
                whole_at = 0.0

    def hint(self) -> None:
        """A watch was restarted, or a kind is served now: there may be objects that no watch has shown."""
        self._hinted.set()

    async def _sleep(self, seconds: float) -> bool:
        """Wait, less long after a hint. Returns whether there was one."""
        if seconds > HINT_SECONDS:
            await asyncio.sleep(HINT_SECONDS)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hinted.wait(), seconds - HINT_SECONDS)
        else:
            await asyncio.sleep(seconds)
        hinted = self._hinted.is_set()
        self._hinted.clear()
        return hinted

    async def once(self, kinds: Sequence[Kind] = _KINDS) -> None:
        """One listing of these kinds. What is refused is left out and said once: a namespace, a kind, a chain that
        can't be read holds up no other. Raises ApiError where the chains can't be listed: then it is the API server
        that is away.
        """
        self._unanswered = 0
        self._incomplete.difference_update(kinds)
        for kind in kinds:
            if kind == CHAIN:
                await self._list_chains()
                continue
            for key in await self._list_belongings(kind):
                self._queue.add(key)
        if any((CHAIN, namespace) not in self._refused for namespace in self._namespaces):
            self.listed.set()

    async def _list_belongings(self, kind: Kind) -> set[Key]:
        before = self._cache.uids(kind)
        try:
            listed = await self._list_versions(kind)
        except NotServed as error:
            if kind not in self._told:
                logger.warning("%s; chains that need it wait", error)
                self._told.add(kind)
            waiting = set() if kind in self._not_served else set(self._cache)
            self._not_served.add(kind)
            return waiting | self._cache.drop_absent(kind, set(), before)
        except Unavailable as error:  # of this kind: of a webhook that converts its versions, say
            self.attempted_at = time.monotonic()
            self._incomplete.add(kind)
            logger.error("%s; chains that need it wait, it is tried again soon", error)
            return set()
        changed = await self._read_stale(kind, listed)
        served_anew = kind in self._not_served
        if served_anew:
            logger.info("the cluster serves %s %s now", kind.api_version, kind.kind)
            self._told.discard(kind)
            self._not_served.discard(kind)
        unseen = self._unseen(kind)
        known = {uid: place for uid, place in before.items() if unseen is not None and place not in unseen}
        changed |= self._cache.drop_absent(kind, {one.uid for one in listed}, known)
        return changed | (set(self._cache) if served_anew else set())

    async def _read_stale(self, kind: Kind, listed: Sequence[ObjectVersion]) -> set[Key]:
        """Read what the listing shows newer than the cache has it. Returns the chains for which that changes
        something.
        """
        await self._let_watch_catch_up(lambda: len(self._cache.stale_owners(kind, listed)))
        owners = self._cache.stale_owners(kind, listed)
        wanted: Iterable[tuple[str | None, str | None]] = sorted(owners)
        if len(owners) > MANY:
            wanted = [(namespace, None) for namespace in self._seen_namespaces(kind)]
        changed: set[Key] = set()
        for namespace, chain_uid in wanted:
            found = await self._alone(
                kind,
                f"{kind.plural} in {namespace or 'the cluster'}",
                self._api.list_labelled(kind, namespace, chain_uid),
            )
            shown = [self._cache.show(kind, item) for item in found or ()]
            changed |= {key for key in shown if key is not None}
        return changed

    async def _list_chains(self) -> None:
        before = self._cache.chain_uids()
        listed = await self._list_versions(CHAIN)
        await self._let_watch_catch_up(lambda: len(self._cache.stale_chains(listed, before)[0]))
        stale, gone = self._cache.stale_chains(listed, before)
        for key in stale:
            body = await self._alone(CHAIN, f"chain {key}", self._api.get_chain(*key))
            if body is not None and self._cache.show_chain(body) is not None:
                self._queue.add(key)
        unseen = self._unseen(CHAIN)
        for key in gone:
            seen = unseen is not None and key.namespace not in unseen
            if seen and self._cache.drop_chain(key, before[key]):
                self._queue.add(key)

    async def _let_watch_catch_up(self, missing: Callable[[], int]) -> None:
        """Wait while a watch shows what a listing has shown: it reads many objects with one request."""
        started = self.listed.is_set()
        few, wait_seconds = (0, WATCH_SECONDS) if started else (FEW, START_SECONDS)
        left, since = missing(), time.monotonic()
        while left > few and time.monotonic() - since < wait_seconds:
            await asyncio.sleep(POLL_SECONDS)
            before, left = left, missing()
            if left < before:
                self.attempted_at = since = time.monotonic()

    async def _alone(self, kind: Kind, what: str, request: Awaitable[T]) -> T | None:
        """The answer; None where only this one thing can't be read, which is logged. Raises Unavailable where it goes
        so again and again, so that a server that is away is not asked for every chain.
        """
        try:
            answer = await request
        except Unavailable as error:
            self._unanswered += 1
            if self._unanswered >= UNANSWERED:
                raise
            self._incomplete.add(kind)
            logger.error("%s can't be read: %s; it is tried again soon", what, error)
            return None
        except Exception as error:  # noqa: BLE001  whatever is in it, the others go on
            logger.error("%s can't be read: %s; it is tried again with the next listing", what, error)
            return None
        finally:
            self.attempted_at = time.monotonic()
        self._unanswered = 0
        return answer

    async def _list_versions(self, kind: Kind) -> list[ObjectVersion]:
        """What there is of a kind, in the namespaces that let it be listed. Raises NotServed, Unavailable."""
        listed: list[ObjectVersion] = []
        for namespace in self._namespaces:
            try:
                listed += await self._api.list_versions(kind, namespace)
            except Forbidden as error:
                if (kind, namespace) not in self._refused:
                    logger.error("%s; its chains wait, the others go on", error)
                self._refused.add((kind, namespace))
            else:
                self.attempted_at = time.monotonic()
                if (kind, namespace) in self._refused:
                    logger.info("%s in %s can be listed again", kind.plural, namespace or "the cluster")
                self._refused.discard((kind, namespace))
        return listed

    def _seen_namespaces(self, kind: Kind) -> list[str | None]:
        return [one for one in self._namespaces if (kind, one) not in self._refused]

    def _unseen(self, kind: Kind) -> set[str] | None:
        """The namespaces that the listing does not show, where nothing may be taken for gone; None: all."""
        refused = {namespace for of, namespace in self._refused if of == kind}
        return None if None in refused else {namespace for namespace in refused if namespace is not None}
