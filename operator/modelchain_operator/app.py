"""The operator as a program: how its parts are put together, how it starts, how it ends.

kopf watches; an event only says which chain to reconcile, and whether that is urgent: a chain was changed, or a pod or
a stage has ended. No finalizers, no annotations, no state in handlers.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

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
    return await _put_together(settings).run()


def _put_together(settings: Settings) -> _Operator:
    """All parts, each with those that it works with; nothing runs yet."""
    metrics = Metrics(max_chains=settings.metrics_max_chains)
    cluster_access = load_config(settings.kubeconfig, settings.context)
    leadership = Leadership() if settings.lease else Leadership.unopposed()
    api = KubernetesApi(cluster_access, on_request=metrics.api_request, may_write=leadership.is_held)
    election_api = KubernetesApi(cluster_access, on_request=metrics.api_request)
    queue = KeyQueue()
    metrics.watch_queue(lambda: len(queue) if leadership.is_held() else 0)
    metrics.watch_leadership(leadership.is_held)
    limit = ChainLimit(settings.max_running_chains, queue.add)
    cache = Cache(limit.show)
    cluster = LiveView(api, cache)
    statuses = StatusWriter(api, cache, metrics, settings.identity)
    access = _store_access(settings, api, metrics)
    reader = _store_reader(settings, access, queue, leadership)
    stores = StoreViews(access, reader)
    reconciler = build_reconciler(settings, api, cluster, cache, queue, stores, statuses, limit, metrics)
    resync = Resync(api, cache, queue, cluster.not_served, namespaces=settings.namespaces)
    return _Operator(
        settings=settings,
        api=api,
        election_api=election_api,
        leadership=leadership,
        elector=_elector(settings, election_api, leadership),
        queue=queue,
        watches=Watches(api, cache, queue, settings.namespaces, resync.hint),
        resync=resync,
        worker=Worker(reconciler.reconcile, queue, metrics),
        statuses=statuses,
        access=access,
        reader=reader,
        health=HealthServer(settings, metrics, resync, leadership),
    )


@dataclass(frozen=True, kw_only=True)
class _Operator:
    """The parts that begin or end."""

    settings: Settings
    api: KubernetesApi
    election_api: KubernetesApi  # writes before this operator leads
    leadership: Leadership
    elector: LeaderElector | None
    queue: KeyQueue
    watches: Watches
    resync: Resync
    worker: Worker
    statuses: StatusWriter
    access: StoreAccess
    reader: StoreReader
    health: HealthServer

    async def run(self) -> int:
        """Watch, list, read stores and make passes until told to stop, or until another one leads."""
        await self.health.start()
        self._say_where()
        self.reader.start()
        stop = asyncio.Event()
        election = (
            asyncio.create_task(self._elect(self.elector, stop), name="election") if self.elector else None
        )
        listing = asyncio.create_task(self.resync.run(self.settings.resync_seconds), name="resync")
        passes = [
            asyncio.create_task(self._make_passes(), name=f"pass-{number}")
            for number in range(self.settings.workers)
        ]
        try:
            await self.watches.run(stop)
        finally:
            lost = election is not None and election.done()
            await self._end_work(listing, passes, 0.0 if lost else CLOSE_SECONDS)
            if self.elector is not None and election is not None:
                election.cancel()
                await asyncio.gather(election, return_exceptions=True)
                await self.elector.release()  # now that nothing acts here any more
            await self._close()
        return ExitCode.HELD if lost else ExitCode.OK

    async def _make_passes(self) -> None:
        """Once all that can be listed was, so that what runs is known, and once this operator leads."""
        await self.resync.listed.wait()
        await self.leadership.begun.wait()
        await self.worker.run()

    async def _elect(self, elector: LeaderElector, stop: asyncio.Event) -> None:
        """Stand by, then lead; end the operator when another one may lead, or this can't be told any more."""
        try:
            await elector.acquire()
            self.queue.begin()
            lost = await elector.keep()
            logger.error("%s: this operator ends, and stands by when it is started again", lost)
        except Exception:
            logger.exception("the election failed: this operator ends")
        finally:
            stop.set()

    async def _end_work(
        self, listing: asyncio.Task[None], passes: Sequence[asyncio.Task[None]], seconds: float
    ) -> None:
        """End all that writes; the passes under way have so long."""
        listing.cancel()
        self.queue.close()
        _, late = await asyncio.wait(passes, timeout=seconds)
        for task in late:
            task.cancel()
        await asyncio.gather(listing, *passes, return_exceptions=True)
        await self.statuses.close(seconds / 4)
        await self.reader.close()

    async def _close(self) -> None:
        """Give back what nothing uses any more."""
        self.access.close()
        await self.health.close()
        await self.election_api.close()
        await self.api.close()

    def _say_where(self) -> None:
        logger.info(
            "ModelChain operator %s at %s, namespaces: %s; health and metrics at http://%s:%d",
            __version__,
            self.api.access.server,
            ", ".join(self.settings.namespaces) or "all",
            self.settings.http_host,
            self.health.port,
        )


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
