"""/healthz, /readyz and /metrics over HTTP. Metrics are written out in a thread, one scrape at a time: with thousands
of chains, the event loop would stand still meanwhile.

/healthz means that the operator still reconciles, or could. Whoever runs it ends a process that does not answer in
time (an event loop that is blocked), or that answers 503: the listings do not come to an end any more, or chains
wait and no pass over any of them does. An API server that is away is not a reason: to start anew would not
bring it back.

/readyz means that it has listed everything and follows the election of a leader. An operator that stands by is ready
as well: it could take over at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from aiohttp import web

from modelchain.errors import ConfigurationError
from modelchain_operator.kubernetes.leader_election import Leadership
from modelchain_operator.settings import Settings
from modelchain_operator.telemetry.metrics import CONTENT_TYPE, Metrics

# Without which the operator is not live:
LISTING_SECONDS = 120.0  # in which a listing that is due comes further
PASS_SECONDS = 150.0  # in which a pass ends; the worker ends one that takes longer than 120


class Listings(Protocol):
    """What the health of the resync is read from."""

    listed: asyncio.Event  # everything was listed once

    attempted_at: float | None  # monotonic: when the last listing ended or came further, with success or not


class HealthServer:
    """Answers the kubelet and Prometheus, in the event loop that it reports on."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        listings: Listings,
        leadership: Leadership | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host, self._port = settings.http_host, settings.http_port
        self._listing_seconds = 1.1 * settings.resync_seconds + LISTING_SECONDS
        self._metrics = metrics
        self._listings = listings
        self._leadership = leadership or Leadership.unopposed()
        self._clock = clock
        self._started_at = clock()
        self._nothing_waited_at = self._started_at
        self._runner: web.AppRunner | None = None
        self._exposing = ThreadPoolExecutor(1, thread_name_prefix="metrics")

    @property
    def port(self) -> int:
        """The port that it listens on; 0 in the settings means any free one."""
        assert self._runner is not None
        return int(self._runner.addresses[0][1])

    async def start(self) -> None:
        """Start listening. Raises ConfigurationError if the port is not free."""
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._expose)
        self._started_at = self._clock()
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError as error:
            await self._runner.cleanup()
            raise ConfigurationError(
                f"can't listen at {self._host} port {self._port}: {error.strerror}; choose another --http-port"
            ) from None

    async def close(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()
        self._exposing.shutdown(wait=False, cancel_futures=True)

    def problem(self) -> str:
        """Why the operator is not live; empty if it is."""
        now = self._clock()
        listing = now - (self._listings.attempted_at or self._started_at)
        if listing > self._listing_seconds:
            return f"no listing of the cluster has ended for {listing:.0f} s"
        waiting = self._metrics.queue_depth()
        since = now - max(self._metrics.pass_ended_at or self._started_at, self._waiting_since(now, waiting))
        if waiting and since > PASS_SECONDS:
            return f"{waiting} chains wait, and no pass has ended for {since:.0f} s"
        return ""

    def _waiting_since(self, now: float, waiting: int) -> float:
        """When the queue was last seen empty: after a quiet hour, the first chain is not late yet."""
        if not (waiting and self._listings.listed.is_set()):
            self._nothing_waited_at = now
        return self._nothing_waited_at

    async def _healthz(self, _: web.Request) -> web.Response:
        problem = self.problem()
        return web.Response(status=503 if problem else 200, text=(problem or "ok") + "\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        if not self._listings.listed.is_set():
            return web.Response(status=503, text="the cluster was not listed yet\n")
        if self._leadership.problem:
            return web.Response(status=503, text=f"no leader can be elected: {self._leadership.problem}\n")
        return web.Response(text="ok\n")

    async def _expose(self, _: web.Request) -> web.Response:
        body = await asyncio.get_running_loop().run_in_executor(self._exposing, self._metrics.exposition)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})
