"""Stands between the operator and the API server, and answers as a failing server does."""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import threading
from collections import Counter
from contextlib import suppress
from itertools import cycle
from pathlib import Path

import aiohttp
from aiohttp import web

from tests.control_plane.plane import ControlPlane

CHANGES = ("POST", "PUT", "PATCH", "DELETE")
FAULTS_OF_READS = ("throttled", "broken")
FAULTS_OF_CHANGES = ("conflict", "lost", "throttled", "broken")  # in turn: there are few changes
RATE_OF_READS = 0.15  # the share of requests that go wrong
RATE_OF_CHANGES = 0.5
WATCH_SECONDS = (1.0, 6.0)  # a watch expires after some time between these


class UnreliableApi:
    """An HTTP server in front of the API server. From `begin` on, many requests go wrong, each in one of these ways:

    `conflict` (409), `throttled` (429), `broken` (500), `lost` (carried out, but the connection ends before the
    answer), and `expired` for watches (410, in mid-stream).

    Args:
        plane: whose API server it is.
        folder: where the kubeconfig that leads here is written.
    """

    def __init__(self, plane: ControlPlane, folder: Path) -> None:
        self.faults: Counter[str] = Counter()
        self.kubeconfig = folder / "unreliable.kubeconfig"
        self._plane = plane
        self._chance = random.Random(11)
        self._of_reads, self._of_changes = cycle(FAULTS_OF_READS), cycle(FAULTS_OF_CHANGES)
        self._problem = False
        self._loop = asyncio.new_event_loop()
        self._session: aiohttp.ClientSession | None = None
        self._runner: web.AppRunner | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def start(self) -> None:
        """Listen; the kubeconfig can be used then."""
        self._thread.start()
        port = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(30)
        config = json.loads(self._plane.kubeconfig.read_text())
        config["clusters"][0]["cluster"] = {"server": f"http://127.0.0.1:{port}"}
        self.kubeconfig.write_text(json.dumps(config))

    def begin(self) -> None:
        """Requests go wrong from now on."""
        self._problem = True

    def close(self) -> None:
        """End."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    async def _listen(self) -> int:
        unchecked = ssl.create_default_context()
        unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=unchecked, limit=0),
            headers={"Authorization": f"Bearer {self._plane.token}"},
            auto_decompress=False,
        )
        application = web.Application(client_max_size=2**24)
        application.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return self._runner.addresses[0][1]

    async def _close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        if self._session is not None:
            await self._session.close()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        watch = request.query.get("watch", "") in {"true", "1"}
        change = request.method in CHANGES
        rate = RATE_OF_CHANGES if change else RATE_OF_READS
        wrong = self._problem and not watch and self._chance.random() < rate
        fault = next(self._of_changes if change else self._of_reads) if wrong else None
        if fault is not None:
            self.faults[fault] += 1
        if fault == "conflict":
            return _status(409, "Conflict", "the object has been modified; please apply your changes to it")
        if fault == "throttled":
            return _status(429, "TooManyRequests", "too many requests, try again", {"Retry-After": "1"})
        if fault == "broken":
            return _status(500, "InternalError", "etcdserver: leader changed")
        return await self._forward(request, watch=watch, lost=fault == "lost")

    async def _forward(self, request: web.Request, *, watch: bool, lost: bool) -> web.StreamResponse:
        assert self._session is not None
        kept = {"Accept", "Content-Type", "Accept-Encoding"}
        async with self._session.request(
            request.method,
            self._plane.url + request.raw_path,
            data=await request.read() or None,
            headers={name: value for name, value in request.headers.items() if name in kept},
            skip_auto_headers=("Content-Type",),
            timeout=aiohttp.ClientTimeout(),
        ) as answer:
            passed = {
                name: answer.headers[name]
                for name in ("Content-Type", "Content-Encoding")
                if name in answer.headers
            }
            if not watch:
                body = await answer.read()
                if lost and request.transport is not None:
                    request.transport.abort()
                return web.Response(status=answer.status, body=body, headers=passed)
            stream = web.StreamResponse(status=answer.status, headers=passed)
            await stream.prepare(request)
            try:
                async with asyncio.timeout(self._chance.uniform(*WATCH_SECONDS) if self._problem else None):
                    async for line in answer.content:
                        await stream.write(line)
            except TimeoutError:
                self.faults["expired"] += 1
                expired = {
                    "kind": "Status",
                    "code": 410,
                    "reason": "Expired",
                    "message": "too old resource version",
                }
                with suppress(ConnectionError):  # its reader may have gone first
                    await stream.write(json.dumps({"type": "ERROR", "object": expired}).encode() + b"\n")
            return stream


def _status(code: int, reason: str, message: str, headers: dict[str, str] | None = None) -> web.Response:
    body = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message,
    }
    return web.json_response(body, status=code, headers=headers)
