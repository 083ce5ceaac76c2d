"""A lease is judged by the observer's own clock, seen dead at once on one machine, and not lost to an outage."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modelchain.artifacts import Lease
from modelchain.errors import HeldError
from modelchain.lease import LeaseKeeper, LeaseObserver
from modelchain.process import is_gone, this_host, this_process
from modelchain.store import Store, StoreUnavailable
from modelchain.store.folder import FolderStore
from tests.leases import held_lease
from tests.processes import PATIENCE_SECONDS, wait_until
from tests.race import race
from tests.seaweedfs import SeaweedFS

KEY = "stages/x/lease.json"
ELSEWHERE = "some-other-machine"
linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="without /proc nobody is found dead")


def lease(
    *, holder: str = "other", sequence: int = 1, duration: int = 30, host: str = ELSEWHERE, **more: object
) -> bytes:
    found = Lease.model_validate(
        {
            "holder": holder,
            "chain": "default/demo",
            "sequence": sequence,
            "duration_seconds": duration,
            "host": host,
            "process": "-/1/-",
            "renewed_at": "1999-01-01T00:00:00Z",
            **more,
        }
    )
    return found.model_dump_json(by_alias=True).encode()


def keeper(
    store: Store, holder: str = "me", *, duration: int = 30, on_lost: Callable[[], None] | None = None
) -> LeaseKeeper:
    return LeaseKeeper(
        store, KEY, holder=holder, chain="default/demo", duration_seconds=duration, on_lost=on_lost
    )


def read(store: Store) -> Lease:
    return Lease.model_validate_json(store.get(KEY)[0])


@pytest.fixture(scope="module")
def dead_process() -> str:
    """The name of a process of this machine that has ended."""
    code = "from modelchain.process import this_process; print(this_process())"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture
def living_process() -> Iterator[str]:
    """The name of another process of this machine that lives."""
    code = "from modelchain.process import this_process; print(this_process(), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        yield child.stdout.readline().strip()
        child.kill()


class TestAnObserver:
    def test_no_lease_is_seen_as_none(self, any_store: Store) -> None:
        assert LeaseObserver(any_store, KEY).observe(0.0) is None

    def test_a_lease_is_fresh_until_it_was_seen_unchanged_for_its_duration(self, any_store: Store) -> None:
        any_store.put(KEY, lease(duration=30))
        observer = LeaseObserver(any_store, KEY)
        freshness = []
        for now in (1000.0, 1015.0, 1028.0, 1035.0):
            view = observer.observe(now)
            assert view is not None
            freshness.append((view.fresh, view.reason))
        assert freshness == [(True, "held"), (True, "held"), (True, "held"), (False, "expired")]
        any_store.put(KEY, lease(sequence=2, duration=30))
        view = observer.observe(1036.0)
        assert view is not None
        assert (view.fresh, view.holder, view.chain) == (True, "other", "default/demo")

    def test_the_holders_clock_does_not_matter(self, folder_store: FolderStore) -> None:
        for renewed_at in ("1999-01-01T00:00:00Z", "2999-01-01T00:00:00Z"):
            folder_store.put(KEY, lease(renewed_at=renewed_at))
            observer = LeaseObserver(folder_store, KEY)
            first, later = observer.observe(0.0), observer.observe(40.0)
            assert first is not None
            assert later is not None
            assert (first.fresh, later.fresh) == (True, False)

    def test_a_released_lease_is_nobodys_at_once(self, folder_store: FolderStore) -> None:
        folder_store.put(KEY, lease(released=True))
        view = LeaseObserver(folder_store, KEY).observe(0.0)
        assert view is not None
        assert (view.fresh, view.reason) == (False, "released")

    def test_time_without_the_store_is_not_held_against_the_holder(
        self, folder_store: FolderStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder_store.put(KEY, lease(duration=30))
        observer = LeaseObserver(folder_store, KEY)
        observer.observe(0.0)

        def away(key: str) -> tuple[bytes, str]:
            raise StoreUnavailable(key)

        with monkeypatch.context() as outage:
            outage.setattr(folder_store, "get", away)
            with pytest.raises(StoreUnavailable):
                observer.observe(20.0)
        for now, fresh in ((60.0, True), (85.0, True), (95.0, False)):
            view = observer.observe(now)
            assert view is not None
            assert view.fresh == fresh, now

    def test_a_lease_that_can_not_be_read_expires_too(self, folder_store: FolderStore) -> None:
        folder_store.put(KEY, b"{ not json")
        observer = LeaseObserver(folder_store, KEY)
        first, later = observer.observe(0.0), observer.observe(31.0)
        assert first is not None
        assert later is not None
        assert (first.fresh, first.holder, later.fresh) == (True, "unknown", False)

    @linux
    def test_a_holder_that_died_on_this_machine_is_seen_at_once(
        self, folder_store: FolderStore, dead_process: str
    ) -> None:
        folder_store.put(KEY, lease(host=this_host(), process=dead_process))
        view = LeaseObserver(folder_store, KEY).observe(0.0)
        assert view is not None
        assert (view.fresh, view.reason) == (False, "dead")


class TestAProcessName:
    @linux
    def test_the_living_are_not_gone(self, living_process: str) -> None:
        assert not is_gone(this_process(), this_host())
        assert not is_gone(living_process, this_host())

    @linux
    def test_the_dead_are_gone_even_if_their_number_is_used_again(self, dead_process: str) -> None:
        assert is_gone(dead_process, this_host())
        boot, pid, start = this_process().split("/")
        assert is_gone(f"{boot}/{pid}/{int(start) - 1}", this_host())

    @linux
    def test_a_zombie_is_gone(self) -> None:
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        stat = Path(f"/proc/{child}/stat")
        start = stat.read_text().rpartition(")")[2].split()[19]
        name = f"{this_process().split('/')[0]}/{child}/{start}"
        assert not is_gone(name, this_host())
        os.kill(child, 9)
        wait_until(lambda: is_gone(name, this_host()), "the zombie is gone")
        os.waitpid(child, 0)

    def test_nothing_is_known_of_other_machines_boots_and_containers(self, dead_process: str) -> None:
        boot, pid, start = dead_process.split("/")
        assert not is_gone(dead_process, ELSEWHERE)
        for other in (
            f"other-boot/{pid}/{start}",
            f"{boot}0/{pid}/{start}",
        ):  # the boot id, the PID namespace
            assert not is_gone(other, this_host())

    @pytest.mark.parametrize(
        "name",
        ["", "-/1/-", "a/b/c", "//", f"-/{os.getpid()}/5", "x", "b/99999999999999999999/5"],
        ids=["nothing", "nobody", "letters", "slashes", "own pid, no boot id", "one part", "huge pid"],
    )
    def test_a_name_that_says_nothing_is_never_gone(self, name: str) -> None:
        assert not is_gone(name, this_host())


class TestAKeeper:
    def test_it_takes_keeps_and_gives_back(self, any_store: Store) -> None:
        with keeper(any_store, duration=1) as held:
            first = read(any_store)
            assert (first.holder, first.chain, first.released) == ("me", "default/demo", False)
            assert (first.host, first.process) == (this_host(), this_process())
            wait_until(lambda: read(any_store).sequence >= first.sequence + 2, "it is renewed twice")
            assert not held.lost
        assert read(any_store).released
        with keeper(any_store, "next"):
            assert read(any_store).holder == "next"

    def test_a_second_one_is_refused_at_the_first_sign_of_life(self, any_store: Store) -> None:
        with held_lease(any_store, KEY, holder="first", chain="default/demo"):
            with pytest.raises(HeldError, match=r"held by first of chain default/demo on .*; wait until"):
                keeper(any_store, "second", duration=2).acquire()
            with pytest.raises(HeldError):
                keeper(any_store, "second").acquire(wait=False)
            assert read(any_store).holder == "first"

    def test_a_silent_holder_elsewhere_is_replaced_after_the_duration(self, any_store: Store) -> None:
        any_store.put(KEY, lease(duration=1))
        began = time.monotonic()
        with keeper(any_store):
            assert time.monotonic() - began >= 1
            assert read(any_store).holder == "me"

    @linux
    def test_a_holder_killed_on_this_machine_is_replaced_at_once(
        self, folder_store: FolderStore, dead_process: str
    ) -> None:
        folder_store.put(KEY, lease(host=this_host(), process=dead_process, duration=10**6))
        with keeper(folder_store):
            assert read(folder_store).holder == "me"

    def test_of_many_that_want_a_free_lease_one_gets_it(self, any_store: Store) -> None:
        keepers = [keeper(any_store, f"k{number}") for number in range(4)]
        winners = race(len(keepers), lambda i: keepers[i].acquire(wait=False), loses=HeldError)
        assert len(winners) == 1
        keepers[winners[0]].release()

    def test_a_holder_that_was_taken_over_learns_it_once_and_leaves_the_new_one_alone(
        self, any_store: Store
    ) -> None:
        told: list[str] = []
        held = keeper(any_store, duration=1, on_lost=lambda: told.append("lost"))
        held.acquire()
        any_store.put(KEY, lease(holder="thief"))
        wait_until(lambda: held.lost, "it learns of it")
        held.release()
        assert told == ["lost"]
        assert read(any_store).holder == "thief"
        assert not read(any_store).released

    def test_another_process_with_the_same_token_is_somebody_else(self, folder_store: FolderStore) -> None:
        held = keeper(folder_store, duration=1)
        held.acquire()
        folder_store.put(KEY, lease(holder="me", process="-/2/-"))
        wait_until(lambda: held.lost, "it learns of it")
        held.release()

    def test_a_lease_removed_by_hand_is_made_again(self, folder_store: FolderStore) -> None:
        with keeper(folder_store, duration=1) as held:
            folder_store.delete([KEY])
            wait_until(lambda: folder_store.head(KEY) is not None, "it is made again")
            assert not held.lost

    def test_a_renewal_whose_answer_was_lost_is_known_as_ours(
        self, folder_store: FolderStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put = folder_store.put
        unheard = threading.Event()

        def put_and_lose_the_answer(key: str, data: bytes, **conditions: object) -> str:
            etag = put(key, data, **conditions)  # pyright: ignore[reportArgumentType]
            if not unheard.is_set() and conditions.get("if_match"):
                unheard.set()
                raise StoreUnavailable(key)
            return etag

        monkeypatch.setattr(folder_store, "put", put_and_lose_the_answer)
        with keeper(folder_store, duration=1) as held:
            wait_until(unheard.is_set, "an answer is lost")
            sequence = read(folder_store).sequence
            wait_until(lambda: read(folder_store).sequence >= sequence + 2, "it is renewed twice")
            assert not held.lost

    @pytest.mark.slow
    def test_an_outage_longer_than_the_lease_does_not_lose_it(
        self, seaweedfs: SeaweedFS, s3_store: Store
    ) -> None:
        with keeper(s3_store, duration=1) as held:
            seaweedfs.kill()
            try:
                time.sleep(2.5)
                assert not held.lost
            finally:
                seaweedfs.start()
            sequence = read(s3_store).sequence
            wait_until(lambda: read(s3_store).sequence > sequence, "it is renewed")
            assert not held.lost

    def test_a_renewal_that_fails_in_a_way_nobody_foresaw_is_not_the_last(
        self, folder_store: FolderStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put, failed = folder_store.put, threading.Event()

        def fail_once(*arguments: Any, **conditions: Any) -> str:
            if not failed.is_set():
                failed.set()
                raise KeyError("ETag")
            return put(*arguments, **conditions)

        with keeper(folder_store, duration=1) as held:
            sequence = read(folder_store).sequence
            monkeypatch.setattr(folder_store, "put", fail_once)
            wait_until(failed.is_set, "a renewal has failed")
            wait_until(lambda: read(folder_store).sequence > sequence, "it is renewed")
            assert not held.lost

    def test_release_does_not_wait_for_a_store_that_is_away(
        self, folder_store: FolderStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        held = keeper(folder_store)
        held.acquire()
        answers = threading.Event()
        monkeypatch.setattr(folder_store, "put", lambda *_, **__: answers.wait(PATIENCE_SECONDS))
        held.release(timeout_seconds=0.2)
        assert held._thread is not None
        assert held._thread.is_alive(), "it still asks the store"
        answers.set()
