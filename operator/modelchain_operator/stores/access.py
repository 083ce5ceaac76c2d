"""With whose credentials each store is read.

A chain's store is read with the credentials in the Secret that the chain names, in the chain's own namespace; with the
operator's own identity only where the administrator has listed that store, at that endpoint. A user must not be able
to direct the operator's credentials, or its requests, anywhere else.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import logging
import re
import shutil
import socket
import ssl
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from modelchain.endpoint import ENDPOINT_FORM, is_endpoint
from modelchain.errors import ConfigurationError, ModelChainError
from modelchain.proxies import proxy_for
from modelchain.reconcile.observation import StoreProblem
from modelchain.resolved import ResolvedChain
from modelchain.spec import BundleKind, StoreSpec
from modelchain.store import Bounds, Credentials, Forbidden, Store, StoreUnavailable, open_store
from modelchain.store.s3_clients import SharedClients, Timeouts
from modelchain_operator.kubernetes.api import ApiError, Object
from modelchain_operator.kubernetes.api import Forbidden as ApiForbidden
from modelchain_operator.settings import OwnIdentityStore
from modelchain_operator.stores.addresses import every_form, is_address, is_loopback, is_refused

log = logging.getLogger(__name__)

REREAD_SECONDS = 300.0  # a Secret is read again after this long
RETRY_SECONDS = 15.0  # where it is missing, or the store refuses its credentials
STORES = 16_384
CERTIFICATES = 256
# All authorities that a system, botocore or certifi trusts are 220 to 290 KiB, and some add their own. Each client
# holds a copy.
MAX_CERTIFICATE_BYTES = 512 << 10

# The reader tries again later: longer waits would only hold up others.
TIMEOUTS = Timeouts(connect_seconds=3, read_seconds=10)
# All threads may read at once, in the memory of one container. Most of what is read whole are a few KiB of JSON; the
# metrics of a run that was resumed after 50,000 steps are 2 MiB.
BOUNDS = Bounds(object_bytes=16 << 20, listed=50_000)

_METADATA_NAMES = frozenset(
    {"metadata", "metadata.google.internal", "instance-data", "instance-data.ec2.internal"}
)


class KubernetesApi(Protocol):
    """The requests to the Kubernetes API that are needed here."""

    async def get_secret(self, namespace: str, name: str) -> Object | None:
        """None if there is none. Raises ApiError."""
        ...

    async def get_config_map(self, namespace: str, name: str) -> Object | None:
        """None if there is none. Raises ApiError."""
        ...

    async def own_addresses(self) -> list[str]:
        """`host:port` at which the API server says that it is reached. Raises ApiError."""
        ...


@dataclass(frozen=True)
class NoAccess:
    """Why a chain's store can't be read now. The message says what to do."""

    problem: StoreProblem
    message: str


class EndpointRefused(Forbidden):
    """The request was not sent, because of where it would have led: the store has answered nothing."""


class _RefusedError(Exception):
    """Carries a NoAccess to `open`."""

    def __init__(self, message: str, problem: StoreProblem = StoreProblem.FORBIDDEN) -> None:
        super().__init__(message)
        self.answer = NoAccess(problem, message)


@dataclass
class _Known:
    """What is known of a chain's store."""

    answer: Store | NoAccess
    made_of: tuple[Credentials | None, str | None] | None  # credentials and certificate file; None: no store
    read_at: float  # monotonic
    expired: bool = False


