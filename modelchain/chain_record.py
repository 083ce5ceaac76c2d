"""The chain's record and lease in the store: what the next run starts from, and that there is one run at a time."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator

from pydantic import ValidationError

from modelchain.artifacts import chain_key, chain_lease_key
from modelchain.errors import HeldError
from modelchain.lease import LeaseKeeper, LeaseObserver
from modelchain.process import is_near
from modelchain.resolved import ResolvedChain
from modelchain.status import ChainRecord, ChainStatus, record_of
from modelchain.store import Store

LEASE_SECONDS = 30


def read_status(store: Store, chain: ResolvedChain, note: Callable[[str], None]) -> ChainStatus | None:
    """The status that the last run left; None if there is none. Raises what the store raises."""
    key = chain_key(chain.chain.namespace, chain.chain.name)
    found = store.find(key)
    if found is None:
        return None
    try:
        return ChainRecord.model_validate_json(found[0]).status
    except ValidationError:
        note(f"{store.uri_of(key)} is damaged and is written anew; what is complete in the store stays so")
        return None


def record_object(chain: ResolvedChain, status: ChainStatus, now: float) -> tuple[str, bytes]:
    """Key and content of the record."""
    record = record_of(chain, status, now)
    data = record.model_dump_json(by_alias=True, exclude_none=True, indent=2).encode()
    return chain_key(chain.chain.namespace, chain.chain.name), data


@contextlib.contextmanager
def hold_chain(
    store: Store, chain: ResolvedChain, *, on_lost: Callable[[], None], note: Callable[[str], None]
) -> Iterator[None]:
    """Be the only run of the chain. Raises HeldError if another is under way, here or elsewhere.

    One that was killed on another machine only shows by not renewing its lease: that takes up to LEASE_SECONDS.
    """
    name = chain.chain.full_name
    key = chain_lease_key(chain.chain.namespace, chain.chain.name)
    keeper = LeaseKeeper(
        store,
        key,
        holder=f"run-{secrets.token_hex(4)}",
        chain=name,
        duration_seconds=LEASE_SECONDS,
        on_lost=on_lost,
    )
    view = LeaseObserver(store, key).observe()
    near = view is not None and view.lease is not None and is_near(view.lease.process, view.lease.host)
    if view is not None and view.fresh and not near:
        note(f"{view.holder} holds chain {name}: watching for {LEASE_SECONDS} s whether it still lives")
    try:
        keeper.acquire(wait=not near)
    except HeldError as error:
        raise HeldError(f"chain {name} is being run already: {error}") from None
    try:
        yield
    finally:
        keeper.release()
