"""The operator as a kopf program: what is watched, how it starts, how it ends.

kopf watches; an event only says which chain to look at, and whether that is urgent: it is where somebody has
changed a chain, or a pod or a stage has ended. All passes, and all requests but the watches, are those of
`reconciler`. No finalizers, no annotations, no state in handlers.
"""

from __future__ import annotations

import asyncio
import logging

from modelchain import __version__
from modelchain_operator.acceptance import Acceptance
from modelchain_operator.act import Actor
from modelchain_operator.cache import Cache
from modelchain_operator.health import HealthServer
from modelchain_operator.jobs import JobDefaults
from modelchain_operator.kubernetes_api import KubernetesApi, load_config
from modelchain_operator.metrics import Metrics
from modelchain_operator.queue import KeyQueue
from modelchain_operator.reconciler import Pace, Reconciler
from modelchain_operator.resync import Resync
from modelchain_operator.settings import Settings
from modelchain_operator.store_access import StoreAccess
from modelchain_operator.store_looks import StoreLooks
from modelchain_operator.store_reader import StoreReader
from modelchain_operator.watching import Watches

logger = logging.getLogger(__name__)

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
        api_server=api.config.cluster.server,
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
        await Watches(api, cache, queue, settings.namespaces).run()
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
