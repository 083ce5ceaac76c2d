"""Requests to the API server over aiohttp, which kopf has loaded already."""

from __future__ import annotations

import asyncio
import base64
import re
import ssl
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import aiohttp

from modelchain import __version__
from modelchain.proxies import proxy_for
from modelchain_operator.kubernetes import json_reader
from modelchain_operator.kubernetes.cluster_access import ClusterAccess
from modelchain_operator.kubernetes.credentials import read_token, tls_context

TIMEOUT_SECONDS = 20.0
UNREACHABLE = (aiohttp.ClientError, OSError, TimeoutError)  # what `send` raises where no answer came


@dataclass(frozen=True)
class Answer:
    """A response of the API server."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    warnings: tuple[str, ...] = ()  # what it says beside its answer: of deprecated APIs, of admission

    def json(self) -> Any:
        """The content as a value. Raises ValueError."""
        return json_reader.loads(self.content)


class Connection:
    """A pool of connections. Used in one event loop."""

    def __init__(self, access: ClusterAccess) -> None:
        self._access = access
        self._session: aiohttp.ClientSession | None = None
        self._tls: ssl.SSLContext | None = None
        self._token: str | None = None
        self._reading = asyncio.Lock()

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request. Raises one of UNREACHABLE, and ConfigurationError if there are no credentials.

        A refused token is read again, once: tokens of service accounts and of commands expire. So are certificates
        where TLS fails: a cluster's authority is replaced in its file.
        """
        if self._session is None:
            self._session = self._open()
        token = self._token or await self._read_token(None)
        answer = await self._send(self._session, method, path, query, body, headers, token)
        if answer.status == 401 and (new := await self._read_token(token)) != token:
            answer = await self._send(self._session, method, path, query, body, headers, new)
        return answer

    async def _send(
        self,
        session: aiohttp.ClientSession,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: bytes | None,
        headers: Mapping[str, str] | None,
        token: str | None,
    ) -> Answer:
        sent = {**(headers or {}), **({"Authorization": f"Bearer {token}"} if token else {})}
        url = f"{self._access.server.rstrip('/')}{path}"
        request = partial(
            session.request, method, url, params=query, data=body, headers=sent, allow_redirects=False
        )
        try:
            return await _answer(request(ssl=self._tls or self._read_tls()))
        except aiohttp.ClientSSLError:
            return await _answer(request(ssl=self._read_tls()))

    def _read_tls(self) -> ssl.SSLContext:
        """How the API server is verified, by the files as they are now. Raises OSError."""
        self._tls = tls_context(self._access)
        return self._tls

    async def _read_token(self, refused: str | None) -> str | None:
        """The user's token; read again if the current one is the refused one."""
        async with self._reading:
            if self._token == refused:
                self._token = await read_token(self._access)
            return self._token

    def _open(self) -> aiohttp.ClientSession:
        access = self._access
        headers = {"User-Agent": f"modelchain-operator/{__version__}"}
        if access.username:  # a token takes precedence
            password = base64.b64encode(f"{access.username}:{access.password or ''}".encode()).decode()
            headers["Authorization"] = f"Basic {password}"
        return aiohttp.ClientSession(
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers,
            proxy=proxy_for(access.server),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
        )


async def _answer(request: AbstractAsyncContextManager[aiohttp.ClientResponse]) -> Answer:
    async with request as response:
        warnings = tuple(map(_warning, response.headers.getall("Warning", ())))
        return Answer(response.status, response.headers, await response.read(), warnings)


def _warning(header: str) -> str:
    """The text of a header `299 - "text"`. https://www.rfc-editor.org/rfc/rfc7234#section-5.5"""
    quoted = re.search(r'"((?:[^"\\]|\\.)*)"', header)
    return re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else header
