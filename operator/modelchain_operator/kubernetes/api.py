"""The operator's requests to the Kubernetes API: plain objects in and out, every failure an ApiError.

The requests are plain REST.
https://kubernetes.io/docs/reference/using-api/api-concepts/
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import quote

from modelchain.errors import ConfigurationError
from modelchain.text import without_users
from modelchain_operator.kubernetes import labels
from modelchain_operator.kubernetes.cluster_access import ClusterAccess, load_access
from modelchain_operator.kubernetes.connection import UNREACHABLE, Answer, Connection
from modelchain_operator.kubernetes.json_reader import shallow
from modelchain_operator.kubernetes.kinds import CHAIN, CONFIG_MAP, EVENT, POD, SECRET, Kind

Object: TypeAlias = dict[str, Any]  # a Kubernetes object as the API sends it

logger = logging.getLogger(__name__)

MAX_WARNINGS = 256  # different ones that are logged; they may hold names
PAGE = 100  # objects of one answer of a listing
MAX_EVENTS = 500  # about one object
MAX_RETRY_AFTER = 300.0  # seconds that are waited at a server's word
_METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"


class ApiError(Exception):
    """A request that failed. The message names the verb, the kind and the object."""

    def __init__(self, message: str, *, status: int = 0, reason: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class Conflict(ApiError):  # noqa: N818  as the API names it
    """409: it was changed meanwhile, or exists already."""


class Forbidden(ApiError):  # noqa: N818
    """401 or 403: the operator's rights do not allow it, or a quota or an admission rule refuses it."""


class Invalid(ApiError):  # noqa: N818
    """400 or 422: the API server, or an admission webhook, finds the object wrong. Not even asked: no object can have
    that name.
    """


class NotServed(ApiError):  # noqa: N818
    """404 of the kind itself: its CRD is not installed."""


class Unavailable(ApiError):  # noqa: N818
    """429, 5xx, no connection, no answer in time: to be asked again later."""

    def __init__(
        self, message: str, *, status: int = 0, reason: str = "", retry_after: float | None = None
    ) -> None:
        super().__init__(message, status=status, reason=reason)
        self.retry_after = retry_after  # seconds, as the server asked


@dataclass(frozen=True)
class ObjectVersion:
    """What tells one state of an object from another, and one object from the next of its name."""

    namespace: str
    name: str
    uid: str
    resource_version: str
    chain_uid: str = ""  # of a job or a pod: the chain that it belongs to


def load_config(kubeconfig: str | None, context: str | None) -> ClusterAccess:
    """How to reach the cluster: a kubeconfig, or the pod's service account. Raises ConfigurationError."""
    return load_access(kubeconfig, context)


