"""Liveness means that it still reconciles; readiness, that it knows the cluster."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp
import pytest

from modelchain.errors import ConfigurationError, ExitCode
from modelchain_operator.kubernetes.key import Key
from modelchain_operator.settings import Settings
from modelchain_operator.telemetry.health import LISTING_SECONDS, PASS_SECONDS, HealthServer
from modelchain_operator.telemetry.metrics import Metrics
from modelchain_operator.work_queue import KeyQueue
from tests.clock import Clock
from tests.operator.stores.flaky_store import run

SETTINGS = Settings(http_host="127.0.0.1", http_port=0, identity="test", resync_seconds=30)
LISTING_ALLOWED = 1.1 * 30 + LISTING_SECONDS


class Resync:
    """When the last listing ended."""

    def __init__(self) -> None:
        self.listed = asyncio.Event()
        self.attempted_at: float | None = None


@asynccontextmanager
async def serving(
    metrics: Metrics, resync: Resync, clock: Clock | None = None
) -> AsyncIterator[HealthServer]:
    server = HealthServer(SETTINGS, metrics, resync, clock=clock or Clock())
    await server.start()
    try:
        yield server
    finally:
        await server.close()


async def get(server: HealthServer, path: str) -> tuple[int, str, str]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{server.port}{path}") as answer,
    ):
        return answer.status, await answer.text(), answer.headers["Content-Type"]


def test_it_is_ready_once_everything_was_listed() -> None:
    async def scenario() -> None:
        resync = Resync()
        async with serving(Metrics(), resync) as server:
            assert (await get(server, "/readyz"))[0] == 503
            assert (await get(server, "/healthz"))[0] == 200, "it has just begun"
            resync.listed.set()
            assert (await get(server, "/readyz"))[0] == 200

    run(scenario())


def test_the_event_loop_goes_on_while_metrics_are_written_out() -> None:
    class Slow(Metrics):
        def exposition(self) -> bytes:
            assert answered.wait(240), "nobody else was answered"
            return b""

    async def scenario() -> None:
        async with serving(Slow(), Resync()) as server:
            scrape = asyncio.create_task(get(server, "/metrics"))
            assert (await get(server, "/healthz"))[0] == 200
            answered.set()
            assert (await scrape)[0] == 200

    answered = threading.Event()
    run(scenario())


def test_it_is_dead_when_no_listing_ends_any_more() -> None:
    async def scenario() -> None:
        resync, clock = Resync(), Clock()
        async with serving(Metrics(), resync, clock) as server:
            resync.attempted_at = clock.now
            clock.now += LISTING_ALLOWED
            assert (await get(server, "/healthz"))[0] == 200
            clock.now += 1
            code, text, _ = await get(server, "/healthz")
            assert code == 503
            assert "no listing of the cluster has ended for 154 s" in text

    run(scenario())


def test_it_is_dead_when_chains_wait_and_no_pass_ends() -> None:
    async def scenario() -> None:
        resync, metrics, queue, clock = Resync(), Metrics(), KeyQueue(), Clock()
        metrics.watch_queue(lambda: len(queue))
        async with serving(metrics, resync, clock) as server:
            resync.listed.set()
            metrics.pass_ended_at = clock.now
            clock.now += 3600
            resync.attempted_at = clock.now
            assert (await get(server, "/healthz"))[0] == 200, "nothing waits: a quiet hour is no failure"
            queue.add(Key("default", "family"))
            clock.now += PASS_SECONDS
            resync.attempted_at = clock.now
            assert (await get(server, "/healthz"))[0] == 200, "it does not wait for long yet"
            clock.now += 1
            code, text, _ = await get(server, "/healthz")
            assert code == 503
            assert "1 chains wait" in text
            metrics.pass_ended_at = clock.now
            assert (await get(server, "/healthz"))[0] == 200

    run(scenario())


def test_metrics_are_served_as_prometheus_reads_them() -> None:
    async def scenario() -> None:
        async with serving(Metrics(), Resync()) as server:
            code, text, kind = await get(server, "/metrics")
            assert code == 200
            assert kind == "text/plain; version=0.0.4; charset=utf-8"
            assert 'modelchain_chains{phase="Running"} 0.0' in text
            assert (await get(server, "/"))[0] == 404

    run(scenario())


def test_a_blocked_loop_does_not_answer() -> None:
    """What the kubelet's time-out is for: nothing here pretends to live beside a loop that does not."""

    def ask(port: int) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=0.5) as connection:
            connection.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            try:
                return connection.recv(100)
            except TimeoutError:
                return b""

    async def scenario() -> None:
        async with serving(Metrics(), Resync()) as server:
            with ThreadPoolExecutor(1) as thread:
                assert thread.submit(ask, server.port).result() == b"", (
                    "the loop waits here, and answers nobody"
                )

    run(scenario())


def test_a_port_that_is_taken_is_named() -> None:
    async def scenario() -> None:
        async with serving(Metrics(), Resync()) as server:
            taken = replace(SETTINGS, http_port=server.port)
            with pytest.raises(ConfigurationError, match=f"port {server.port}.*--http-port") as caught:
                await HealthServer(taken, Metrics(), Resync()).start()
            assert caught.value.exit_code == ExitCode.CONFIG

    run(scenario())
