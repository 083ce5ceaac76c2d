"""The operator as a program: how its parts are put together, how it starts, how it ends.

kopf watches; an event only says which chain to reconcile, and whether that is urgent: a chain was changed, or a pod or
a stage has ended. No finalizers, no annotations, no state in handlers.
"""

from __future__ import annotations

import asyncio
import logging
import os

from modelchain import __version__
from modelchain.errors import ExitCode
from modelchain_operator.acceptance import Acceptance
from modelchain_operator.chain_limit import ChainLimit
from modelchain_operator.executor import Executor
from modelchain_operator.informers.cache import Cache
from modelchain_operator.informers.resync import Resync
from modelchain_operator.informers.watches import Watches
from modelchain_operator.job_writer import JobWriter
from modelchain_operator.jobs import JobDefaults
from modelchain_operator.kubernetes.api import KubernetesApi, load_config
from modelchain_operator.kubernetes.cluster_access import service_url
from modelchain_operator.kubernetes.leader_election import ElectionTerms, LeaderElector, Leadership
from modelchain_operator.live_view import LiveView
from modelchain_operator.pending_diagnosis import PendingDiagnosis
from modelchain_operator.reconciler import Reconciler
from modelchain_operator.refused_chains import RefusedChains
from modelchain_operator.settings import Settings
from modelchain_operator.status_writer import StatusWriter
from modelchain_operator.stores.access import StoreAccess
from modelchain_operator.stores.reader import StoreReader
from modelchain_operator.stores.views import StoreViews
from modelchain_operator.telemetry.health import HealthServer
from modelchain_operator.telemetry.metrics import Metrics
from modelchain_operator.work_queue import KeyQueue
from modelchain_operator.worker import Worker

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 20.0  # for the passes under way when the operator is told to stop


async def run(settings: Settings) -> int:
    """Run the operator until it is told to stop, or another one leads. Returns the exit code. Raises
    ConfigurationError.
    """
    metrics = Metrics(max_chains=settings.metrics_max_chains)
    cluster_access = load_config(settings.kubeconfig, settings.context)
    leadership = Leadership() if settings.lease else Leadership.unopposed()
    api = KubernetesApi(cluster_access, on_request=metrics.api_request, may_write=leadership.is_held)
    election_api = KubernetesApi(cluster_access, on_request=metrics.api_request)
    elector = _elector(settings, election_api, leadership)
    queue = KeyQueue()
    limit = ChainLimit(settings.max_running_chains, queue.add)
    cache = Cache(limit.show)
    metrics.watch_queue(lambda: len(queue) if leadership.is_held() else 0)
    metrics.watch_leadership(leadership.is_held)
    access = _store_access(settings, api, metrics)
    reader = _store_reader(settings, access, queue, leadership)
    cluster = LiveView(api, cache)
    statuses = StatusWriter(api, cache, metrics, settings.identity)
    reconciler = build_reconciler(
        settings, api, cluster, cache, queue, StoreViews(access, reader), statuses, limit, metrics
    )
    resync = Resync(api, cache, queue, cluster.not_served, namespaces=settings.namespaces)
    health = HealthServer(settings, metrics, resync, leadership)
    await health.start()
    _say_where(settings, api, health)
    reader.start()
    listing = asyncio.create_task(resync.run(settings.resync_seconds), name="resync")
    worker = Worker(reconciler.reconcile, queue, metrics)
    passes = [
        asyncio.create_task(_work(resync, leadership, worker), name=f"pass-{number}")
        for number in range(settings.workers)
    ]
    stop = asyncio.Event()
    election = asyncio.create_task(_elect(elector, queue, stop), name="election") if elector else None
    try:
        await Watches(api, cache, queue, settings.namespaces, resync.hint).run(stop)
    finally:
        lost = election is not None and election.done()
        grace_seconds = 0.0 if lost else CLOSE_SECONDS
        listing.cancel()
        queue.close()
        _, late = await asyncio.wait(passes, timeout=grace_seconds)
        for task in late:
            task.cancel()
        await asyncio.gather(listing, *passes, return_exceptions=True)
        await statuses.close(grace_seconds / 4)
        await reader.close()
        if elector is not None and election is not None:
            election.cancel()
            await asyncio.gather(election, return_exceptions=True)
            await elector.release()  # now that nothing acts here any more
        access.close()
        await health.close()
        await election_api.close()
        await api.close()
    return ExitCode.HELD if lost else ExitCode.OK