class KubernetesApi:
    """One connection pool to one cluster. Used in one event loop."""

    def __init__(
        self,
        access: ClusterAccess,
        *,
        on_request: Callable[[str], None] | None = None,
        may_write: Callable[[], bool] = lambda: True,
    ) -> None:
        """`on_request` is told the verb of every request that was answered; `may_write` is asked before each that is
        not a GET.
        """
        self.access = access
        self._connection = Connection(access)
        self._on_request = on_request
        self._may_write = may_write
        self._warnings: set[str] = set()

    async def close(self) -> None:
        """End all connections."""
        await self._connection.close()

    # ---- chains

    async def get_chain(self, namespace: str, name: str) -> Object | None:
        """The chain as it is now, no deeper than can be handled; None if it is gone."""
        return shallow(await self._find(CHAIN, namespace, name))

    async def list_versions(self, kind: Kind, namespace: str | None) -> list[ObjectVersion]:
        """Which objects there are (jobs and pods: of chains), in which state, and nothing else of them. Raises
        NotServed.
        """
        found: list[ObjectVersion] = []
        query = {} if kind == CHAIN else {"labelSelector": labels.CHAIN_UID}
        async for page in self._pages(kind, namespace, query, accept=_METADATA_ONLY):
            for item in page:
                metadata = item["metadata"]
                found.append(
                    ObjectVersion(
                        namespace=metadata.get("namespace", ""),
                        name=metadata["name"],
                        uid=metadata["uid"],
                        resource_version=metadata["resourceVersion"],
                        chain_uid=(metadata.get("labels") or {}).get(labels.CHAIN_UID, ""),
                    )
                )
        return found

    async def try_watch(self, kind: Kind, namespace: str | None) -> None:
        """Ask whether a kind may be watched there. Raises Forbidden if not, NotServed; takes a second."""
        nothing = {"fieldSelector": "metadata.name=-"}
        query = {**nothing, "watch": "true", "timeoutSeconds": "1"}
        what = f"watch {kind.plural}" + (f" in {namespace}" if namespace else "")
        if not await self._send("GET", _path(kind, namespace), what, query=query, read=False):
            raise await self._absent(kind, what, namespace)

    async def write_status(self, chain: Object, status: Object) -> Object:
        """Replace the chain's status, if the chain was not changed since it was read.

        Returns the chain as it is then. Raises Conflict if it was changed or is gone.
        """
        metadata = chain["metadata"]
        sent = {name: chain[name] for name in ("apiVersion", "kind", "spec") if name in chain}
        body = {**sent, "status": status, "metadata": {**metadata, "managedFields": None}}
        path = _path(CHAIN, metadata["namespace"], metadata["name"], "status")
        what = f"update the status of {_named(CHAIN, metadata['namespace'], metadata['name'])}"
        answer = await self._send("PUT", path, what, body=body)
        if answer is None:
            raise Conflict(f"{what}: it is gone", status=404, reason="NotFound")
        return shallow(answer)

    # ---- jobs and pods

    async def list_labelled(self, kind: Kind, namespace: str | None, chain_uid: str | None) -> list[Object]:
        """Objects of a chain (of all chains: None), in a namespace (in all: None). Raises NotServed."""
        selector = labels.CHAIN_UID if chain_uid is None else f"{labels.CHAIN_UID}={chain_uid}"
        found: list[Object] = []
        async for page in self._pages(kind, namespace, {"labelSelector": selector}):
            found.extend(page)
        for item in found:  # the API leaves these out of the items of a list
            item.setdefault("apiVersion", kind.api_version)
            item.setdefault("kind", kind.kind)
        return found

    async def list_selected(self, kind: Kind, namespace: str, selector: str = "") -> list[Object]:
        """Objects in a namespace with these labels (all: empty). Raises NotServed, Forbidden."""
        found: list[Object] = []
        async for page in self._pages(kind, namespace, {"labelSelector": selector} if selector else {}):
            found.extend(page)
        return found

    async def list_pods(self, namespace: str | None, chain_uid: str | None) -> list[Object]:
        """Pods of a chain's jobs."""
        return await self.list_labelled(POD, namespace, chain_uid)

    async def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """An object as it is now; None if there is none, as of a name that none can have."""
        return await self._find(kind, namespace, name)

    async def create(self, kind: Kind, manifest: Object, *, dry_run: bool = False) -> Object:
        """Create an object. Raises Conflict if one of that name exists; Forbidden, Invalid if it is refused, as is one
        with a field that the API server does not know, which it would otherwise drop.
        https://kubernetes.io/docs/reference/using-api/api-concepts/#field-validation
        """
        namespace, name = manifest["metadata"]["namespace"], manifest["metadata"]["name"]
        what = f"create {_named(kind, namespace, name)}"
        query = {"fieldValidation": "Strict"} | ({"dryRun": "All"} if dry_run else {})
        answer = await self._send("POST", _path(kind, namespace), what, body=manifest, query=query)
        if answer is None:
            raise await self._absent(kind, what, namespace)
        return answer

    async def replace(self, kind: Kind, manifest: Object) -> Object:
        """Put an object over the version of it that it was read from. Returns it as it is then. Raises Conflict if it
        was changed meanwhile or is gone.
        """
        metadata = manifest["metadata"]
        what = f"update {_named(kind, metadata['namespace'], metadata['name'])}"
        path = _path(kind, metadata["namespace"], metadata["name"])
        answer = await self._send("PUT", path, what, body=manifest)
        if answer is None:
            raise Conflict(f"{what}: it is gone", status=404, reason="NotFound")
        return answer

    async def delete(
        self, kind: Kind, namespace: str, name: str, uid: str, *, grace_seconds: int | None = None
    ) -> None:
        """Delete that very object, and in the background what it owns. One that is gone is success."""
        body: Object = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": {"uid": uid},
        }
        if grace_seconds is not None:
            body["gracePeriodSeconds"] = grace_seconds
        try:
            what = f"delete {_named(kind, namespace, name)}"
            await self._send("DELETE", _path(kind, namespace, name), what, body=body)
        except Conflict:
            return  # another object has the name now: this one is gone

    # ---- what chains refer to, and events

    async def get_secret(self, namespace: str, name: str) -> Object | None:
        """A Secret; None if there is none."""
        return await self._find(SECRET, namespace, name)

    async def get_config_map(self, namespace: str, name: str) -> Object | None:
        """A ConfigMap; None if there is none."""
        return await self._find(CONFIG_MAP, namespace, name)

    async def own_addresses(self) -> list[str]:
        """`host:port` at which the API server that answers says that it is reached. Every user may ask."""
        found = await self._send("GET", "/api", "ask for the API server's own addresses")
        return [one.get("serverAddress", "") for one in (found or {}).get("serverAddressByClientCIDRs") or ()]

    async def list_events(self, namespace: str, object_uid: str) -> list[Object]:
        """Events about an object, MAX_EVENTS at most: anybody may write some about it."""
        found: list[Object] = []
        async for page in self._pages(
            EVENT, namespace, {"fieldSelector": f"involvedObject.uid={object_uid}"}
        ):
            found.extend(page)
            if len(found) >= MAX_EVENTS:
                break
        return found[:MAX_EVENTS]

    async def create_event(self, event: Object) -> None:
        """Post an event; one of that name was posted already. Raises as `create`, but Conflict."""
        try:
            await self.create(EVENT, event)
        except Conflict:
            return

    # ---- requests

    async def _find(self, kind: Kind, namespace: str, name: str) -> Object | None:
        if not _is_segment(name):
            return None
        what = f"get {_named(kind, namespace, name)}"
        return _whole(what, await self._send("GET", _path(kind, namespace, name), what))

    async def _pages(
        self, kind: Kind, namespace: str | None, query: Mapping[str, str], accept: str = "application/json"
    ) -> AsyncIterator[list[Object]]:
        """Pages of a listing. One that expires before its end (410) raises Unavailable."""
        what = f"list {kind.plural}" + (f" in {namespace}" if namespace else "")
        asked = {**query, "limit": str(PAGE)}
        while True:
            answer = await self._send("GET", _path(kind, namespace), what, query=asked, accept=accept)
            if answer is None:
                raise await self._absent(kind, what, namespace)
            yield answer.get("items") or []
            token = answer.get("metadata", {}).get("continue")
            if not token:
                return
            asked = {**query, "limit": str(PAGE), "continue": token}

    async def _absent(self, kind: Kind, what: str, namespace: str | None) -> ApiError:
        """Why the collection of a kind answers 404: the kind is not served, or the namespace is gone. Discovery tells
        them apart, which every user may read.
        """
        group = f"{'/apis' if '/' in kind.api_version else '/api'}/{kind.api_version}"
        served = await self._send("GET", group, f"ask which kinds {kind.api_version} has")
        if kind.plural not in {one["name"] for one in (served or {}).get("resources", ())}:
            return NotServed(
                f"{what}: the cluster does not serve {kind.api_version} {kind.kind}",
                status=404,
                reason="NotFound",
            )
        return Forbidden(f"{what}: namespace {namespace} is gone", status=404, reason="NotFound")

    async def _send(
        self,
        method: str,
        path: str,
        what: str,
        *,
        body: Object | None = None,
        query: Mapping[str, str] | None = None,
        accept: str = "application/json",
        read: bool = True,
    ) -> Object | None:
        """One request; None for 404. Without `read`, only the status of the response is used."""
        if method != "GET" and not self._may_write():
            raise Unavailable(f"{what}: not sent, since this operator does not lead any more")
        content = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        headers = {"Accept": accept}
        if content is not None:
            headers["Content-Type"] = "application/json"
        try:
            answer = await self._connection.send(method, path, query=query, body=content, headers=headers)
        except (*UNREACHABLE, ConfigurationError) as error:
            why = without_users(str(error))
            raise Unavailable(f"{what}: {type(error).__name__}: {why}".rstrip(": ")) from None
        if self._on_request is not None:
            self._on_request(method)
        self._log_warnings(what, answer)
        if answer.status == 404:
            return None
        if answer.status >= 400:
            raise _error(what, answer)
        return _content(what, answer) if read else {"status": answer.status}

    def _log_warnings(self, what: str, answer: Answer) -> None:
        """Each once, and once that there are too many."""
        for warning in answer.warnings:
            if warning in self._warnings or len(self._warnings) > MAX_WARNINGS:
                continue
            self._warnings.add(warning)
            if len(self._warnings) <= MAX_WARNINGS:
                logger.warning("%s: the API server warns: %s", what, warning)
            else:
                logger.warning(
                    "the API server warns of ever more: after %d texts, no other is logged", MAX_WARNINGS
                )


