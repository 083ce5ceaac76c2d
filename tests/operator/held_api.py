"""Stands between an operator and the API server, holds requests at the point a test names, and remembers writes."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from aiohttp import web

from tests.control_plane.plane import ControlPlane
from tests.operator.unreliable_api import CHANGES, UnreliableApi

HELD_SECONDS = 240.0


class Request(NamedTuple):
    """One request of the operator."""

    method: str
    path: str
    body: dict[str, Any]


class HeldApi(UnreliableApi):
    """Holds the first request that fits, before it reaches the API server or after it was carried out."""

    def __init__(self, plane: ControlPlane, folder: Path) -> None:
        super().__init__(plane, folder)
        self.writes: list[Request] = []  # that reached this server, other than to Leases
        self._fits: Callable[[Request], bool] | None = None
        self._when: Literal["before", "after"] = "before"
        self._held = threading.Event()
        self._forwards = True
        self._release = asyncio.Event()

    def hold(self, fits: Callable[[Request], bool], when: Literal["before", "after"]) -> None:
        """Hold the next request that fits."""
        self._held.clear()
        self._when, self._fits = when, fits

    def wait_for_held(self) -> None:
        """Return once a request is held."""
        assert self._held.wait(HELD_SECONDS), f"nothing was held; writes so far: {self.writes}"

    def release(self, *, forward: bool = True) -> None:
        """Let what is held go on; what has not reached the API server never does unless `forward`."""
        self._forwards = forward
        self._loop.call_soon_threadsafe(self._release.set)

    def close(self) -> None:
        """End, and leave nothing held."""
        self._fits = None
        self.release(forward=False)
        super().close()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read() or b"{}")
        seen = Request(request.method, request.path, body)
        if seen.method in CHANGES and "/leases" not in seen.path:
            self.writes.append(seen)
        if self._fits is None or not self._fits(seen):
            return await super()._answer(request)
        self._fits, self._release = None, asyncio.Event()
        answer = await super()._answer(request) if self._when == "after" else None
        self._held.set()
        await self._release.wait()
        if answer is not None:
            return answer
        return await super()._answer(request) if self._forwards else web.Response(status=503)