async def _elect(elector: LeaderElector, queue: KeyQueue, stop: asyncio.Event) -> None:
    """Stand by, then lead; end the operator when another one may lead, or this can't be told any more."""
    try:
        await elector.acquire()
        queue.begin()
        logger.error("%s: this operator ends, and stands by when it is started again", await elector.keep())
    except Exception:
        logger.exception("the election failed: this operator ends")
    finally:
        stop.set()


def _elector(settings: Settings, api: KubernetesApi, leadership: Leadership) -> LeaderElector | None:
    if settings.lease is None:
        return None
    terms = ElectionTerms(
        namespace=settings.lease.namespace,
        name=settings.lease.name,
        duration_seconds=settings.lease_duration_seconds,
        renew_deadline_seconds=settings.renew_deadline_seconds,
        retry_period_seconds=settings.retry_period_seconds,
    )
    return LeaderElector(api, terms, settings.identity, leadership)


def _store_access(settings: Settings, api: KubernetesApi, metrics: Metrics) -> StoreAccess:
    api_servers = [api.access.server]
    if "KUBERNETES_SERVICE_HOST" in os.environ:  # with a kubeconfig, another way to the same cluster
        api_servers.append(service_url(os.environ))
    return StoreAccess(
        api,
        settings.own_identity_stores,
        settings.allowed_endpoints,
        connections=settings.store_threads,
        wrap=metrics.measured,
        api_servers=api_servers,
    )


def _store_reader(
    settings: Settings, access: StoreAccess, queue: KeyQueue, leadership: Leadership
) -> StoreReader:
    return StoreReader(
        queue.add,
        on_finished=lambda key: queue.add(key, urgent=True),
        threads=settings.store_threads,
        requests_per_second=settings.store_requests_per_second,
        artifact_check_seconds=settings.artifact_check_seconds,
        progress_seconds=settings.progress_seconds,
        on_refused=access.expire_credentials,
        may_write=leadership.is_held,
    )


def build_reconciler(
    settings: Settings,
    api: KubernetesApi,
    cluster: LiveView,
    cache: Cache,
    queue: KeyQueue,
    stores: StoreViews,
    statuses: StatusWriter,
    limit: ChainLimit,
    metrics: Metrics,
) -> Reconciler:
    """The reconciler and what it works with that nobody else needs."""
    acceptance = Acceptance(settings.default_image)
    job_writer = JobWriter(api, JobDefaults(image=settings.default_image))
    return Reconciler(
        cache=cache,
        queue=queue,
        cluster=cluster,
        stores=stores,
        acceptance=acceptance,
        refused=RefusedChains(
            acceptance=acceptance,
            cluster=cluster,
            queue=queue,
            stores=stores,
            statuses=statuses,
            metrics=metrics,
        ),
        diagnosis=PendingDiagnosis(api, queue),
        limit=limit,
        statuses=statuses,
        executor=Executor(job_writer, cache),
        job_writer=job_writer,
        metrics=metrics,
        progress_seconds=settings.progress_seconds,
    )


def _say_where(settings: Settings, api: KubernetesApi, health: HealthServer) -> None:
    logger.info(
        "ModelChain operator %s at %s, namespaces: %s; health and metrics at http://%s:%d",
        __version__,
        api.access.server,
        ", ".join(settings.namespaces) or "all",
        settings.http_host,
        health.port,
    )


async def _work(resync: Resync, leadership: Leadership, worker: Worker) -> None:
    """Passes begin once all that can be listed was, so that what runs is known, and once this operator leads."""
    await resync.listed.wait()
    await leadership.begun.wait()
    await worker.run()
