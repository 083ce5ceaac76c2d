"""The operator as a kopf program: what is watched, how it starts, how it ends.

kopf watches; an event only says which chain to look at, and whether that is urgent: it is where somebody has
changed a chain, or a pod or a stage has ended. All passes, and all requests but the watches, are those of
`reconciler`. No finalizers, no annotations, no state in handlers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import kopf

from modelchain import __version__
from modelchain_operator import labels
from modelchain_operator.acceptance import Acceptance
from modelchain_operator.act import Actor
from modelchain_operator.cache import Cache
from modelchain_operator.health import HealthServer
from modelchain_operator.jobs import JobDefaults
from modelchain_operator.jobs.pods import has_ended
from modelchain_operator.kinds import CHAIN, JOB, POD, PYTORCHJOB, Kind
from modelchain_operator.kubernetes_api import KubernetesApi, load_config
from modelchain_operator.login import connection_info
from modelchain_operator.metrics import Metrics
from modelchain_operator.queue import Key, KeyQueue
from modelchain_operator.reconciler import Pace, Reconciler
from modelchain_operator.resync import Resync
from modelchain_operator.settings import Settings
from modelchain_operator.store_access import StoreAccess
from modelchain_operator.store_looks import StoreLooks
from modelchain_operator.store_reader import StoreReader

logger = logging.getLogger(__name__)

WATCH_SECONDS = 300  # then a watch is begun anew, so that a dead one is not believed for long
CONNECT_SECONDS = 60
REWATCH_SECONDS = 5.0  # after watching has failed; what is missed meanwhile, the next resync finds
LIST_CHUNK = 50
FORGET_SECONDS = (
    0.2  # kopf keeps an object that long after we have seen it: at the start, all of them at once
)
CLOSE_SECONDS = 20.0  # for the passes under way when the operator is told to stop


async def run(settings: Settings) -> int:
    """Run the operator until it is told to stop. Returns the exit code. Raises ConfigurationError."""
    config = load_config(settings.kubeconfig, settings.context)
    metrics = Metrics()
    api = KubernetesApi(config, settings.context, on_request=metrics.api_request)
    cache, queue = Cache(), KeyQueue()
    metrics.watch_queue(lambda: len(queue))
    access = StoreAccess(
        api,
        settings.own_identity_stores,
        settings.allowed_endpoints,
        connections=settings.store_threads,
        wrap=metrics.measured,
    )
    reader = StoreReader(
        queue.add,
        on_finished=lambda key: queue.add(key, urgent=True),
        threads=settings.store_threads,
        requests_per_second=settings.store_requests_per_second,
        artifact_check_seconds=settings.artifact_check_seconds,
        progress_seconds=settings.progress_seconds,
        on_refused=access.doubt,
    )
    reconciler = Reconciler(
        api=api,
        cache=cache,
        queue=queue,
        stores=StoreLooks(access, reader),
        acceptance=Acceptance(settings.default_image),
        actor=Actor(api, JobDefaults(image=settings.default_image)),
        metrics=metrics,
        pace=Pace(progress_seconds=settings.progress_seconds),
        identity=settings.identity,
    )
    resync = Resync(api, cache, queue, reconciler.not_served, namespaces=settings.namespaces)
    health = HealthServer(settings, metrics, resync)
    await health.start()
    logger.info(
        "ModelChain operator %s at %s, namespaces: %s; health and metrics at http://%s:%d",
        __version__,
        api.config.cluster.server,
        ", ".join(settings.namespaces) or "all",
        settings.http_host,
        health.port,
    )
    reader.start()
    listing = asyncio.create_task(resync.run(settings.resync_seconds), name="resync")
    passes = [
        asyncio.create_task(_work(resync, reconciler), name=f"pass-{number}")
        for number in range(settings.workers)
    ]
    try:
        await _keep_watching(settings, api, cache, queue)
    finally:
        listing.cancel()
        queue.close()
        _, late = await asyncio.wait(passes, timeout=CLOSE_SECONDS)
        for task in late:
            task.cancel()
        await asyncio.gather(listing, *passes, return_exceptions=True)
        await reconciler.close(CLOSE_SECONDS / 4)
        await reader.close()
        access.close()
        await health.close()
        await api.close()
    return 0


async def _work(resync: Resync, reconciler: Reconciler) -> None:
    """Passes begin once everything was listed: what runs already is known then."""
    await resync.listed.wait()
    await reconciler.work()


async def _keep_watching(settings: Settings, api: KubernetesApi, cache: Cache, queue: KeyQueue) -> None:
    """Watch until SIGTERM or SIGINT, whatever happens."""
    while True:
        if await _watch(settings, api, cache, queue):
            return
        await asyncio.sleep(REWATCH_SECONDS)


async def _watch(settings: Settings, api: KubernetesApi, cache: Cache, queue: KeyQueue) -> bool:
    """Watch chains, jobs and pods with kopf. Returns True after SIGTERM or SIGINT, False if watching has failed."""
    registry = kopf.OperatorRegistry()
    options = kopf.OperatorSettings()
    options.posting.enabled = False  # events are posted once each, by `chain_events`
    options.persistence.diffbase_storage = _NoDiffs()
    options.watching.server_timeout = WATCH_SECONDS
    options.watching.client_timeout = WATCH_SECONDS + 10
    options.watching.connect_timeout = CONNECT_SECONDS
    options.watching.chunk_size = LIST_CHUNK
    options.queueing.idle_timeout = FORGET_SECONDS
    for kind in (PYTORCHJOB, JOB, POD):
        group, version = _group_version(kind)
        options.watching.label_selectors[group, version, kind.plural] = labels.CHAIN_UID

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        return await connection_info(api.config)

    @kopf.on.event(*_group_version(CHAIN), CHAIN.plural, registry=registry)
    async def chain_event(event: Any, **_: Any) -> None:
        body = event["object"]
        if event["type"] == "DELETED":
            metadata = body["metadata"]
            key = Key(metadata["namespace"], metadata["name"])
            if cache.drop_chain(key, metadata["uid"]):
                queue.add(key, urgent=True)
        elif (key := cache.show_chain(body)) is not None:
            queue.add(key, urgent=True)

    def on_belonging(kind: Kind) -> Callable[..., Any]:
        async def belonging_event(event: Any, **_: Any) -> None:
            item, deleted = event["object"], event["type"] == "DELETED"
            if (key := cache.show(kind, item, deleted=deleted)) is not None:
                queue.add(key, urgent=kind == POD and (deleted or has_ended(item)))

        return belonging_event

    for kind in (PYTORCHJOB, JOB, POD):
        group, version = _group_version(kind)
        kopf.on.event(group, version, kind.plural, registry=registry, id=f"{kind.plural}-event")(
            on_belonging(kind)
        )

    try:
        await kopf.operator(
            registry=registry,
            settings=options,
            standalone=True,
            clusterwide=not settings.namespaces,
            namespaces=settings.namespaces,
        )
    except Exception as error:  # noqa: BLE001  one watch that is refused ends all of kopf's
        logger.error("watching has failed: %s; again in %.0f s", str(error)[:300], REWATCH_SECONDS)
        return False
    return True


class _NoDiffs(kopf.DiffBaseStorage):
    """Nothing here asks what has changed in an object, so kopf need not copy each to find out."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        return None


def _group_version(kind: Kind) -> tuple[str, str]:
    """Of a kind, as kopf wants it: the core group is ''."""
    group, _, version = kind.api_version.rpartition("/")
    return group, version
