"""How a URI becomes a store: by its scheme, with the library of that scheme imported only then."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from modelchain.errors import ConfigurationError
from modelchain.resolved import ResolvedStore
from modelchain.store.base import BOUNDS, PATIENCE_SECONDS, Bounds, Credentials, Store
from modelchain.uri import holds_credentials

if TYPE_CHECKING:
    from modelchain.store.s3_clients import SharedClients


def open_store(
    store: ResolvedStore,
    *,
    patience_seconds: float = PATIENCE_SECONDS,
    credentials: Credentials | None = None,
    clients: SharedClients | None = None,
    bounds: Bounds = BOUNDS,
) -> Store:
    """The store of a chain. Nothing is read or written yet. Raises ConfigurationError for a scheme that can't be
    written to.

    `patience_seconds`: how long a call keeps trying where S3 has answered before and now does not.
    `credentials`: instead of those that boto3 finds. `clients`: taken from there, shared by many stores.
    `bounds`: how much is taken into memory.
    """
    _refuse_credentials(store.uri)
    if "://" in store.uri and not store.uri.startswith(("s3://", "file:///")):
        raise ConfigurationError(
            f"{store.uri}: unknown kind of store; use s3://bucket/prefix, file:///folder or a path"
        )
    return open_location(
        store.uri,
        store,
        patience_seconds=patience_seconds,
        credentials=credentials,
        clients=clients,
        bounds=bounds,
    )


def open_location(
    uri: str,
    access: ResolvedStore,
    *,
    patience_seconds: float = PATIENCE_SECONDS,
    credentials: Credentials | None = None,
    clients: SharedClients | None = None,
    bounds: Bounds = BOUNDS,
) -> Store:
    """A store rooted at `uri`, with the endpoint, region and certificates of `access`. See `open_store`.

    Of other schemes than s3 and file it can only be read. Raises ConfigurationError for one that nothing here knows.
    """
    _refuse_credentials(uri)
    _refuse_credentials(access.endpoint_url or "")
    if uri.startswith("s3://"):
        from modelchain.store.s3 import S3Store

        return S3Store(
            uri,
            access,
            patience_seconds=patience_seconds,
            credentials=credentials,
            clients=clients,
            bounds=bounds,
        )
    if uri.startswith(("http://", "https://")):
        from modelchain.store.http import HttpStore

        return HttpStore(uri)
    if "://" in uri and not uri.startswith("file:///"):
        from modelchain.store.fsspec_store import FsspecStore

        return FsspecStore(uri)
    from modelchain.store.folder import FolderStore

    return FolderStore(
        Path(uri.removeprefix("file://")),
        allow_unconditional_writes=access.allow_unconditional_writes,
        bounds=bounds,
    )


def _refuse_credentials(uri: str) -> None:
    """Raises ConfigurationError, which does not repeat them: an address is shown in messages, and kept in records."""
    if "://" in uri and holds_credentials(uri):
        raise ConfigurationError(
            f"an address {uri.partition('://')[0]}://... holds a user, a password, a token or a key; remove it, and "
            "give the store's keys as AWS_* variables"
        )