class StoreAccess:
    """Opens the stores of chains. Used in one event loop; the stores themselves in any thread."""

    def __init__(
        self,
        api: KubernetesApi,
        own_identity_stores: Iterable[OwnIdentityStore] = (),
        allowed_endpoints: Iterable[str] = ("https://*",),
        *,
        clients: int = 256,
        connections: int = 8,
        wrap: Callable[[Store], Store] = lambda store: store,
        resolve_host: Callable[[str], list[str]] | None = None,
        api_servers: Iterable[str] = (),
    ) -> None:
        """`clients`: S3 clients that are kept at most, each with so many `connections`. `wrap` is applied to every
        store (metrics). `resolve_host` gives the addresses of a host, by default the system's resolver. `api_servers`
        are URLs of the Kubernetes API, which trusts this process and is no store; it is asked for others.
        """
        self._api = api
        self._own = tuple(own_identity_stores)
        allowed = tuple(allowed_endpoints)
        self._allowed = tuple(_pattern(text) for text in allowed)
        self._named = tuple(_pattern(text) for text in allowed if _names_a_host(text))
        self._api_servers = frozenset(map(_host_and_port, api_servers))
        self._api_servers_at = -REREAD_SECONDS  # when the API server was asked for others; monotonic
        self._wrap = wrap
        self._resolve_host = resolve_host or _addresses
        self._known: OrderedDict[tuple[str, str], _Known] = OrderedDict()
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}
        self._certificates = _Certificates()
        self._hosts: OrderedDict[str, tuple[float, list[str]]] = OrderedDict()  # checked at, addresses
        self._clients = SharedClients(
            capacity=clients, timeouts=TIMEOUTS, connections=connections, check_endpoint=self._check_url
        )

    @property
    def clients(self) -> int:
        """S3 clients that are kept."""
        return len(self._clients)

    async def open(self, namespace: str, chain: ResolvedChain, spec: StoreSpec) -> Store | NoAccess:
        """The chain's store, the same object as long as nothing about it has changed; or why there is no access.

        `namespace`: of the chain's object, in which its Secret and its ConfigMap are. Cached: they are read every
        REREAD_SECONDS.
        """
        key = (namespace, spec.model_dump_json(exclude_none=True))
        known = self._known.get(key)
        if known is not None and time.monotonic() - known.read_at < _lifetime(known):
            self._known.move_to_end(key)
            return known.answer
        lock = self._locks.setdefault(key, asyncio.Lock())
        try:
            async with lock:
                known = self._known.get(key)
                if known is None or time.monotonic() - known.read_at >= _lifetime(known):
                    known = self._known[key] = await self._read(namespace, chain, spec, known)
                self._known.move_to_end(key)
                while len(self._known) > STORES:
                    self._known.popitem(last=False)
                return known.answer
        finally:
            if not lock.locked():
                self._locks.pop(key, None)

    def expire_credentials(self, store: Store) -> None:
        """The store refuses these credentials: read them again soon, since somebody may have corrected them."""
        for known in self._known.values():
            if known.answer is store:
                known.expired = True

    def close(self) -> None:
        """Remove what lies on disk."""
        self._certificates.close()

    async def _read(
        self, namespace: str, chain: ResolvedChain, spec: StoreSpec, known: _Known | None
    ) -> _Known:
        now = time.monotonic()
        try:
            await self._require_allowed(spec)
            made_of = (
                await self._credentials(namespace, spec),
                await self._certificate(namespace, spec),
            )
        except _RefusedError as refused:
            unavailable = refused.answer.problem is StoreProblem.UNAVAILABLE
            if unavailable and known is not None and known.made_of is not None:
                known.read_at = now - REREAD_SECONDS + RETRY_SECONDS  # the last credentials serve until then
                return known
            return _Known(refused.answer, None, now)
        except ValueError:
            log.exception("chain %s: its store can't be read as an address", chain.chain.full_name)
            message = "spec.store holds what can't be read as an address; correct its uri and endpointUrl"
            return _Known(NoAccess(StoreProblem.MISCONFIGURED, message), None, now)
        if known is not None and known.made_of == made_of:
            known.read_at, known.expired = now, False
            return known
        credentials, certificate = made_of
        # A path of a certificate in the spec is one of the chain's pods, not of this machine.
        access = chain.store.model_copy(update={"ca_bundle": certificate})
        try:
            store = open_store(
                access, patience_seconds=0.0, credentials=credentials, clients=self._clients, bounds=BOUNDS
            )
        except ConfigurationError as error:
            return _Known(NoAccess(StoreProblem.MISCONFIGURED, str(error)), None, now)
        except ModelChainError as error:
            return _Known(NoAccess(StoreProblem.FORBIDDEN, str(error)), None, now)
        return _Known(self._wrap(store), made_of, now)

    async def _require_allowed(self, spec: StoreSpec) -> None:
        if spec.uri.startswith("file:///"):
            own = self._own_identity_allows(spec)
            if not own or not await asyncio.to_thread(self._stays_below, spec.uri):
                raise _RefusedError(
                    f"{spec.uri}: the operator may not read this folder; the administrator can allow it "
                    "(--own-identity-store), or use an s3:// store"
                )
            return
        if not spec.uri.startswith("s3://"):
            raise _RefusedError(f"{spec.uri}: the operator can't read this store; use s3://bucket/prefix")
        if spec.secret_ref is None and not self._own_identity_allows(spec):
            at = f" at {_shown(spec.endpoint_url)}" if spec.endpoint_url else ""
            raise _RefusedError(
                f"{spec.uri}{at}: the operator may not read this store with its own identity; set "
                "store.secretRef, or let the administrator allow it (--own-identity-store)"
            )
        if spec.endpoint_url is None:
            return
        if not is_endpoint(spec.endpoint_url):
            raise _RefusedError(
                f"store.endpointUrl is no address of a server: write {ENDPOINT_FORM}, e.g. http://minio:9000",
                StoreProblem.MISCONFIGURED,
            )
        if not any(pattern.fullmatch(_origin(spec.endpoint_url)) for pattern in self._allowed):
            raise _RefusedError(
                f"store.endpointUrl {_shown(spec.endpoint_url)}: the administrator does not allow this endpoint "
                "(--allowed-endpoint, allowedEndpoints of the chart; by default https:// alone)"
            )
        await self._learn_api_servers()

    async def _learn_api_servers(self) -> None:
        """Where else the API server is reached, by its own account: past the load balancer or the Service by which the
        operator reaches it. Of several, each tells its own address, so they become known one after the other.
        """
        if time.monotonic() - self._api_servers_at < REREAD_SECONDS:
            return
        try:
            found = await self._api.own_addresses()
            others = {_host_and_port(f"https://{address}") for address in found}
        except (ApiError, ValueError):
            return  # what is known stays known; it is asked again with the next store
        self._api_servers |= others
        self._api_servers_at = time.monotonic()

    def _own_identity_allows(self, spec: StoreSpec) -> bool:
        return any(listed.covers(spec.uri, spec.endpoint_url) for listed in self._own)

    def _stays_below(self, uri: str) -> bool:
        """Whether a folder is really below one that is listed, and not reached by a link out of it."""
        path = Path(uri.removeprefix("file://")).resolve()
        roots = [
            Path(listed.uri.removeprefix("file://")).resolve()
            for listed in self._own
            if listed.covers(uri, None)
        ]
        return any(path == root or root in path.parents for root in roots)

    def _check_url(self, url: str) -> list[str]:
        """The addresses that the URL leads to; none where only a proxy can tell.

        Raises EndpointRefused if the URL leads to something that trusts whoever reaches it from this machine: cloud
        metadata and link-local addresses, this machine itself (unless the administrator has listed that endpoint),
        the API server. Raises StoreUnavailable where that can't be told, since a name has no address now.

        Checked before every request, in the thread that sends it: a name may resolve to another address than before,
        and slowly. The connection is made to these addresses, without another look-up.
        """
        try:
            host, port = _host_and_port(url)
        except ValueError:
            raise EndpointRefused("this is no address of a server; name an S3 endpoint") from None
        is_metadata = host in _METADATA_NAMES
        is_api = _is_api_name(host) or (host, port) in self._api_servers
        addresses = [] if is_metadata or is_api else self._addresses_of(host, url)
        if is_metadata or any(map(is_refused, addresses)):
            raise EndpointRefused(
                f"{_shown(url)}: link-local, reserved and cloud metadata addresses are not asked; name an S3 endpoint"
            )
        if is_api or self._leads_to_api_server(port, addresses):
            raise EndpointRefused(
                f"{_shown(url)}: the Kubernetes API server is no store; name an S3 endpoint"
            )
        named = any(pattern.fullmatch(_origin(url)) for pattern in self._named)
        if any(map(is_loopback, addresses)) and not named:
            raise EndpointRefused(
                f"{_shown(url)}: this is the operator's own machine, which is only asked where the administrator names "
                "it (--allowed-endpoint); name an S3 endpoint that pods reach too"
            )
        return addresses

    def _addresses_of(self, host: str, url: str) -> list[str]:
        """Of the host of a URL; none where a proxy resolves its name and this machine can't. Raises StoreUnavailable
        where it has none otherwise. Only what was found is remembered: the next look-up may find something else.
        """
        if is_address(host):
            return [host]
        at, found = self._hosts.get(host, (-RETRY_SECONDS, []))
        if found and time.monotonic() - at <= RETRY_SECONDS:
            return found
        try:
            found = self._resolve_host(host)
        except OSError:
            found = []
        if found:
            self._hosts[host] = (time.monotonic(), found)
            while len(self._hosts) > STORES:
                self._hosts.popitem(last=False)
        elif proxy_for(url) is None:  # else it is the proxy that resolves the name
            raise StoreUnavailable(f"{_shown(url)}: no address is known of {host} now; is the name right?")
        return found

    def _leads_to_api_server(self, port: int, addresses: list[str]) -> bool:
        there = every_form(addresses)
        return bool(there) and any(
            port == own_port
            and not there.isdisjoint(every_form(self._addresses_of(own, f"https://{own}:{own_port}")))
            for own, own_port in self._api_servers
        )

    async def _credentials(self, namespace: str, spec: StoreSpec) -> Credentials | None:
        if spec.secret_ref is None or not spec.uri.startswith("s3://"):
            return None
        name, keys = spec.secret_ref.name, spec.secret_ref.keys
        what = f"Secret {namespace}/{name} (store.secretRef)"
        data = (await self._ask(what, self._api.get_secret(namespace, name))).get("data") or {}
        credentials = Credentials(
            access_key_id=_credential(data, keys.access_key_id, what),
            secret_access_key=_credential(data, keys.secret_access_key, what),
            session_token=_credential(data, keys.session_token, what) or None,
        )
        if not credentials.access_key_id or not credentials.secret_access_key:
            missing = keys.secret_access_key if credentials.access_key_id else keys.access_key_id
            raise _RefusedError(
                f"{what} has no {missing}; it needs {keys.access_key_id} and {keys.secret_access_key} "
                "(store.secretRef.keys gives them other names)"
            )
        return credentials

    async def _certificate(self, namespace: str, spec: StoreSpec) -> str | None:
        reference = spec.ca_bundle_ref
        if reference is None or not spec.uri.startswith("s3://"):
            return None
        what = f"{reference.kind} {namespace}/{reference.name} (store.caBundleRef)"
        if reference.kind is BundleKind.SECRET:
            found = await self._ask(what, self._api.get_secret(namespace, reference.name))
            text = _decoded(found.get("data") or {}, reference.key, what)
        else:
            found = await self._ask(what, self._api.get_config_map(namespace, reference.name))
            text = str((found.get("data") or {}).get(reference.key, ""))
        if not text.strip():
            raise _RefusedError(f"{what} has no {reference.key}; it needs the certificate authority in PEM")
        if len(text.encode()) > MAX_CERTIFICATE_BYTES:
            most = f"{MAX_CERTIFICATE_BYTES >> 10} KiB"
            raise _RefusedError(
                f"{reference.key} in {what} is larger than {most}; keep only the authority of the store"
            )
        file = await self._certificates.file(text)
        if file is None:
            raise _RefusedError(f"{reference.key} in {what} holds no certificate in PEM")
        return file

    async def _ask(self, what: str, request: Any) -> Object:
        try:
            found = await request
        except ApiForbidden:
            raise _RefusedError(
                f"the operator may not read {what}; its role needs get on it in this namespace"
            ) from None
        except ApiError as error:
            raise _RefusedError(f"{what} can't be read now: {error}", StoreProblem.UNAVAILABLE) from None
        if found is None:
            raise _RefusedError(f"{what} does not exist; create it in the chain's namespace")
        return found


