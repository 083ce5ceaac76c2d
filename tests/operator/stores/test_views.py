"""At what pace the reconciler has the stages of its chains looked at."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from modelchain.spec import StoreSpec
from modelchain.stage_probe import StoreSnapshot
from modelchain.status import ChainPhase, ChainStatus, StagePhase, StageStatus
from modelchain_operator.acceptance import Accepted
from modelchain_operator.kubernetes.api import Object
from modelchain_operator.kubernetes.key import Key
from modelchain_operator.settings import read_settings
from modelchain_operator.stores import reader
from modelchain_operator.stores.access import StoreAccess
from modelchain_operator.stores.reader import StoreReader
from modelchain_operator.stores.views import StoreViews
from tests.clock import Clock
from tests.modelchain.reconcile.chains import chain
from tests.operator.stores.flaky_store import WAIT_SECONDS, FlakyStore, complete, run, settle, train

CHAIN = chain((("tiny", None), ("small", "tiny")))
KEY = Key("default", "family")


class NoCluster:
    """Nothing is to be asked of it."""

    async def get_secret(self, namespace: str, name: str) -> Object | None:
        raise AssertionError(f"{namespace}/{name}")

    async def get_config_map(self, namespace: str, name: str) -> Object | None:
        raise AssertionError(f"{namespace}/{name}")

    async def own_addresses(self) -> list[str]:
        raise AssertionError


@dataclass(frozen=True)
class Scene:
    """A chain and its store, read by a clock that stands still until the test moves it."""

    store: FlakyStore
    accepted: Accepted
    views: StoreViews
    reader: StoreReader
    clock: Clock

    async def reads_within(self, seconds: float) -> int:
        """How often the store is asked about stages in that time: the chain's record is none of them."""
        await settle(self.reader)
        before = self._reads()
        self.clock.now += seconds
        await settle(self.reader)
        return self._reads() - before

    def _reads(self) -> int:
        return sum(count for key, count in self.store.asked.items() if key.startswith("stages/"))


@asynccontextmanager
async def looking(store: FlakyStore) -> AsyncIterator[Scene]:
    """Looks at that store and a chain in it."""
    accepted = Accepted(CHAIN, StoreSpec(uri=store.uri), jobs={}, macs={}, speedup_planned=1.0)
    settings = read_settings(["--own-identity-store", store.uri])
    access = StoreAccess(NoCluster(), settings.own_identity_stores, wrap=lambda _: store)
    clock = Clock()
    reader = StoreReader(lambda _: None, threads=4, requests_per_second=1000.0, clock=clock)
    reader.start()
    try:
        yield Scene(store, accepted, StoreViews(access, reader), reader, clock)
    finally:
        await reader.close()
        access.close()


def status(phase: ChainPhase, stages: dict[str, StagePhase], attempt: int = 0) -> ChainStatus:
    """A status with these stages."""
    return ChainStatus(
        phase=phase,
        stages=tuple(
            StageStatus(name=name, digest=CHAIN.stage(name).digest, phase=stage, attempt=attempt)
            for name, stage in stages.items()
        ),
    )


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RUNNING_SECONDS", "WAITING_SECONDS", "LONGEST_WAITING_SECONDS"):
        monkeypatch.setattr(reader, name, 0.03)


def test_a_chain_that_is_complete_is_left_in_peace_from_the_write_on_that_says_so(tmp_path: Path) -> None:
    """No event has to come for that: there may be none after the last write."""
    store = FlakyStore(tmp_path / "store")

    async def scenario() -> None:
        async with looking(store) as scene:
            for stage in CHAIN.stages:
                complete(store, stage)
            await look(scene, None)
            assert await scene.reads_within(60) > 0
            now = status(ChainPhase.COMPLETE, {"tiny": StagePhase.CACHED, "small": StagePhase.CACHED})
            await scene.views.written(KEY, scene.accepted, now)
            assert await scene.reads_within(600) == 0

    run(scenario())


def test_a_suspended_chain_is_not_read_again_after_a_restart(tmp_path: Path) -> None:
    """Its status says all that there is to say until it is resumed; thousands of them wait for no store."""
    store = FlakyStore(tmp_path / "store")

    async def scenario() -> None:
        async with looking(store) as scene:
            suspended = replace(scene.accepted, chain=CHAIN.model_copy(update={"suspend": True}))
            known = status(
                ChainPhase.SUSPENDED, {"tiny": StagePhase.SUSPENDED, "small": StagePhase.SUSPENDED}
            )
            assert await scene.views.snapshot(KEY, suspended, known) is not None
            assert await scene.reads_within(3600) == 0
            resumed = await scene.views.snapshot(KEY, scene.accepted, known)
            assert resumed is None, "what is there?"
            snapshot = await look(scene, known)
            assert "tiny" in snapshot.facts

    run(scenario())


def test_a_stage_whose_job_starts_is_left_in_peace_until_it_trains(tmp_path: Path) -> None:
    store = FlakyStore(tmp_path / "store")

    async def scenario() -> None:
        async with looking(store) as scene:
            await look(scene, None)
            starts = status(
                ChainPhase.PENDING, {"tiny": StagePhase.PENDING, "small": StagePhase.PENDING}, attempt=1
            )
            await scene.views.written(KEY, scene.accepted, starts)
            assert await scene.reads_within(0.8 * reader.STARTING_SECONDS) == 0
            train(store, CHAIN, CHAIN.stage("tiny"), 7)
            runs = status(
                ChainPhase.RUNNING, {"tiny": StagePhase.RUNNING, "small": StagePhase.PENDING}, attempt=1
            )
            await scene.views.written(KEY, scene.accepted, runs)
            await look(scene, runs, until=lambda snapshot: snapshot.facts["tiny"].progress is not None)

    run(scenario())


async def look(
    scene: Scene,
    told: ChainStatus | None,
    until: Callable[[StoreSnapshot], bool] = lambda _: True,
) -> StoreSnapshot:
    """The first look that shows all that matters."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        snapshot = await scene.views.snapshot(KEY, scene.accepted, told)
        if snapshot is not None and until(snapshot):
            return snapshot
        await asyncio.sleep(0.01)
    raise AssertionError(f"not seen in {WAIT_SECONDS} s")
