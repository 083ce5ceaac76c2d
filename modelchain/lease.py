"""Leases: who trains a stage, or runs a chain, right now.

A lease is an object that its holder rewrites every third of its duration. Clocks of two machines are never
compared: an observer calls a lease expired when it has not seen it change for the whole duration, by its
own clock and while the store could be read. On the holder's own machine, its death is detected at once.

A lease saves work and is no lock. A holder that was paused, or cut off from the store, may go on without
knowing that its lease was taken over; so each holder writes under a token of its own, and a stage is
committed once (`modelchain.commit`). Hence an unavailable store does not end a training: the holder goes on
and tries to renew, and has lost the lease only when it reads another holder in it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from pydantic import ValidationError

from modelchain.artifacts import Lease
from modelchain.errors import HeldError, ModelChainError
from modelchain.process import is_gone, this_host, this_process
from modelchain.store import ConflictError, Store, StoreUnavailable
from modelchain.times import rfc3339

log = logging.getLogger(__name__)

UNREADABLE_SECONDS = 30  # for which an unchanged lease that can't be parsed counts as held


@dataclass(frozen=True)
class LeaseView:
    """What an observer knows about a lease. `fresh`: somebody holds it, as far as the observer can tell."""

    fresh: bool
    lease: Lease | None  # None: it can't be parsed
    etag: str  # of the object seen: a conditional write on it takes over exactly this lease
    reason: str  # held, released, expired (unchanged for its duration), dead (its process is gone)

    @property
    def holder(self) -> str:
        """The attempt token, or the runner's nonce."""
        return "unknown" if self.lease is None else self.lease.holder

    @property
    def chain(self) -> str:
        """namespace/name of the chain."""
        return "unknown" if self.lease is None else self.lease.chain


class LeaseObserver:
    """Decides whether a lease is held, by how long it has gone unchanged. Use one observer for all reads."""

    def __init__(self, store: Store, key: str) -> None:
        self._store = store
        self._key = key
        self._etag = ""
        self._unchanged_since = 0.0
        self._blind = True  # changes since the last read may have been missed

    def observe(self, now: float | None = None) -> LeaseView | None:
        """Read the lease; None if there is none. `now`: seconds on any monotonic clock.

        A lease seen for the first time is fresh for its whole duration. So is one seen again after the
        store was unavailable: its holder could not renew it either. Raises what the store raises.
        """
        began = time.monotonic()
        try:
            found = self._store.find(self._key)
        except StoreUnavailable:
            self._blind = True
            raise
        if found is None:
            self._etag = ""
            return None
        data, etag = found
        lease = _parse(data)
        duration = UNREADABLE_SECONDS if lease is None else lease.duration_seconds
        took = time.monotonic() - began
        now = time.monotonic() if now is None else now + took
        if self._blind or etag != self._etag or took > duration / 3:
            self._etag, self._unchanged_since, self._blind = etag, now, False
        if lease is not None and lease.released:
            return LeaseView(False, lease, etag, "released")
        if lease is not None and is_gone(lease.process, lease.host):
            return LeaseView(False, lease, etag, "dead")
        expired = now - self._unchanged_since >= duration
        return LeaseView(not expired, lease, etag, "expired" if expired else "held")


