"""Listings find what no watch has shown, and leave the rest to the watches. On a real API server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest

from modelchain_operator.informers import resync as module
from modelchain_operator.informers.cache import Cache
from modelchain_operator.informers.resync import FEW, Resync
from modelchain_operator.kubernetes import labels
from modelchain_operator.kubernetes.api import KubernetesApi, Object, ObjectVersion, Unavailable
from modelchain_operator.kubernetes.kinds import CHAIN, POD, PYTORCHJOB, Kind
from modelchain_operator.work_queue import KeyQueue
from tests.control_plane.plane import ControlPlane
from tests.operator.kubernetes.test_api import chain, with_api
from tests.processes import PATIENCE_SECONDS

pytestmark = pytest.mark.xdist_group("control-plane")


class Scene:
    """A cache and its listings, of one namespace with a few more chains than are read one by one."""

    def __init__(self, api: KubernetesApi, namespace: str) -> None:
        self.api, self.namespace = api, namespace
        self.cache = Cache()
        self.read: list[str] = []  # names of chains that were read one by one
        self.recovered = asyncio.Event()  # what was broken is not any more
        self.listings: list[Kind] = []  # as they were asked for, once one is broken
        self.progress: list[float] = []  # as each of them began: when the listing last came further
        self.resync = Resync(api, self.cache, KeyQueue(), set(), namespaces=[namespace])
        get = api.get_chain

        async def counted(where: str, name: str) -> Object | None:
            self.read.append(name)
            self.progress.append(self.resync.attempted_at or 0.0)
            return await get(where, name)

        api.get_chain = counted  # type: ignore[method-assign]

    async def create_chains(self) -> None:
        for number in range(FEW + 5):
            await self.api.create(CHAIN, chain(self.namespace, f"chain-{number}"))

    def break_listing(self, kind: Kind, *, times: int = 1000) -> None:
        """Have the API server answer 500 to listings of that kind, so many times."""
        list_versions, left = self.api.list_versions, times

        async def broken(of: Kind, where: str | None) -> list[ObjectVersion]:
            nonlocal left
            self.listings.append(of)
            if of == kind and left > 0:
                left -= 1
                raise Unavailable(f"list {kind.plural}: conversion webhook failed", status=500)
            if of == kind:
                self.recovered.set()
            return await list_versions(of, where)

        self.api.list_versions = broken  # type: ignore[method-assign]

    async def watch(self, *, but: int = 0) -> None:
        """Show what there is, but for a few, as a watch does when it begins."""
        for body in (await self.api.list_selected(CHAIN, self.namespace))[but:]:
            self.cache.show_chain(body)


def play(plane: ControlPlane, namespace: str, scenario: Callable[[Scene], Awaitable[None]]) -> None:
    async def run(api: KubernetesApi) -> None:
        scene = Scene(api, namespace)
        await scene.create_chains()
        await scenario(scene)

    with_api(plane, run)


def test_many_chains_are_left_to_the_watch_and_those_that_it_lacks_are_read(
    control_plane: ControlPlane, namespace: str
) -> None:
    async def scenario(scene: Scene) -> None:
        listing = asyncio.create_task(scene.resync.once())
        await asyncio.sleep(0)
        assert len(scene.cache) == 0
        await scene.watch(but=2)
        await listing
        assert len(scene.cache) == FEW + 5
        assert len(scene.read) == 2

    play(control_plane, namespace, scenario)


def test_without_a_watch_all_are_read_after_a_while(
    control_plane: ControlPlane, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "START_SECONDS", 1.0)

    async def scenario(scene: Scene) -> None:
        await scene.resync.once()
        assert len(scene.read) == len(scene.cache) == FEW + 5
        steps = pairwise([0.0, *scene.progress])
        assert all(before < after for before, after in steps), (
            "each read is progress, so that it counts as live"
        )

    play(control_plane, namespace, scenario)


@pytest.mark.parametrize("kind", [PYTORCHJOB, POD], ids=lambda kind: kind.plural)
def test_a_kind_that_can_not_be_listed_holds_up_no_chain(
    control_plane: ControlPlane, namespace: str, kind: Kind
) -> None:
    """As where the webhook that converts its versions is broken."""

    async def scenario(scene: Scene) -> None:
        await scene.watch()
        scene.break_listing(kind)
        known = {"name": "job", "namespace": namespace, "uid": "job", "resourceVersion": "1"}
        scene.cache.show(kind, {"metadata": known | {"labels": {labels.CHAIN_UID: "chain"}}})
        await scene.resync.once()
        assert scene.resync.listed.is_set()
        assert scene.cache.objects(kind, namespace, "chain"), "what was not listed is not gone"

    play(control_plane, namespace, scenario)


@pytest.mark.parametrize("kind", [PYTORCHJOB, POD], ids=lambda kind: kind.plural)
def test_a_kind_whose_first_listings_fail_is_listed_again_long_before_the_next_listing_of_all(
    control_plane: ControlPlane, namespace: str, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.05)

    async def scenario(scene: Scene) -> None:
        await scene.watch()
        scene.break_listing(kind, times=2)
        running = asyncio.create_task(scene.resync.run(3600))
        async with asyncio.timeout(PATIENCE_SECONDS):
            await scene.recovered.wait()
        assert scene.listings.count(CHAIN) == 1, "nothing else is listed again"
        assert scene.resync.listed.is_set()
        running.cancel()

    play(control_plane, namespace, scenario)


def test_chains_that_can_not_be_listed_are_not_taken_for_listed(
    control_plane: ControlPlane, namespace: str
) -> None:
    async def scenario(scene: Scene) -> None:
        scene.break_listing(CHAIN)
        with pytest.raises(Unavailable):
            await scene.resync.once()
        assert not scene.resync.listed.is_set()

    play(control_plane, namespace, scenario)


def test_a_hint_finds_a_deletion_that_no_watch_has_told_long_before_the_next_listing(
    control_plane: ControlPlane, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HINT_SECONDS", 0.2)

    async def scenario(scene: Scene) -> None:
        await scene.watch()
        gone = asyncio.Event()
        scene.cache._on_chain = lambda _key, body: gone.set() if body is None else None
        running = asyncio.create_task(scene.resync.run(3600))
        await scene.resync.listed.wait()
        (first, *_) = await scene.api.list_selected(CHAIN, namespace)
        metadata = first["metadata"]
        await scene.api.delete(CHAIN, namespace, metadata["name"], metadata["uid"])
        scene.resync.hint()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await gone.wait()
        assert len(scene.cache) == FEW + 4
        running.cancel()

    play(control_plane, namespace, scenario)
