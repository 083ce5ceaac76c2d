"""What botocore has no setting for: how much an answer may hold, how long a call may take in all, and which addresses a
connection may reach.

A time-out counts from byte to byte: a server that sends one now and then keeps it from passing. An answer that is no
object's body is read into memory before anything looks at it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, zip_longest
from socket import SHUT_RDWR, socket
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from botocore.awsrequest import (
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
    AWSResponse,
)
from botocore.exceptions import ConnectionClosedError
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError

from modelchain.store.base import StoreUnavailable
from modelchain.store.s3_answers import NotS3Error

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")

# Of a listing's page, the largest: 1,000 keys of 1,024 bytes each, all of them escaped, and what is said of each.
ANSWER_BYTES = 4 << 20
ADDRESSES_TRIED = 4  # of a host that has more
_CHUNK_BYTES = 1 << 16


class _Thread(threading.local):
    """What counts for the requests of this thread."""

    limit: TimeLimit | None = None
    addresses: list[str] | None = None  # of the host that is asked now; None: whatever its name resolves to


_thread = _Thread()
_owners = threading.Lock()  # of `_Watched.limit`


class TimeLimit:
    """Ends all that one function asks of S3, when `cut` is called: at once in another thread, and at any moment."""

    def __init__(self) -> None:
        self.is_cut = False
        self._connection: _Watched | None = None

    def run(self, function: Callable[..., T], *arguments: object) -> T:
        """Call `function` in this thread. From `cut` on, its requests raise StoreUnavailable."""
        _thread.limit = self
        try:
            return function(*arguments)
        finally:
            _thread.limit = None
            with _owners:
                self._connection = None

    def cut(self) -> None:
        """Close the connection that is in use, and let no other request begin."""
        with _owners:
            self.is_cut = True
            connection = self._connection
            if connection is not None and connection.limit is self and connection.socket is not None:
                used = connection.socket
                with suppress(OSError):  # closed already
                    # Of the socket below TLS: that of TLS would first let go of its encryption, which others still use.
                    socket.shutdown(getattr(used, "socket", used), SHUT_RDWR)

    def watch(self, connection: _Watched) -> None:
        """The function uses this connection now. Raises ConnectionError if the limit was cut."""
        with _owners:
            if self.is_cut:
                raise ConnectionAbortedError("out of time")
            self._connection, connection.limit = connection, self


def require_time(uri: str) -> None:
    """Raises StoreUnavailable if this thread's limit was cut: what looks like the end of an answer may then be none."""
    if _thread.limit is not None and _thread.limit.is_cut:
        raise StoreUnavailable(f"{uri}: the store's answer was not complete in time")


class _Watched(Protocol):
    limit: TimeLimit | None
    socket: Any


class _Connection:
    """A connection to the addresses that were checked, which the limit of its thread can close."""

    limit: TimeLimit | None = None
    socket: Any = None  # `sock`, which is forgotten before an answer without a length is read
    sock: Any
    proxy: Any
    _dns_host: str

    def connect(self) -> None:
        _watch(self)
        super().connect()  # pyright: ignore[reportAttributeAccessIssue]
        self.socket = self.sock
        _watch(self)  # again: what was cut while it connected had no socket yet

    def request(self, *arguments: Any, **options: Any) -> Any:
        _watch(self)
        return super().request(*arguments, **options)  # pyright: ignore[reportAttributeAccessIssue]

    def _consume_headers(self, fp: Any) -> None:
        """Those after "100 Continue". Where the server leaves before their end, botocore waits for it for ever."""
        while (line := fp.readline()) != b"\r\n":
            if not line:
                raise ConnectionResetError("closed after 100 Continue")

    def _new_conn(self) -> Any:
        """A socket. The name of the host is not resolved again, and TLS verifies it all the same."""
        connect = super()._new_conn  # pyright: ignore[reportAttributeAccessIssue]
        if _thread.addresses is None or self.proxy is not None:
            return connect()
        name, refused = self._dns_host, NewConnectionError(self, "no address")  # pyright: ignore[reportArgumentType]
        try:
            for address in by_turns(_thread.addresses)[:ADDRESSES_TRIED]:
                _watch(self)
                self._dns_host = address
                try:
                    return connect()
                except (NewConnectionError, ConnectTimeoutError) as error:
                    refused = error
        finally:
            self._dns_host = name
        raise refused


class _HttpConnection(_Connection, AWSHTTPConnection): ...


class _HttpsConnection(_Connection, AWSHTTPSConnection): ...


class _HttpPool(AWSHTTPConnectionPool):
    ConnectionCls = _HttpConnection


class _HttpsPool(AWSHTTPSConnectionPool):
    ConnectionCls = _HttpsConnection


class _Answer(AWSResponse):
    """An answer whose body, unless it is left to a stream, is read up to a bound."""

    _read: bytes | None = None

    @property
    def content(self) -> bytes:
        if self._read is None:
            data = bytearray()
            for chunk in self._chunks():
                data += chunk
                if len(data) > ANSWER_BYTES:
                    self.raw.close()
                    raise NotS3Error(
                        f"the endpoint answers with more than {ANSWER_BYTES >> 20} MiB where S3 says less: "
                        "this is no S3 server"
                    )
            self._read = bytes(data)
        return self._read

    def _chunks(self) -> Iterator[bytes]:
        try:
            yield from self.raw.stream(_CHUNK_BYTES)
        except (HTTPError, OSError) as error:  # as botocore's own session says it, which reads the body too
            raise ConnectionClosedError(endpoint_url=self.url, error=error) from error


class _Session:
    """botocore's session of HTTP, with the bounds."""

    def __init__(self, session: Any, check: Callable[[str], list[str]] | None) -> None:
        self._session = session
        self._check = check
        session._pool_classes_by_scheme.update(http=_HttpPool, https=_HttpsPool)  # noqa: SLF001

    def send(self, request: Any) -> AWSResponse:
        _thread.addresses = None if self._check is None else self._check(str(request.url))
        request.stream_output = True  # nothing is read yet
        answer = self._session.send(request)
        return _Answer(answer.url, answer.status_code, answer.headers, answer.raw)

    def close(self) -> None:
        self._session.close()


def bound(client: S3Client, check: Callable[[str], list[str]] | None = None) -> None:
    """Have the answers to `client` bounded, and let a `TimeLimit` end its calls.

    `check` gets the URL of every request before it is sent, raises if it must not be, and gives the addresses of its
    host: connections go to these alone, or to a proxy where there is one. (botocore has no public way to do this.)
    """
    endpoint: Any = client._endpoint  # noqa: SLF001 # pyright: ignore[reportAttributeAccessIssue]
    endpoint.http_session = _Session(endpoint.http_session, check)


def by_turns(addresses: Sequence[str]) -> list[str]:
    """Addresses of IPv4 and IPv6 by turns, each kind in its order: one of the two may lead nowhere."""
    first = [one for one in addresses if (":" in one) == (":" in addresses[0])]
    others = [one for one in addresses if one not in first]
    return [one for one in chain.from_iterable(zip_longest(first, others)) if one is not None]


def _watch(connection: _Watched) -> None:
    if _thread.limit is not None:
        _thread.limit.watch(connection)