class LeaseKeeper:
    """Acquires a lease, renews it in a thread, and releases it. Also a context manager."""

    def __init__(
        self,
        store: Store,
        key: str,
        *,
        holder: str,
        chain: str,
        duration_seconds: int,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        """`holder` is unique to this launch; `on_lost` is called in the keeper's thread, once at most."""
        self._store = store
        self._key = key
        self._holder = holder
        self._chain = chain
        self._duration = duration_seconds
        self._on_lost = on_lost
        self._sequence = 0
        self._etag = ""
        self._removed = False  # the lease is to be deleted, not released
        self._lost = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def lost(self) -> bool:
        """Whether another holder has been seen in the lease since it was acquired."""
        return self._lost.is_set()

    def acquire(self, *, wait: bool = True) -> None:
        """Take the lease if nobody holds it.

        If it looks held, watch it for its duration: a dead holder on another machine can only be recognised by
        its not renewing the lease. `wait=False` does not watch. Raises HeldError at the first renewal.
        """
        assert self._thread is None, "a keeper takes its lease once"
        observer = LeaseObserver(self._store, self._key)
        first: LeaseView | None = None
        while not self._try(view := observer.observe()):
            if view is None or not view.fresh:
                continue  # another process was faster: read who holds it
            first = first or view
            if not wait or view.etag != first.etag:
                raise HeldError(self._held_by(view))
            time.sleep(min(1.0, self._duration / 10))
        self._thread = threading.Thread(target=self._keep, name=f"lease {self._key}", daemon=True)
        self._thread.start()

    def release(self, *, timeout_seconds: float = 5.0) -> None:
        """Stop renewing, and release the lease. Does not raise: if the store is unavailable, the lease expires."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout_seconds)

    def remove(self) -> None:
        """Stop renewing, and delete the lease if it was not lost: what it protected is gone."""
        self._removed = True
        self.release()
        if not self.lost:
            self._store.delete([self._key])

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _try(self, view: LeaseView | None) -> bool:
        if view is not None and view.fresh and not self._is_ours(view.lease):
            return False
        try:
            self._write(None if view is None else view.etag)
        except ConflictError:
            return False
        if view is not None and view.reason in {"expired", "dead"}:
            log.warning("%s: taken over from %s: %s", self._store.uri_of(self._key), view.holder, view.reason)
        return True

    def _keep(self) -> None:
        while not self._stop.wait(self._duration / 3):
            self._attempt("renew", self._renew)
            if self.lost:
                log.warning("%s: taken over by somebody else", self._store.uri_of(self._key))
                if self._on_lost is not None:
                    self._on_lost()
                return
        if not self._removed:
            self._attempt("release", lambda: self._write(self._etag, released=True))

    def _attempt(self, what: str, action: Callable[[], None]) -> None:
        try:
            action()
        except ModelChainError as error:
            log.warning("can't %s the lease, going on without: %s", what, error)
        except Exception:  # the thread must go on: the next renewal may succeed
            log.exception("can't %s the lease, going on without", what)

    def _renew(self) -> None:
        try:
            self._write(self._etag)
        except ConflictError:
            self._find_out()

    def _find_out(self) -> None:
        """Find out why the lease has changed: another holder, or a write of our own whose answer was lost."""
        found = self._store.find(self._key)
        if found is None:  # removed by hand: nobody holds it
            self._write(None)
            return
        data, etag = found
        if self._is_ours(_parse(data)):
            self._write(etag)
        else:
            self._lost.set()

    def _write(self, etag: str | None, *, released: bool = False) -> None:
        """Replace the lease with this etag; None: there is none yet. Raises ConflictError."""
        self._sequence += 1
        lease = Lease(
            holder=self._holder,
            chain=self._chain,
            sequence=self._sequence,
            duration_seconds=self._duration,
            host=this_host(),
            process=this_process(),
            renewed_at=rfc3339(time.time()),
            released=released,
        )
        data = lease.model_dump_json(by_alias=True, indent=2).encode()
        self._etag = self._store.put(self._key, data, if_absent=etag is None, if_match=etag)

    def _is_ours(self, lease: Lease | None) -> bool:
        """Whether this process wrote it: a token may have been given to two processes by mistake."""
        return lease is not None and (lease.holder, lease.process) == (self._holder, this_process())

    def _held_by(self, view: LeaseView) -> str:
        where = "" if view.lease is None else f" on {view.lease.host} (renewed {view.lease.renewed_at})"
        return (
            f"{self._store.uri_of(self._key)}: held by {view.holder} of chain {view.chain}{where}; "
            "wait until it has finished, or stop it there"
        )


def _parse(data: bytes) -> Lease | None:
    try:
        return Lease.model_validate_json(data)
    except ValidationError:
        return None
