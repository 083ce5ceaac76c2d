"""A lease that somebody holds for as long as a test likes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from modelchain.lease import LeaseKeeper
from modelchain.store import Store


@contextmanager
def held_lease(store: Store, key: str, *, holder: str, chain: str) -> Iterator[None]:
    """It never expires, however busy the machine is, and is renewed all the time, so that nobody waits for a sign of
    life.
    """
    keeper = LeaseKeeper(store, key, holder=holder, chain=chain, duration_seconds=3600)
    released = threading.Event()

    def renew() -> None:
        while not released.wait(0.05):
            keeper._renew()

    thread = threading.Thread(target=renew)
    with keeper:
        thread.start()
        try:
            yield
        finally:
            released.set()
            thread.join()
