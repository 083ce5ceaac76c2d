"""Clients of S3: made from an endpoint, a region, certificates and credentials, and shared where many stores
are read by one process.

A client costs some MiB and, after the first, some milliseconds of processor time; a hundred stores behind one
endpoint and one key need only one.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from modelchain.errors import ConfigurationError
from modelchain.proxies import proxy_for
from modelchain.resolved import ResolvedStore
from modelchain.store.base import Credentials, Forbidden
from modelchain.store.s3_answers import check_answers
from modelchain.store.s3_transport import bound
from modelchain.text import one_line
from modelchain.uri import without_credentials

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

ChecksumSetting = Literal["when_supported", "when_required"]

CONNECTIONS = 32
_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_KEY = re.compile(r"[\x21-\x7e]*")


@dataclass(frozen=True)
class Timeouts:
    """How long one request may take. It is sent once: `Connection.call` sends it again."""

    connect_seconds: float = 5
    read_seconds: float = 60


class SharedClients:
    """Clients for many stores, each made once and kept while it is used; any thread may ask.

    The environment's endpoint (AWS_ENDPOINT_URL) does not count here: it says where this process keeps its own
    things, not where somebody else's store is.
    """

    def __init__(
        self,
        *,
        capacity: int = 64,
        timeouts: Timeouts = Timeouts(),
        connections: int = CONNECTIONS,
        check_endpoint: Callable[[str], list[str]] | None = None,
    ) -> None:
        """At most `capacity` clients; the one that was not used for longest goes first.

        `check_endpoint` is called with the URL of every request before it is sent, and raises if it must not be. It
        gives the addresses of the host: connections are made to these alone (or to a proxy).
        """
        self._capacity = capacity
        self._timeouts = timeouts
        self._connections = connections
        self._check_endpoint = check_endpoint
        self._clients: OrderedDict[bytes, S3Client] = OrderedDict()
        self._lock = threading.Lock()
        self._session = _session()  # of all: whose credentials a client has is said when it is made
        self.made = 0  # clients, since the start

    def __len__(self) -> int:
        return len(self._clients)

    def get(self, access: ResolvedStore, credentials: Credentials | None) -> S3Client:
        """The client for such a store. Raises ConfigurationError."""
        key = _key(access, credentials)
        with self._lock:
            client = self._clients.get(key)
            if client is None:
                client = make_client(
                    self._session,
                    access,
                    access.endpoint_url,
                    credentials,
                    timeouts=self._timeouts,
                    connections=self._connections,
                    use_environment=False,
                    check_endpoint=self._check_endpoint,
                )
                self._clients[key] = client
                self.made += 1
            self._clients.move_to_end(key)
            while len(self._clients) > self._capacity:
                self._clients.popitem(last=False)  # its connections end with its last user
            return client


def _session() -> Session:
    """By the environment's settings. Raises ConfigurationError."""
    try:
        return Session()
    except BotoCoreError as error:
        raise ConfigurationError(
            f"the AWS settings of the environment can't be used: {one_line(str(error))}"
        ) from error


def make_client(
    session: Session,
    access: ResolvedStore,
    endpoint: str | None,
    credentials: Credentials | None,
    *,
    timeouts: Timeouts,
    connections: int = CONNECTIONS,
    use_environment: bool = True,
    check_endpoint: Callable[[str], list[str]] | None = None,
) -> S3Client:
    """A client of the store at `endpoint` (None: AWS). Raises ConfigurationError, also where the environment names what
    can be no proxy, and Forbidden for malformed keys.
    """
    _check_keys(access.uri, credentials, use_environment=use_environment)
    bundle = access.ca_bundle
    if bundle is not None and not Path(bundle).is_file():
        raise ConfigurationError(
            f"{bundle}: no such file; it should hold the certificate authority of {access.uri}"
        )
    # Not every server knows checksums in trailers, boto3's default since 1.36. Bytes are guarded on
    # the way all the same: by TLS, or by the signature over the payload.
    checksums: ChecksumSetting | None = None if endpoint is None else "when_required"
    config = Config(
        connect_timeout=timeouts.connect_seconds,
        read_timeout=timeouts.read_seconds,
        retries={"mode": "standard", "total_max_attempts": 1},
        max_pool_connections=connections,
        s3={"addressing_style": "auto" if endpoint is None else "path"},
        request_checksum_calculation=_unless_set("AWS_REQUEST_CHECKSUM_CALCULATION", checksums),
        response_checksum_validation=_unless_set("AWS_RESPONSE_CHECKSUM_VALIDATION", checksums),
        ignore_configured_endpoint_urls=None if use_environment else True,  # pyright: ignore[reportCallIssue]
    )
    try:
        client = session.client(
            "s3",
            endpoint_url=endpoint,
            region_name=access.region or session.region_name or "us-east-1",
            verify=bundle,
            config=config,
            aws_access_key_id=None if credentials is None else credentials.access_key_id,
            aws_secret_access_key=None if credentials is None else credentials.secret_access_key,
            aws_session_token=None if credentials is None else credentials.session_token,
        )
    except ValueError as error:  # botocore's way to refuse an endpoint
        shown = without_credentials(endpoint or "")
        raise ConfigurationError(
            f"{access.uri}: endpoint {shown!r} is not a URL such as http://minio:9000"
        ) from error
    proxy_for(client.meta.endpoint_url)
    check_answers(client)
    bound(client, check_endpoint)
    return client


def _check_keys(uri: str, credentials: Credentials | None, *, use_environment: bool) -> None:
    """Raises Forbidden where a key holds what no key has: `echo KEY | base64` leaves a line break at its end."""
    keys: dict[str, str | None] = {}
    if credentials is not None:
        values = (credentials.access_key_id, credentials.secret_access_key, credentials.session_token)
        keys = dict(zip(_KEYS, values, strict=True))
    elif use_environment:
        keys = {name: os.environ.get(name) for name in _KEYS}
    for name, value in keys.items():
        if value is not None and not _KEY.fullmatch(value):
            what = (
                "ends with a line break"
                if value.rstrip("\r\n") != value
                else "holds a blank or a character no key has"
            )
            raise Forbidden(f"{uri}: {name} {what}; write it again without")


def _key(access: ResolvedStore, credentials: Credentials | None) -> bytes:
    """What tells clients apart, hashed: no table of ours holds a secret."""
    bundle = b""
    if access.ca_bundle is not None:
        with suppress(OSError):
            bundle = Path(access.ca_bundle).read_bytes()
    secret = (
        ("own",)
        if credentials is None
        else (credentials.access_key_id, credentials.secret_access_key, credentials.session_token or "")
    )
    parts = (access.endpoint_url or "", access.region or "", *secret)
    digest = hashlib.sha256(bundle)
    for part in parts:
        digest.update(len(part).to_bytes(4) + part.encode())
    return digest.digest()


def _unless_set(variable: str, value: ChecksumSetting | None) -> ChecksumSetting | None:
    """`value`, or None (botocore then reads the variable) if the user has decided."""
    return None if variable in os.environ else value