class _Certificates:
    """Certificates as files of a temporary folder, named by their content; each is looked at once, one at a time, in
    a thread and without Python's lock. Used in one event loop.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._files: OrderedDict[str, Path | None] = OrderedDict()  # None: no certificates
        self._lock = asyncio.Lock()

    async def file(self, text: str) -> str | None:
        """The file with this content; None if it holds no certificates."""
        name = hashlib.sha256(text.encode()).hexdigest()
        async with self._lock:
            if name not in self._files:
                self._files[name] = await asyncio.to_thread(self._write, name, text)
            self._files.move_to_end(name)
            while len(self._files) > CERTIFICATES:
                _, old = self._files.popitem(last=False)
                if old is not None:
                    old.unlink(missing_ok=True)
            path = self._files[name]
        return None if path is None else str(path)

    def _write(self, name: str, text: str) -> Path | None:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="modelchain-ca-"))  # of mode 0700
        path = self._folder / f"{name}.crt"
        partial = path.with_suffix(".partial")
        partial.write_text(text)
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=partial)
        except ssl.SSLError:
            partial.unlink()
            return None
        partial.replace(path)
        return path

    def close(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _lifetime(known: _Known) -> float:
    return RETRY_SECONDS if known.expired or known.made_of is None else REREAD_SECONDS


def _credential(data: Mapping[str, Any], key: str, what: str) -> str:
    value = _decoded(data, key, what)
    if not re.fullmatch(r"[\x21-\x7e]*", value):
        raise _RefusedError(
            f"{key} in {what} holds a blank, a line break or something else that no key has; make it with "
            f"kubectl create secret generic --from-literal={key}=..."
        )
    return value


def _decoded(data: Mapping[str, Any], key: str, what: str) -> str:
    """What a Secret has under a key; empty if it has nothing."""
    try:
        return base64.b64decode(str(data.get(key, "")), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise _RefusedError(f"{key} in {what} is not text") from None


def _origin(url: str) -> str:
    """scheme://host[:port] in lower case."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}".lower()


def _pattern(text: str) -> re.Pattern[str]:
    """A pattern of endpoints: * stands for any text, within the host and the port."""
    if text == "*":
        return re.compile(r".*", re.DOTALL)
    return re.compile("[^/]*".join(re.escape(part) for part in _origin(text).split("*")))


def _names_a_host(pattern: str) -> bool:
    """Whether it is more than a scheme and a port: `*`, `https://*` and `http://*:9000` speak of any host."""
    return (urlsplit(pattern).hostname or "").strip("*.") != ""


def _shown(url: str | None) -> str:
    """An URL for messages: without a user, a password, a path."""
    parts = urlsplit(url or "")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _is_api_name(host: str) -> bool:
    return host in ("kubernetes", "kubernetes.default") or host.startswith("kubernetes.default.svc")


def _host_and_port(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return (parts.hostname or "").lower().rstrip("."), parts.port or (443 if parts.scheme == "https" else 80)


def _addresses(host: str) -> list[str]:
    """By the system's resolver, which also reads 2852039166 and 0xa9fea9fe as addresses."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