def _path(kind: Kind, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
    """Where an object, or a collection of them, is asked for. Names may be what others have written: none leads
    elsewhere. Raises Invalid for one that no object can have.
    """
    for part in (namespace or None, name):
        if part is not None and not _is_segment(part):
            raise Invalid(f"{part!r} is not the name of a Kubernetes object")
    base = "/apis" if "/" in kind.api_version else "/api"
    parts = [base, kind.api_version]
    if namespace:
        parts += ["namespaces", quote(namespace, safe="")]
    parts.append(kind.plural)
    if name is not None:
        parts.append(quote(name, safe=""))
    if subresource:
        parts.append(subresource)
    return "/".join(parts)


def _is_segment(name: str) -> bool:
    """Whether it may be a part of a path, as the name of every object may.
    https://kubernetes.io/docs/concepts/overview/working-with-objects/names/#path-segment-names
    """
    return name not in ("", ".", "..") and "/" not in name and "%" not in name


def _named(kind: Kind, namespace: str, name: str) -> str:
    return f"{kind.kind} {namespace}/{name}"


def _error(what: str, answer: Answer) -> ApiError:
    status, reason, message = answer.status, "", ""
    try:
        content = answer.json()
        reason, message = str(content.get("reason", "")), str(content.get("message", ""))
    except (ValueError, AttributeError):
        message = answer.content[:200].decode(errors="replace")
    text = f"{what}: {message or f'HTTP {status}'}"
    if status == 409:
        return Conflict(text, status=status, reason=reason)
    if status in (401, 403):
        return Forbidden(text, status=status, reason=reason)
    if status in (400, 405, 413, 415, 422):
        return Invalid(text, status=status, reason=reason)
    return Unavailable(text, status=status, reason=reason, retry_after=_retry_after(answer))


def _whole(what: str, item: Object | None) -> Object | None:
    """The object, if it is one that has a name."""
    if item is not None and "name" not in (item.get("metadata") or {}):
        raise Unavailable(f"{what}: the answer is no object of Kubernetes; is a proxy between?")
    return item


def _content(what: str, answer: Answer) -> Object:
    """The object of an answer; Unavailable where there is none, as in the page of a proxy that asks who one is."""
    try:
        content = answer.json()
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise Unavailable(
            f"{what}: the answer is no object of Kubernetes; is a proxy between?", status=answer.status
        )
    return content


def _retry_after(answer: Answer) -> float | None:
    """Seconds; what is no number of them counts for nothing."""
    try:
        seconds = float(answer.headers.get("Retry-After", ""))
    except ValueError:
        return None
    return min(seconds, MAX_RETRY_AFTER) if seconds >= 0 else None
