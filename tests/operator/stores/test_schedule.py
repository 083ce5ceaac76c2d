"""How much it costs to find out which store is asked next."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

from modelchain.errors import ModelChainError
from modelchain.resolved import ResolvedStore
from modelchain.store import Credentials, Forbidden, NotFound, Store, StoreUnavailable, open_store
from modelchain.store.s3_transport import TimeLimit
from modelchain_operator.stores import schedule as store_schedule
from modelchain_operator.stores.access import EndpointRefused
from modelchain_operator.stores.schedule import StoreEndpoint, StoreSchedule, Task
from tests.modelchain.store.dripping_server import dripping
from tests.operator.stores.flaky_store import WAIT_SECONDS, run, until


def absent() -> None:
    raise StoreUnavailable("no answer")


async def seconds_to_begin(endpoints: int) -> float:
    """Processor time to find the one task that may be done, among so many places that do not answer."""
    done = asyncio.Event()

    async def work(task: Task) -> float | None:
        if task.endpoint.name == "there":
            done.set()
            return None
        await schedule.call(task.endpoint, absent)
        return None

    schedule = StoreSchedule(work, lambda _: None, threads=4, requests_per_second=10**6)
    unresponsive: list[StoreEndpoint] = [schedule.acquire(f"silent-{number}") for number in range(endpoints)]
    for endpoint in unresponsive:
        endpoint.failures, endpoint.probe_at = 3, time.monotonic() + 3600
        schedule.soon(Task(endpoint, "hostile"))
    for _ in range(20):
        schedule.soon(Task(schedule.acquire("there"), "team"))
    began = time.process_time()
    schedule.start()
    await until(done.is_set, "it was done")
    took = time.process_time() - began
    await schedule.close()
    return took


def test_silent_places_cost_in_proportion_to_their_number() -> None:
    """A tenant could hold the loop for seconds with a few thousand endpoints that do not answer."""

    async def scenario() -> None:
        few = min([await seconds_to_begin(1_000) for _ in range(3)])
        many = min([await seconds_to_begin(8_000) for _ in range(3)])
        assert many < 32 * max(few, 0.01), (few, many)

    run(scenario())


class Lines:
    """How many lines of the schedule were run."""

    def __init__(self) -> None:
        self.count = 0


@contextmanager
def counted_lines() -> Iterator[Lines]:
    """Count the lines of the schedule that this thread runs, one in a loop each time."""
    lines, tracer = Lines(), sys.gettrace()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename != store_schedule.__file__:
            return None
        lines.count += event == "line"
        return trace

    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(tracer)


def one_store(asked: list[str], *, proven: bool) -> tuple[StoreSchedule, StoreEndpoint]:
    """A schedule that is not started and one endpoint; whose tasks are done is noted in `asked`."""

    async def work(task: Task) -> float | None:
        asked.append(task.namespace)
        return None

    schedule = StoreSchedule(work, lambda _: None, threads=4, requests_per_second=10**6)
    endpoint = schedule.acquire("there")
    endpoint.proven = proven
    return schedule, endpoint


async def lines_per_task(namespaces: int, *, proven: bool) -> float:
    """To queue and to start one task of each of so many namespaces, at one endpoint."""
    asked: list[str] = []

    schedule, endpoint = one_store(asked, proven=proven)
    with counted_lines() as lines:
        for number in range(namespaces):
            schedule.soon(Task(endpoint, f"namespace-{number}"))
        schedule.start()
        await until(lambda: len(asked) == namespaces, "they were done")
    await schedule.close()
    assert asked == [f"namespace-{number}" for number in range(namespaces)]
    return lines.count / namespaces


@pytest.mark.parametrize("proven", [False, True])
def test_a_task_costs_the_same_however_many_namespaces_wait_at_its_store(*, proven: bool) -> None:
    async def scenario() -> None:
        few, many = await lines_per_task(100, proven=proven), await lines_per_task(1_000, proven=proven)
        assert many < 1.5 * few, (few, many)

    run(scenario())


async def lines_beside(namespaces: int, endpoints: int) -> float:
    """To serve a store, while so many namespaces wait at one that is busy, and one at so many of its own."""
    served: list[str] = []
    go_on = asyncio.Event()

    async def work(task: Task) -> float | None:
        served.append(task.endpoint.name)
        if task.endpoint.name != "there":
            await go_on.wait()
        return None

    schedule = StoreSchedule(work, lambda _: None, threads=8, requests_per_second=10**6)
    for name in ("busy", *(f"its-{number}" for number in range(endpoints))):
        endpoint = schedule.acquire(name)
        endpoint.proven = True
        for number in range(namespaces if name == "busy" else 1):
            schedule.soon(Task(endpoint, f"namespace-{number}" if name == "busy" else "hostile"))
    schedule.start()
    await until(lambda: len(served) >= 6, "no more than a quarter is left")
    there = schedule.acquire("there")
    there.proven = True
    with counted_lines() as lines:
        for number in range(20):
            schedule.soon(Task(there, "team"))
            await until(lambda number=number: served.count("there") > number, "it was served")
    go_on.set()
    await schedule.close()
    return lines.count / 20


@pytest.mark.parametrize(("namespaces", "endpoints"), [(3_000, 1), (8, 3_000)])
def test_a_full_schedule_is_not_looked_through_for_every_task(namespaces: int, endpoints: int) -> None:
    async def scenario() -> None:
        few, many = await lines_beside(8, 1), await lines_beside(namespaces, endpoints)
        assert many < 2 * few, (few, many)

    run(scenario())


@pytest.mark.parametrize("failures", [0, 3], ids=["after a restart", "after an outage"])
def test_a_namespace_with_thousands_of_silent_stores_holds_up_no_other(failures: int) -> None:
    """Nothing is known yet of any store, or all have failed: those of others are not tried after all of its own."""

    async def scenario() -> None:
        asked: list[str] = []

        async def work(task: Task) -> float | None:
            asked.append(task.endpoint.name)
            if task.endpoint.name != "there":
                await schedule.call(task.endpoint, absent)
            return None

        schedule = StoreSchedule(work, lambda _: None, threads=4, requests_per_second=10**6)
        names = [*((f"silent-{number}", "hostile") for number in range(3_000)), ("there", "team")]
        for name, namespace in [*names, ("there", "hostile")]:  # which it uses as well
            endpoint = schedule.acquire(name)
            endpoint.failures = failures
            schedule.soon(Task(endpoint, namespace), urgent=True)
        schedule.start()
        await until(lambda: "there" in asked, "it was done")
        await schedule.close()
        assert asked.index("there") < 10

    run(scenario())


@pytest.mark.parametrize(
    ("error", "dependable"),
    [(NotFound, True), (Forbidden, True), (EndpointRefused, False), (StoreUnavailable, False)],
)
def test_only_an_answer_of_its_server_makes_an_endpoint_dependable(
    error: type[ModelChainError], dependable: bool
) -> None:
    """Otherwise slow look-ups of names whose addresses are then refused would get most threads."""

    def ask() -> None:
        raise error("why")

    async def scenario() -> None:
        schedule = StoreSchedule(nothing, lambda _: None, threads=4, requests_per_second=10**6)
        endpoint = schedule.acquire("there")
        with pytest.raises(error):
            await schedule.call(endpoint, ask)
        assert endpoint.dependable is dependable
        await schedule.close()

    run(scenario())


def test_stores_that_answered_once_and_then_drip_hold_up_no_other() -> None:
    async def scenario() -> None:
        served, go_on = asyncio.Event(), threading.Event()
        dripping = 0

        def drip() -> None:
            go_on.wait(WAIT_SECONDS)

        async def work(task: Task) -> float | None:
            nonlocal dripping
            if task.endpoint.name == "there":
                served.set()
                return None
            dripping += 1
            await schedule.call(task.endpoint, drip)
            return None

        schedule = StoreSchedule(work, lambda _: None, threads=8, requests_per_second=10**6)
        for name in ("one", "two"):
            endpoint = schedule.acquire(name)
            await schedule.call(endpoint, lambda: None)
            for number in range(8):
                schedule.soon(Task(endpoint, f"namespace-{number}"), urgent=True)
        schedule.start()
        await until(lambda: dripping >= 6, "they drip")
        there = schedule.acquire("there")
        await schedule.call(there, lambda: None)
        schedule.soon(Task(there, "team"))
        await until(served.is_set, "it was served")
        assert dripping == 6
        go_on.set()
        await schedule.close()

    run(scenario())


@pytest.mark.parametrize("proven", [False, True])
def test_a_namespace_with_thousands_of_tasks_at_a_store_holds_up_no_other_at_the_same_one(
    proven: bool,
) -> None:
    async def scenario() -> None:
        asked: list[str] = []

        schedule, endpoint = one_store(asked, proven=proven)
        for namespace in [*["busy"] * 3_000, "team"]:
            schedule.soon(Task(endpoint, namespace))
        schedule.start()
        await until(lambda: "team" in asked, "it was done")
        await schedule.close()
        assert asked.index("team") < 10

    run(scenario())


def test_a_store_that_drips_loses_its_standing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is cut in the middle of an answer."""
    made: list[TimeLimit] = []

    class Observed(TimeLimit):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    monkeypatch.setattr(store_schedule, "TimeLimit", Observed)
    monkeypatch.setattr(store_schedule, "CALL_SECONDS", 4 * WAIT_SECONDS)  # the test cuts it

    async def scenario(store: Store, begun: threading.Event) -> None:
        schedule = StoreSchedule(nothing, lambda _: None, threads=4, requests_per_second=10**6)
        endpoint = schedule.acquire("there")
        await schedule.call(endpoint, lambda: None)
        assert endpoint.dependable
        call = asyncio.create_task(schedule.call(endpoint, store.get, "key"))
        assert await asyncio.to_thread(begun.wait, WAIT_SECONDS)
        made[-1].cut()
        with pytest.raises(StoreUnavailable, match="not complete in time"):
            await call
        assert not endpoint.dependable
        await schedule.close()

    with dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx") as (address, begun):
        access = ResolvedStore(uri="s3://bucket/chains", endpoint_url=address)
        store = open_store(access, patience_seconds=0.0, credentials=Credentials("key", "secret"))
        run(scenario(store, begun))


@pytest.mark.parametrize("seconds", [0.0, 0.05])
def test_what_takes_longer_than_its_time_is_cut(seconds: float) -> None:
    async def scenario(store: Store) -> None:
        schedule = StoreSchedule(nothing, lambda _: None, threads=4, requests_per_second=10**6)
        endpoint = schedule.acquire("there")
        with pytest.raises(StoreUnavailable):
            await schedule.call(endpoint, store.get, "key", seconds=seconds)
        assert endpoint.failing
        await schedule.close()

    with dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx") as (address, _):
        access = ResolvedStore(uri="s3://bucket/chains", endpoint_url=address)
        run(scenario(open_store(access, patience_seconds=0.0, credentials=Credentials("key", "secret"))))


async def nothing(_task: Task) -> None:
    """Work that is never asked for."""
