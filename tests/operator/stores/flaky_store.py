"""Stores that can be told not to answer, attempts that leave signs of life in them, and loops that wait for both."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

from modelchain.artifacts import LEASE, MANIFEST, PROGRESS, Lease, attempt_folder, new_attempt_token
from modelchain.resolved import ResolvedChain, ResolvedStage
from modelchain.store import ObjectInfo, Store, StoreUnavailable
from modelchain.store.folder import FolderStore
from modelchain_operator.stores.reader import StoreReader
from tests.clock import Clock
from tests.modelchain.reconcile.chains import manifest, progress

WAIT_SECONDS = 240.0


class FlakyStore(FolderStore):
    """A folder that can be told not to answer, or to refuse, and that counts what it is asked."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.problem: Exception | None = None
        self.answers = threading.Event()
        self.answers.set()
        self.hangs_seconds = 30.0  # after that, what does not answer is given up
        self.asked: Counter[str] = Counter()
        self.under_way = 0
        self.most_under_way = 0
        self._counting = threading.Lock()

    def get(self, key: str) -> tuple[bytes, str]:
        self._answer(key)
        try:
            return super().get(key)
        finally:
            self._done()

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self._answer(prefix)
        try:
            yield from super().list(prefix)
        finally:
            self._done()

    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> str:
        self._answer(key)
        try:
            return super().put(key, data, if_absent=if_absent, if_match=if_match)
        finally:
            self._done()

    def _answer(self, key: str) -> None:
        with self._counting:
            self.asked[key] += 1
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        answered = self.answers.wait(self.hangs_seconds)
        if self.problem is not None or not answered:
            self._done()
            raise self.problem or StoreUnavailable(f"{self.uri}: no answer in time")

    def _done(self) -> None:
        with self._counting:
            self.under_way -= 1


def hold_lease(
    store: Store, chain: ResolvedChain, stage: ResolvedStage, token: str, sequence: int = 1
) -> None:
    """The launch `token` of the chain's attempt holds the lease of the stage."""
    lease = Lease(
        holder=token,
        chain=chain.chain.full_name,
        sequence=sequence,
        duration_seconds=30,
        host="another-host",
        process="b/1/1",
        renewed_at="2027-01-15T08:00:00Z",
    )
    store.put(f"{stage.folder}/{LEASE}", lease.model_dump_json(by_alias=True).encode())


def advance(store: Store, stage: ResolvedStage, token: str, step: int, **figures: Any) -> None:
    """The launch gives a sign of life."""
    said = progress(step).model_copy(update=figures)
    store.put(
        f"{attempt_folder(stage.folder, token)}/{PROGRESS}", said.model_dump_json(by_alias=True).encode()
    )


def train(store: Store, chain: ResolvedChain, stage: ResolvedStage, step: int, attempt: int = 1) -> str:
    """A launch of the attempt holds the stage's lease and has come to a step. Returns its token."""
    token = new_attempt_token(chain.chain.uid, attempt)
    hold_lease(store, chain, stage, token)
    advance(store, stage, token, step)
    return token


def complete(store: Store, stage: ResolvedStage) -> None:
    """The stage's manifest lies there (it lists no files)."""
    store.put(f"{stage.folder}/{MANIFEST}", manifest(stage).model_dump_json(by_alias=True).encode())


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a test's coroutine in a loop of its own."""

    async def limited() -> None:
        await asyncio.wait_for(coroutine, 4 * WAIT_SECONDS)

    asyncio.run(limited())


async def until(condition: Callable[[], object], what: str) -> None:
    """Return when the condition holds; fail if it does not for long."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        await asyncio.sleep(0.01)


async def settle(reader: StoreReader) -> None:
    """Return when nothing is under way and nothing more is due, by a clock that stands still."""
    schedule = reader._schedule
    schedule._wake.set()
    await until(lambda: not (schedule._wake.is_set() or schedule._under_way), "all that is due is done")


async def elapse(reader: StoreReader, clock: Clock, seconds: float, *, step: float = 0.05) -> None:
    """Let time go by, in steps in which all that is due is done."""
    end = clock.now + seconds
    while clock.now < end:
        clock.now = min(end, clock.now + step)
        await settle(reader)
