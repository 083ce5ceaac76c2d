"""What kopf watches: one kopf operator for each kind, so that a watch that fails does not end the others.

kopf ends all its watches when one is refused, in one namespace, or shows what it can't read. So each kind has a kopf of
its own, which is restarted without the namespaces that refuse it; those are tried again from time to time. What is
missed meanwhile, the next resync finds.

A kopf that ends cancels every task of the event loop that is younger than itself, whoever made it. Here it is told
which are its own: those that were created in its context.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Collection, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias
from weakref import WeakSet

import kopf

from modelchain.text import without_users
from modelchain_operator.informers.cache import Cache
from modelchain_operator.jobs import JOB_KINDS
from modelchain_operator.jobs.pods import has_ended
from modelchain_operator.kubernetes import labels
from modelchain_operator.kubernetes.api import ApiError, Forbidden, KubernetesApi, NotServed
from modelchain_operator.kubernetes.credentials import connection_info
from modelchain_operator.kubernetes.key import Key
from modelchain_operator.kubernetes.kinds import CHAIN, POD, Kind
from modelchain_operator.work_queue import KeyQueue

logger = logging.getLogger(__name__)

WATCH_SECONDS = 120  # then a watch is restarted, so that a dead one is not trusted for long
RELISTED_SECONDS = (
    60.0  # after a kopf has started, after which a listing of its own means that its watch was restarted
)
CONNECT_SECONDS = 60
REWATCH_SECONDS = (5.0, 60.0)  # after watching a kind has failed: first, and longest
ERROR_BACKOFFS = (1.0, 2.0, 4.0)  # of kopf's requests, before the watch of that kind has failed
NOT_SERVED_SECONDS = 15.0  # between checks whether the API server serves a kind by now
REFUSED_SECONDS = 30.0  # between checks whether a namespace that refused may be watched by now
LIST_CHUNK = 50
# kopf keeps an object that long after we have seen it: at the start, all of them at once
FORGET_SECONDS = 0.2

Handler: TypeAlias = Callable[..., Any]
Tasks: TypeAlias = WeakSet[asyncio.Task[Any]]

_kopfs_tasks: ContextVar[Tasks | None] = ContextVar("kopfs_tasks", default=None)


@dataclass(frozen=True)
class Watches:
    """Keeps the cache up to date, and queues the chains that have changed."""

    api: KubernetesApi
    cache: Cache
    queue: KeyQueue
    namespaces: Sequence[str]  # empty: all
    on_gap: Callable[[], None]  # called when something may have happened that no watch has shown

    async def run(self, stop: asyncio.Event) -> None:
        """Watch every kind until `stop` is set, whatever happens; SIGTERM and SIGINT set it."""
        asyncio.get_running_loop().set_task_factory(_remembered_task)
        tasks = [
            asyncio.create_task(self._keep_watching(kind, stop), name=f"watch-{kind.plural}")
            for kind in (CHAIN, *JOB_KINDS, POD)
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _keep_watching(self, kind: Kind, stop: asyncio.Event) -> None:
        wait = REWATCH_SECONDS[0]
        refused: frozenset[str | None] = frozenset()
        gap = False
        while not stop.is_set():
            before, answer = refused, await self._refused(kind)
            if answer is None:
                gap = True
                await _sleep(NOT_SERVED_SECONDS, stop)  # the resync says so
                continue
            if gap:
                self.on_gap()
            gap = True
            refused = answer
            for namespace in refused - before:
                where = f"in {namespace}" if namespace else "in the cluster"
                logger.error(
                    "%s can't be watched %s: the operator's rights do not allow it", kind.plural, where
                )
            began = asyncio.get_running_loop().time()
            failure = await self._watch(kind, refused, stop)
            if not failure or asyncio.get_running_loop().time() - began > REWATCH_SECONDS[1]:
                wait = REWATCH_SECONDS[0]
            if failure:
                logger.error("watching %s has failed: %s; again in %.0f s", kind.plural, failure, wait)
                await _sleep(wait, stop)
                wait = min(REWATCH_SECONDS[1], 2 * wait)

    async def _refused(self, kind: Kind) -> frozenset[str | None] | None:
        """The namespaces (None: the cluster) that the operator's rights do not let it watch; None if the API server
        does not know the kind.
        """

        async def is_refused(namespace: str | None) -> bool:
            try:
                await self.api.try_watch(kind, namespace)
            except Forbidden:
                return True
            except NotServed:
                raise
            except ApiError:
                return False  # kopf will find out
            return False

        places: list[str | None] = [*self.namespaces] or [None]
        try:
            answers = await asyncio.gather(*map(is_refused, places))
        except NotServed:
            return None
        return frozenset(place for place, answer in zip(places, answers, strict=True) if answer)

    async def _watch(self, kind: Kind, refused: frozenset[str | None], stop: asyncio.Event) -> str:
        """Watch with kopf. Returns why that has ended; nothing after `stop`, or when other namespaces refuse."""
        leave = asyncio.Event()
        leaving = asyncio.create_task(self._leave(leave, stop, kind, refused))
        namespaces = [one for one in self.namespaces if one not in refused]
        try:
            if None in refused or (self.namespaces and not namespaces):
                await leave.wait()
                return ""
            await _run_kopf(
                registry=self._registry(kind, stop),
                settings=_options(kind),
                stop_flag=leave,
                standalone=True,
                identity="modelchain-operator",  # else kopf asks for the user's name: in a container it may have none
                clusterwide=not namespaces,
                namespaces=namespaces,
            )
        except Exception as error:  # noqa: BLE001  this watch is restarted; the others go on
            return f"{type(error).__name__}: {without_users(str(error))[:300]}"
        finally:
            leaving.cancel()
        if not leave.is_set():  # by a signal before the handler was set
            stop.set()
        return ""

    async def _leave(
        self, leave: asyncio.Event, stop: asyncio.Event, kind: Kind, refused: frozenset[str | None]
    ) -> None:
        """Set `leave` after `stop` was set, or when one that has refused does no longer."""
        try:
            while not stop.is_set():
                await _sleep(REFUSED_SECONDS if refused else None, stop)
                if refused and await self._refused(kind) != refused:
                    break
        finally:  # whatever happens: nothing else ends the watch
            leave.set()

    def _registry(self, kind: Kind, stop: asyncio.Event) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()
        group, version = group_version(kind)

        @kopf.on.login(registry=registry)
        async def login(**_: Any) -> kopf.ConnectionInfo:
            return await connection_info(self.api.access)

        @kopf.on.startup(registry=registry)
        async def started(**_: Any) -> None:
            """Each kopf handles the signals itself as it starts: pass them to all."""
            for number in (signal.SIGINT, signal.SIGTERM):
                with contextlib.suppress(NotImplementedError, RuntimeError):
                    asyncio.get_running_loop().add_signal_handler(number, stop.set)

        handle = self._on_chain if kind == CHAIN else self._on_belonging(kind)
        began = asyncio.get_running_loop().time()

        async def handler(event: Any, **_: Any) -> None:
            await handle(event=event)
            if event["type"] is None and asyncio.get_running_loop().time() - began > RELISTED_SECONDS:
                self.on_gap()  # listed again: kopf does not report what was deleted before

        kopf.on.event(group, version, kind.plural, registry=registry, id=f"{kind.plural}-event")(handler)
        return registry

    async def _on_chain(self, event: Any, **_: Any) -> None:
        body = event["object"]
        if event["type"] == "DELETED":
            metadata = body["metadata"]
            key = Key(metadata["namespace"], metadata["name"])
            if self.cache.drop_chain(key, metadata["uid"], metadata["resourceVersion"]):
                self.queue.add(key, urgent=True)
        elif (key := self.cache.show_chain(body)) is not None:
            listed = event["type"] is None  # thousands may be, at the start, and most of them are at rest
            pods = self.cache.objects(POD, key.namespace, body["metadata"]["uid"]) if listed else ()
            self.queue.add(key, urgent=not listed or any(has_ended(pod) for pod in pods))

    def _on_belonging(self, kind: Kind) -> Handler:
        async def belonging_event(event: Any, **_: Any) -> None:
            item, deleted = event["object"], event["type"] == "DELETED"
            if (key := self.cache.show(kind, item, deleted=deleted)) is not None:
                self.queue.add(key, urgent=kind == POD and (deleted or has_ended(item)))

        return belonging_event


def group_version(kind: Kind) -> tuple[str, str]:
    """Group and version of a kind, as kopf names them: the core group is ''."""
    group, _, version = kind.api_version.rpartition("/")
    return group, version


def _options(kind: Kind) -> kopf.OperatorSettings:
    options = kopf.OperatorSettings()
    options.posting.enabled = False  # Events are posted once each, by `status_writer`
    options.persistence.diffbase_storage = _NoDiffs()
    options.watching.server_timeout = WATCH_SECONDS
    options.watching.client_timeout = WATCH_SECONDS + 10
    options.watching.connect_timeout = CONNECT_SECONDS
    options.watching.chunk_size = LIST_CHUNK
    options.queueing.idle_timeout = FORGET_SECONDS
    # Checked here instead, without rights on namespaces and CRDs, and without kopf's wait of a minute for them.
    options.scanning.disabled = True
    options.networking.error_backoffs = ERROR_BACKOFFS
    if kind != CHAIN:
        group, version = group_version(kind)
        options.watching.label_selectors[group, version, kind.plural] = labels.CHAIN_UID
    return options


async def _run_kopf(**options: Any) -> None:
    """`kopf.operator`, which leaves the tasks of others alone as it ends."""
    own: Tasks = WeakSet()
    token = _kopfs_tasks.set(own)
    try:
        await kopf.run_tasks(await kopf.spawn_tasks(**options), ignored=_AllBut(own))
    finally:
        _kopfs_tasks.reset(token)


def _remembered_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    """Asyncio's own task, remembered as that of the kopf in whose context it is created."""
    task = asyncio.Task(coroutine, loop=loop, **options)
    if (own := _kopfs_tasks.get()) is not None:
        own.add(task)
    return task


class _AllBut(Collection[Any]):
    """Every task but these, as what kopf is to ignore: it asks for membership only."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks

    def __contains__(self, task: object) -> bool:
        return task not in self._tasks

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __len__(self) -> int:
        return 0


async def _sleep(seconds: float | None, stop: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)


class _NoDiffs(kopf.DiffBaseStorage):
    """Differences of objects are not used here, so kopf need not copy each object to find them."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        return None
