"""What the operator knows of the stores of all chains, also while some of them are away."""

from __future__ import annotations

import asyncio
import gc
import pathlib
import random
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from modelchain.artifacts import FAILURE, LEASE, MANIFEST, Failure, attempt_folder, chain_key
from modelchain.errors import CannotWriteError
from modelchain.reconcile.decide import decide
from modelchain.reconcile.observation import Observation, StageFacts, StoreProblem
from modelchain.resolved import ResolvedChain, ResolvedStore
from modelchain.status import ChainPhase, ChainRecord, ChainStatus, ConditionType, StagePhase, StageStatus
from modelchain.store import Credentials, Forbidden, Store, StoreUnavailable, open_store
from modelchain_operator.kubernetes.key import Key
from modelchain_operator.stores import reader as store_reader
from modelchain_operator.stores import schedule
from modelchain_operator.stores.access import NoAccess
from modelchain_operator.stores.reader import StoreReader
from tests.clock import Clock
from tests.modelchain.reconcile.chains import chain
from tests.modelchain.store.odd_server import Answer, Respond, page, redirect, serve
from tests.operator.stores.flaky_store import (
    WAIT_SECONDS,
    FlakyStore,
    advance,
    complete,
    elapse,
    hold_lease,
    run,
    settle,
    train,
    until,
)
from tests.seaweedfs import SeaweedFS

CHAIN = chain((("tiny", None), ("small", "tiny")))
TINY, SMALL = CHAIN.stage("tiny"), CHAIN.stage("small")
KEY = Key("default", "family")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything happens in milliseconds, in the same proportions."""
    for name in ("RUNNING_SECONDS", "WAITING_SECONDS", "LEASED_SECONDS"):
        monkeypatch.setattr(store_reader, name, 0.03)
    monkeypatch.setattr(store_reader, "LONGEST_WAITING_SECONDS", 0.3)
    monkeypatch.setattr(store_reader, "AT_REST_SECONDS", 0.3)
    monkeypatch.setattr(store_reader, "REFUSED_SECONDS", (0.05, 0.2))
    monkeypatch.setattr(schedule, "UNRESPONSIVE_SECONDS", WAIT_SECONDS)  # but where a store hangs on purpose
    monkeypatch.setattr(schedule, "PROBE_SECONDS", (0.02, 0.1))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that hangs is soon called so, and on a busy machine one that answers too."""
    monkeypatch.setattr(schedule, "UNRESPONSIVE_SECONDS", 0.3)


@pytest.fixture
def store(tmp_path: Path) -> FlakyStore:
    return FlakyStore(tmp_path / "store")


class Told:
    """What the reader has told: which chains have changed, and which stores refuse."""

    def __init__(self) -> None:
        self.changes: Counter[Key] = Counter()
        self.refused: Counter[str] = Counter()

    def change(self, key: Key) -> None:
        self.changes[key] += 1

    def refuse(self, store: Store) -> None:
        self.refused[store.uri] += 1


@asynccontextmanager
async def reading(told: Told | None = None, **options: Any) -> AsyncIterator[StoreReader]:
    told = told or Told()
    options = {
        "threads": 4,
        "requests_per_second": 1000.0,
        "artifact_check_seconds": 0.05,
        "progress_seconds": 0.0,
    } | options
    reader = StoreReader(told.change, on_refused=told.refuse, **options)
    reader.start()
    try:
        yield reader
    finally:
        await reader.close()


def follow(
    reader: StoreReader,
    store: Store | NoAccess,
    *,
    key: Key = KEY,
    resolved: ResolvedChain = CHAIN,
    running: dict[str, int] | None = None,
    starting: frozenset[str] = frozenset(),
    finished: frozenset[str] = frozenset(),
    suspended: bool = False,
    unasked: frozenset[str] = frozenset(),
) -> None:
    at_rest = {
        stage.name
        for stage in resolved.stages
        if suspended or any(other.name not in finished for other in stage.needs)
    }
    reader.follow(
        key,
        resolved,
        store,
        running=running or {},
        starting=starting,
        finished=finished,
        at_rest=at_rest - set(running or {}),
        unasked=unasked,
    )


def fact(reader: StoreReader, stage: str, key: Key = KEY) -> StageFacts | None:
    return reader.snapshot(key).facts.get(stage)


def step(reader: StoreReader, stage: str = "tiny", key: Key = KEY) -> int | None:
    facts = fact(reader, stage, key)
    return facts.progress.step if facts is not None and facts.progress is not None else None


def problem(reader: StoreReader, stage: str = "tiny", key: Key = KEY) -> StoreProblem | None:
    facts = fact(reader, stage, key)
    return None if facts is None else facts.problem


def named(name: str, namespace: str = "default") -> tuple[Key, ResolvedChain]:
    """A chain as `CHAIN`, of another name."""
    reference = CHAIN.chain.model_copy(
        update={"namespace": namespace, "name": name, "uid": f"uid-{namespace}-{name}"}
    )
    return Key(namespace, name), CHAIN.model_copy(update={"chain": reference})


def test_every_stage_of_a_new_chain_is_looked_at_and_its_chain_told(store: FlakyStore) -> None:
    async def scenario() -> None:
        told = Told()
        async with reading(told) as reader:
            assert reader.snapshot(KEY).facts == {}
            follow(reader, store)
            assert reader.snapshot(KEY).facts == {}, "nothing may be said before the first look"
            await until(lambda: set(reader.snapshot(KEY).facts) == {"tiny", "small"}, "both are known")
            assert fact(reader, "tiny") == StageFacts()
            assert told.changes[KEY] >= 1

    run(scenario())


def test_signs_of_life_of_the_attempt_that_runs_are_dated_by_our_clock(store: FlakyStore) -> None:
    async def scenario() -> None:
        clock = Clock()
        async with reading(clock=clock) as reader:
            token = train(store, CHAIN, TINY, 1, attempt=3)
            follow(reader, store, running={"tiny": 3})
            await settle(reader)
            assert step(reader) == 1, "the first sign of life is seen"
            first = reader.snapshot(KEY).progress_changed_at["tiny", 3]
            assert abs(first - time.time()) < 60
            facts = fact(reader, "tiny")
            assert facts is not None
            assert facts.lease is not None
            assert (facts.lease.own, facts.lease.fresh, facts.progress_attempt) == (True, True, 3)
            await elapse(reader, clock, 0.2)
            assert reader.snapshot(KEY).progress_changed_at["tiny", 3] == first, (
                "no change is no sign of life"
            )
            advance(store, TINY, token, 2)
            await elapse(reader, clock, 0.1)
            assert step(reader) == 2, "the second is seen"
            assert reader.snapshot(KEY).progress_changed_at["tiny", 3] > first

    run(scenario())


def test_an_attempt_is_asked_for_signs_of_life_once_its_trainer_runs(store: FlakyStore) -> None:
    async def scenario() -> None:
        clock = Clock()
        async with reading(clock=clock) as reader:
            follow(reader, store)
            await settle(reader)
            follow(reader, store, running={"tiny": 1}, starting=frozenset({"tiny"}))
            asked = store.asked[f"{TINY.folder}/{LEASE}"]
            clock.now += 0.8 * store_reader.STARTING_SECONDS
            await settle(reader)
            assert store.asked[f"{TINY.folder}/{LEASE}"] == asked
            assert fact(reader, "tiny") == StageFacts(), "what was seen before it began holds"
            train(store, CHAIN, TINY, 1)
            follow(reader, store, running={"tiny": 1})
            await settle(reader)
            assert step(reader) == 1, "it is seen"

    run(scenario())


def test_what_an_earlier_attempt_left_is_not_taken_for_a_sign_of_life(store: FlakyStore) -> None:
    async def scenario() -> None:
        async with reading() as reader:
            train(store, CHAIN, TINY, 9, attempt=2)
            follow(reader, store, running={"tiny": 3})
            await until(lambda: fact(reader, "tiny") is not None, "it was looked at")
            assert step(reader) is None
            assert ("tiny", 3) not in reader.snapshot(KEY).progress_changed_at

    run(scenario())


def test_a_chain_is_told_of_mere_progress_only_from_time_to_time(store: FlakyStore) -> None:
    async def scenario() -> None:
        told = Told()
        async with reading(told, progress_seconds=3600.0) as reader:
            token = train(store, CHAIN, TINY, 1)
            follow(reader, store, running={"tiny": 1})
            await until(lambda: step(reader) == 1 and "small" in reader.snapshot(KEY).facts, "all is known")
            advance(store, TINY, token, 2)
            await until(lambda: step(reader) == 2, "the next step is seen")
            before = told.changes[KEY]
            for number in range(3, 8):
                advance(store, TINY, token, number)
                await until(lambda number=number: step(reader) == number, "the step is seen")
            assert told.changes[KEY] == before
            complete(store, TINY)
            reader.refresh(KEY, "tiny")
            await until(lambda: told.changes[KEY] > before, "more than progress is told at once")

    run(scenario())


def test_nothing_is_known_of_a_stage_between_being_told_to_look_again_and_having_looked(
    store: FlakyStore,
) -> None:
    async def scenario() -> None:
        told = Told()
        async with reading(told) as reader:
            follow(reader, store)
            await until(
                lambda: "small" in reader.snapshot(KEY).facts and fact(reader, "tiny"), "all is known"
            )
            store.answers.clear()
            reader.refresh(KEY, "tiny")
            assert "tiny" not in reader.snapshot(KEY).facts
            before = told.changes[KEY]
            store.answers.set()
            await until(lambda: fact(reader, "tiny") is not None, "it was looked at again")
            assert told.changes[KEY] > before, (
                "who waits for the look is told, also when it shows nothing new"
            )

    run(scenario())


def test_a_look_that_began_before_it_was_asked_for_does_not_count(store: FlakyStore) -> None:
    async def scenario() -> None:
        async with reading() as reader:
            store.answers.clear()
            follow(reader, store)
            await until(lambda: store.under_way > 0, "a look is under way")
            reader.refresh(KEY, "tiny")
            complete(FolderStoreOf(store), TINY)
            store.answers.set()
            await until(lambda: fact(reader, "tiny") is not None, "it was looked at")
            facts = fact(reader, "tiny")
            assert facts is not None
            assert facts.manifest is not None

    run(scenario())


def test_what_is_seen_says_when_the_look_began_and_a_look_that_is_asked_for_is_told(
    store: FlakyStore,
) -> None:
    """A stage that hangs shows nothing new, but that a fresh look has shown it: the verdict waits for that."""

    async def scenario() -> None:
        told = Told()
        async with reading(told) as reader:
            store.answers.clear()
            follow(reader, store)
            await until(lambda: store.under_way > 0, "a look is under way")
            began = time.time()
            store.answers.set()
            await until(lambda: fact(reader, "tiny") is not None, "it was looked at")
            assert reader.snapshot(KEY).read_at["tiny"] <= began
            before, asked_at = told.changes[KEY], time.time()
            reader.refresh(KEY, "tiny")
            await until(lambda: told.changes[KEY] > before, "it was told, though nothing has changed")
            await until(lambda: reader.snapshot(KEY).read_at["tiny"] >= asked_at, "the look was a fresh one")

    run(scenario())


def FolderStoreOf(store: FlakyStore) -> Store:  # noqa: N802
    """The same folder, which always answers."""
    return FlakyStore(store.root)


@pytest.mark.parametrize(
    ("resolved", "first", "following"),
    [
        pytest.param(CHAIN, "tiny", "small", id="predecessor"),
        pytest.param(
            chain((("tiny", None), ("large", "tiny"), ("small", "tiny")), teachers={"small": "large"}),
            "large",
            "small",
            id="teacher",
        ),
    ],
)
def test_with_a_manifest_the_next_stage_is_looked_at_before_its_chain_is_told(
    store: FlakyStore, resolved: ResolvedChain, first: str, following: str
) -> None:
    """So that the next job is not made on what was seen a minute ago: somebody may have trained it meanwhile."""
    trained = resolved.stage(first)
    before = frozenset(stage.name for stage in resolved.stages) - {first, following}

    async def scenario() -> None:
        told, known = Told(), []

        def finished(_: Key) -> None:
            facts = reader.snapshot(KEY).facts
            known.append({name for name in facts if facts[name].manifest is not None})

        reader = StoreReader(told.change, on_finished=finished, threads=4, artifact_check_seconds=60.0)
        reader.start()
        token = train(store, resolved, trained, 1)
        follow(reader, store, resolved=resolved, running={first: 1}, finished=before)
        await until(
            lambda: step(reader, first) == 1 and following in reader.snapshot(KEY).facts, "all is known"
        )
        assert told.changes[KEY] > 0
        complete(store, resolved.stage(following))
        complete(store, trained)
        advance(store, trained, token, 16, phase="Complete")
        await until(lambda: bool(known), "the manifest is told of, and not as any other change")
        assert all(complete == {first, following} for complete in known)
        await reader.close()

    run(scenario())


def test_why_an_attempt_has_failed_is_known_from_the_store_where_its_job_is_gone(store: FlakyStore) -> None:
    async def scenario() -> None:
        async with reading() as reader:
            token = train(store, CHAIN, TINY, 5)
            follow(reader, store, running={"tiny": 1})
            await until(lambda: step(reader) == 5, "it runs")
            failure = Failure(exit_code=65, reason="DataError", message="shard 7 is damaged")
            data = failure.model_dump_json(by_alias=True).encode()
            store.put(f"{attempt_folder(TINY.folder, token)}/{FAILURE}", data)
            reader.refresh(KEY, "tiny")
            await until(lambda: (facts := fact(reader, "tiny")) is not None and facts.failure, "it is read")
            facts = fact(reader, "tiny")
            assert facts is not None
            assert (facts.failure_attempt, facts.failure) == (1, failure)

    run(scenario())


def test_a_finished_stage_is_looked_at_from_time_to_time_and_missed_when_it_is_gone(
    store: FlakyStore,
) -> None:
    async def scenario() -> None:
        told = Told()
        async with reading(told) as reader:
            complete(store, TINY)
            follow(reader, store, finished=frozenset({"tiny"}))
            await until(lambda: store.asked[f"{TINY.folder}/{MANIFEST}"] >= 2, "it was looked at twice")
            assert reader.snapshot(KEY).facts["tiny"].present, (
                "one that is there has nothing else to be said of"
            )
            kept = store.get(f"{TINY.folder}/{MANIFEST}")[0]
            store.delete([f"{TINY.folder}/{MANIFEST}"])
            await until(lambda: fact(reader, "tiny") == StageFacts(), "it is missed")
            before = told.changes[KEY]
            store.put(f"{TINY.folder}/{MANIFEST}", kept)
            await until(lambda: fact(reader, "tiny") == StageFacts(present=True), "it is there again")
            await until(lambda: told.changes[KEY] > before, "that is told")

    run(scenario())


def test_an_end_that_somebody_else_saw_is_not_denied_by_what_was_seen_before_it(store: FlakyStore) -> None:
    async def scenario() -> None:
        async with reading(artifact_check_seconds=3600.0) as reader:
            follow(reader, store, running={"tiny": 1})
            await until(lambda: fact(reader, "tiny") == StageFacts(), "it is not there yet")
            complete(store, TINY)
            follow(reader, store, finished=frozenset({"tiny"}))
            assert "tiny" not in reader.snapshot(KEY).facts
            await until(lambda: fact(reader, "tiny") == StageFacts(present=True), "it is there")

    run(scenario())


def test_a_damaged_artifact_is_a_problem_of_its_own(store: FlakyStore) -> None:
    async def scenario() -> None:
        async with reading() as reader:
            store.put(f"{TINY.folder}/{MANIFEST}", b"{")
            follow(reader, store, finished=frozenset({"tiny"}))
            await until(lambda: problem(reader) is StoreProblem.DAMAGED, "it is noticed")
            facts = fact(reader, "tiny")
            assert facts is not None
            assert MANIFEST in facts.message

    run(scenario())


@pytest.mark.usefixtures("impatient")
def test_a_store_that_hangs_is_called_unavailable_until_it_answers_and_that_time_is_known(
    store: FlakyStore,
) -> None:
    async def scenario() -> None:
        told = Told()
        async with reading(told) as reader:
            follow(reader, store)
            nothing_there = {"tiny": StageFacts(), "small": StageFacts()}
            await until(lambda: reader.snapshot(KEY).facts == nothing_there, "all is known")
            before = reader.snapshot(KEY).readable_since
            store.answers.clear()
            told.changes.clear()
            await until(lambda: problem(reader) is StoreProblem.UNAVAILABLE, "its silence is noticed")
            assert problem(reader, "small") is StoreProblem.UNAVAILABLE
            assert told.changes[KEY] >= 1
            store.answers.set()
            await until(
                lambda: problem(reader) is None and "tiny" in reader.snapshot(KEY).facts, "it answers"
            )
            assert reader.snapshot(KEY).readable_since > before

    run(scenario())


def test_a_store_that_answers_with_errors_is_unavailable_and_comes_back(store: FlakyStore) -> None:
    async def scenario() -> None:
        clock = Clock()
        async with reading(clock=clock) as reader:
            train(store, CHAIN, TINY, 1)
            follow(reader, store, running={"tiny": 1})
            await settle(reader)
            assert step(reader) == 1, "it runs"
            before = reader.snapshot(KEY).readable_since
            store.problem = StoreUnavailable("s3://x: 503")
            await elapse(reader, clock, 0.3)
            assert problem(reader) is StoreProblem.UNAVAILABLE, "it is noticed"
            asked = sum(store.asked.values())
            await elapse(reader, clock, 1.0)
            assert sum(store.asked.values()) - asked < 20, "a failing store is not flooded"
            store.problem = None
            await elapse(reader, clock, 0.3)
            assert step(reader) == 1, "it is read again"
            assert reader.snapshot(KEY).readable_since > before

    run(scenario())


@pytest.mark.usefixtures("impatient")
def test_stores_that_hang_do_not_hold_up_those_that_answer(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with reading(threads=4) as reader:
            keys = [Key("default", f"dead-{number}") for number in range(12)]
            dead = [FlakyStore(tmp_path / f"dead-{number}") for number in range(12)]
            for number, each in enumerate(dead):
                each.answers.clear()
                each.hangs_seconds = 0.5
                key, resolved = named(f"dead-{number}")
                uri = resolved.store.model_copy(update={"uri": each.uri})
                follow(reader, each, key=key, resolved=resolved.model_copy(update={"store": uri}))
            await until(lambda: sum(each.under_way for each in dead) >= 2, "dead stores are asked")
            store = FlakyStore(tmp_path / "living")
            token = train(store, CHAIN, TINY, 1)
            uri = CHAIN.store.model_copy(update={"uri": store.uri})
            follow(reader, store, resolved=CHAIN.model_copy(update={"store": uri}), running={"tiny": 1})
            for number in range(1, 4):
                advance(store, TINY, token, number)
                await until(lambda number=number: step(reader) == number, "the living one is followed")
            await until(
                lambda: all(problem(reader, key=each) for each in keys), "the dead ones are called so"
            )
            for number in range(4, 8):
                advance(store, TINY, token, number)
                await until(lambda number=number: step(reader) == number, "the living one is followed")
                assert sum(each.under_way for each in dead) <= 2
            assert max(each.most_under_way for each in dead) == 1
            for each in dead:
                each.answers.set()

    run(scenario())


def test_a_namespace_whose_stores_all_begin_to_drip_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of its own threads is busy until it is cut, and not one of the others is."""
    monkeypatch.setattr(schedule, "CALL_SECONDS", 4 * WAIT_SECONDS)  # none is, here
    drips, end = threading.Event(), threading.Event()

    def drip() -> Iterator[bytes]:
        yield b"<"
        while not end.wait(1.0):
            yield b" "

    def respond(*_: object) -> Answer:
        return Answer(body=drip()) if drips.is_set() else Answer(404)

    async def scenario(addresses: list[str]) -> None:
        async with reading(threads=8) as reader:
            keys = [Key("hostile", f"chain-{number}") for number in range(len(addresses))]
            for key, address in zip(keys, addresses, strict=True):
                access = ResolvedStore(uri="s3://bucket/chains", endpoint_url=address)
                s3 = open_store(access, patience_seconds=0.0, credentials=Credentials("key", "secret"))
                resolved = named(key.name, key.namespace)[1].model_copy(update={"store": access})
                follow(reader, s3, key=key, resolved=resolved)
            await until(lambda: all(fact(reader, "tiny", key) for key in keys), "all have answered")
            assert not any(problem(reader, key=key) for key in keys)
            drips.set()
            stages = [reader._chains[key].stages["tiny"] for key in keys]
            await until(lambda: all(stage.busy or stage.queued for stage in stages), "all drip or wait")
            store = FlakyStore(tmp_path / "living")
            token = train(store, CHAIN, TINY, 1)
            follow(reader, store, running={"tiny": 1})
            for number in range(1, 5):
                advance(store, TINY, token, number)
                await until(lambda number=number: step(reader) == number, "the living one is followed")
                assert sum(stage.busy for stage in stages) <= 4
            end.set()

    with ExitStack() as servers:
        run(scenario([servers.enter_context(serve(respond)) for _ in range(8)]))


def test_a_store_that_refuses_is_told_and_its_chain_has_another_pass_from_time_to_time(
    store: FlakyStore,
) -> None:
    async def scenario() -> None:
        told = Told()
        async with reading(told) as reader:
            store.problem = Forbidden("s3://x: refused")
            follow(reader, store)
            await until(lambda: problem(reader) is StoreProblem.FORBIDDEN, "it is noticed")
            assert told.refused[store.uri] >= 1
            before = told.changes[KEY]
            await until(lambda: told.changes[KEY] > before + 1, "the chain has passes")
            assert reader._chains[KEY].retry_seconds > store_reader.REFUSED_SECONDS[0]
            store.problem = None
            nothing_there = {"tiny": StageFacts(), "small": StageFacts()}
            await until(lambda: reader.snapshot(KEY).facts == nothing_there, "the rights are corrected")
            assert reader._chains[KEY].retry_seconds == store_reader.REFUSED_SECONDS[0], "of the next refusal"

    run(scenario())


def test_without_access_every_stage_says_why_and_passes_go_on_until_there_is(store: FlakyStore) -> None:
    async def scenario() -> None:
        told = Told()
        async with reading(told) as reader:
            why = "Secret default/keys (store.secretRef) does not exist; create it in the chain's namespace"
            follow(reader, NoAccess(StoreProblem.FORBIDDEN, why))
            assert fact(reader, "tiny") == StageFacts(problem=StoreProblem.FORBIDDEN, message=why)
            assert problem(reader, "small") is StoreProblem.FORBIDDEN
            for _ in range(3):
                before = told.changes[KEY]
                await until(lambda before=before: told.changes[KEY] > before, "the chain has a pass")
                follow(reader, NoAccess(StoreProblem.FORBIDDEN, why))
            since = reader.snapshot(KEY).readable_since
            await asyncio.sleep(0.02)
            follow(reader, store)
            assert "tiny" not in reader.snapshot(KEY).facts
            await until(lambda: fact(reader, "tiny") == StageFacts(), "it is read")
            assert reader.snapshot(KEY).readable_since > since

    run(scenario())


def test_an_edit_makes_only_the_stages_anew_that_it_changes(store: FlakyStore) -> None:
    async def scenario() -> None:
        async with reading(artifact_check_seconds=3600.0, clock=Clock()) as reader:
            complete(store, TINY)
            follow(reader, store)
            await settle(reader)
            asked = store.asked[f"{TINY.folder}/{MANIFEST}"]
            edited = chain((("tiny", None), ("small", "tiny")), epochs={"small": 3})
            complete(store, edited.stage("small"))
            follow(reader, store, resolved=edited, finished=frozenset({"tiny"}))
            assert "small" not in reader.snapshot(KEY).facts, (
                "what was seen of the old one says nothing of the new"
            )
            await settle(reader)
            facts = fact(reader, "small")
            assert facts is not None
            assert facts.manifest is not None, "the new one is seen"
            assert store.asked[f"{TINY.folder}/{MANIFEST}"] == asked, "tiny was not looked at again"

    run(scenario())


def test_a_stage_that_is_trained_again_is_looked_at_before_anything_is_said_of_it(
    store: FlakyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "random", lambda: 0.0)  # when a finished stage is first looked at

    async def scenario() -> None:
        async with reading(artifact_check_seconds=3600.0) as reader:
            follow(reader, store, finished=frozenset({"tiny"}))
            await until(lambda: fact(reader, "tiny") == StageFacts(), "it is missed")
            complete(store, TINY)
            follow(reader, store)
            assert "tiny" not in reader.snapshot(KEY).facts
            await until(
                lambda: (facts := fact(reader, "tiny")) is not None and facts.manifest is not None,
                "it is seen to be there",
            )

    run(scenario())


def test_a_chain_that_is_gone_costs_nothing_more(store: FlakyStore) -> None:
    async def scenario() -> None:
        clock = Clock()
        async with reading(clock=clock) as reader:
            other, resolved = Key("default", "other"), chain((("tiny", None),), epochs={"tiny": 7})
            follow(reader, store)
            follow(reader, store, key=other, resolved=resolved)
            await settle(reader)
            asked = store.asked.copy()
            reader.forget(KEY)
            clock.now += 3600
            await settle(reader)
            theirs = {key for key in store.asked - asked if key.startswith("stages/")}
            assert theirs
            assert all(key.startswith(resolved.stage("tiny").folder) for key in theirs)
            assert reader.snapshot(KEY).facts == {}
            assert len(reader) == 1

    run(scenario())


def test_a_suspended_chain_costs_next_to_nothing_and_is_looked_at_anew_before_it_goes_on(
    store: FlakyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_reader, "AT_REST_SECONDS", 60.0)

    async def scenario() -> None:
        clock = Clock()
        async with reading(clock=clock) as reader:
            follow(reader, store, suspended=True)
            await settle(reader)
            assert len(reader.snapshot(KEY).facts) == 2, "all is known"
            asked = sum(store.asked.values())
            clock.now += 3600
            await settle(reader)
            assert sum(store.asked.values()) == asked
            complete(store, TINY)  # somebody else has trained it meanwhile
            follow(reader, store)
            assert fact(reader, "tiny") is None, "nothing is said on what was seen before"
            await settle(reader)
            facts = fact(reader, "tiny")
            assert facts is not None, "it was looked at anew"
            assert facts.manifest is not None

    run(scenario())


def test_after_a_restart_stages_at_rest_do_not_hold_up_those_that_train(store: FlakyStore) -> None:
    """All are found at once: what is finished is looked at from time to time, what nobody asks for not at all."""
    training = chain((("tiny", None), ("small", "tiny")), epochs={"tiny": 7})
    folder = training.stage("tiny").folder
    random.seed(1)  # when each finished stage is first read

    async def scenario() -> None:
        clock = Clock()
        async with reading(artifact_check_seconds=3600.0, requests_per_second=100.0, clock=clock) as reader:
            for number in range(300):
                key, resolved = named(f"complete-{number}")
                follow(reader, store, key=key, resolved=resolved, finished=frozenset({"tiny", "small"}))
            for number in range(300):
                key, resolved = named(f"waits-{number}")
                follow(
                    reader, store, key=key, resolved=resolved, suspended=True, unasked=frozenset({"small"})
                )
            follow(reader, store, resolved=training, running={"tiny": 1})
            await elapse(reader, clock, 8.0, step=0.2)
            trained = sum(count for key, count in store.asked.items() if key.startswith(folder))
            assert trained >= 8, "what trains was looked at again and again"
            assert store.asked[f"{SMALL.folder}/{MANIFEST}"] < 60

    run(scenario())


def test_routine_looks_share_a_budget_and_what_is_waited_for_goes_before(store: FlakyStore) -> None:
    async def scenario() -> None:
        clock = Clock()
        async with reading(requests_per_second=40.0, clock=clock) as reader:
            chains = [named(f"chain-{number}") for number in range(40)]
            for key, resolved in chains:
                follow(reader, store, key=key, resolved=resolved)
            await elapse(reader, clock, 10.0)
            assert all(len(reader.snapshot(key).facts) == 2 for key, _ in chains), "all are known"
            store.asked.clear()
            await elapse(reader, clock, 3.0)
            assert 40 * 3 * 0.9 <= sum(store.asked.values()) <= 40 * 3 * 1.1
            for key, _ in chains[-5:]:
                reader.refresh(key, "small")
            await settle(reader)
            assert all("small" in reader.snapshot(key).facts for key, _ in chains[-5:]), "these at once"

    run(scenario())


def status(phase: ChainPhase = ChainPhase.RUNNING, step: int = 1) -> ChainStatus:
    stage = StageStatus(name="tiny", phase=StagePhase.RUNNING, digest=TINY.digest, step=step, steps=16)
    return ChainStatus(phase=phase, stages=(stage,))


def recorded(store: FlakyStore) -> ChainRecord | None:
    found = store.find(chain_key("default", "family"))
    return None if found is None else ChainRecord.model_validate_json(found[0])


def test_the_record_follows_the_status_but_not_every_step(store: FlakyStore) -> None:
    async def scenario() -> None:
        clock = Clock()
        async with reading(clock=clock) as reader:

            async def record(status: ChainStatus) -> StageStatus:
                reader.record(KEY, CHAIN, status)
                await settle(reader)
                found = recorded(store)
                assert found is not None
                return found.status.stages[0]

            follow(reader, store)
            assert (await record(status(step=1))).step == 1
            clock.now += store_reader.RECORD_SECONDS - 1
            assert (await record(status(step=2))).step == 1
            assert (await record(status(ChainPhase.COMPLETE, step=3))).step == 3, "more than progress"
            clock.now += store_reader.RECORD_SECONDS
            assert (await record(status(ChainPhase.COMPLETE, step=4))).step == 4

    run(scenario())


def test_a_record_waits_for_a_store_that_is_away_and_the_newest_is_written(store: FlakyStore) -> None:
    async def scenario() -> None:
        async with reading() as reader:
            store.problem = StoreUnavailable("s3://x: 503")
            follow(reader, store)
            reader.record(KEY, CHAIN, status(ChainPhase.PENDING))
            reader.record(KEY, CHAIN, status(ChainPhase.RUNNING))
            await until(lambda: store.asked[chain_key("default", "family")] >= 2, "it was tried")
            store.problem = None
            await until(lambda: recorded(store), "it is written")
            now = recorded(store)
            assert now is not None
            assert now.status.phase is ChainPhase.RUNNING

    run(scenario())


def test_a_record_that_waits_is_written_before_the_end(store: FlakyStore) -> None:
    async def scenario() -> None:
        async with reading(requests_per_second=1.0) as reader:
            follow(reader, store)
            await until(lambda: len(reader.snapshot(KEY).facts) == 2, "the budget is spent")
            reader.record(KEY, CHAIN, status())
        assert recorded(store) is not None

    run(scenario())


@pytest.mark.parametrize("error", [Forbidden("s3://x: refused"), CannotWriteError("file:///x: read-only")])
def test_a_store_that_takes_no_record_is_left_in_peace(store: FlakyStore, error: Exception) -> None:
    async def scenario() -> None:
        async with reading(clock=Clock()) as reader:
            follow(reader, store)
            store.put = refuse  # pyright: ignore[reportAttributeAccessIssue]
            for number in range(3):
                reader.record(KEY, CHAIN, status(list(ChainPhase)[number]))
                await settle(reader)
            assert len(refused) == 1
            assert len(reader.snapshot(KEY).facts) == 2
            assert problem(reader) is None, "that nothing can be written there does not disturb the training"

    refused: list[object] = []

    def refuse(*arguments: object) -> str:
        refused.append(arguments)
        raise error

    run(scenario())


def test_a_defect_while_looking_does_not_end_the_looking(
    store: FlakyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(schedule, "DEFECT_SECONDS", 0.05)
        async with reading() as reader:
            store.problem = ZeroDivisionError()  # pyright: ignore[reportAttributeAccessIssue]
            follow(reader, store)
            await until(lambda: store.asked[f"{TINY.folder}/{MANIFEST}"] >= 3, "it is tried again")
            store.problem = None
            await until(lambda: fact(reader, "tiny") == StageFacts(), "it is looked at")

    run(scenario())


def test_a_launch_that_takes_over_within_an_attempt_is_followed(
    store: FlakyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with reading() as reader:
            train(store, CHAIN, TINY, 5)
            follow(reader, store, running={"tiny": 1})
            await until(lambda: step(reader) == 5, "the first launch is followed")
            first = reader.snapshot(KEY).progress_changed_at["tiny", 1]
            second = train(store, CHAIN, TINY, 2)
            await until(lambda: step(reader) == 2, "the second is followed")
            assert reader.snapshot(KEY).progress_changed_at["tiny", 1] > first
            hold_lease(store, CHAIN, TINY, second, sequence=2)

    run(scenario())


def test_an_idle_chain_costs_less_than_three_kibibytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand chains that are complete lie here for weeks."""
    number = 300
    stages = (("tiny", None), ("small", "tiny"), ("base", "small"))
    resolved = chain(stages)
    store = FlakyStore(tmp_path / "store")
    for stage in resolved.stages:
        complete(store, stage)
    finished = frozenset(stage.name for stage in resolved.stages)

    def renamed(index: int) -> ResolvedChain:
        """As it is read anew from the API server: nothing is shared with the others."""
        other = resolved.model_validate_json(resolved.model_dump_json(by_alias=True))
        reference = other.chain.model_copy(update={"name": f"chain-{index}", "uid": f"uid-{index}"})
        return other.model_copy(update={"chain": reference})

    async def scenario() -> None:
        monkeypatch.setattr(store_reader, "WAITING_SECONDS", 5.0)
        monkeypatch.setattr(random, "random", lambda: 0.0)  # when a finished stage is first looked at
        async with reading(artifact_check_seconds=3600.0, requests_per_second=1e6) as reader:
            for warm in (True, False):
                asked = sum(store.asked.values())
                if not warm:
                    gc.collect()
                    tracemalloc.start()
                for index in range(10) if warm else range(10, 10 + number):
                    key = Key("default", f"chain-{index}")
                    follow(reader, store, key=key, resolved=renamed(index), finished=finished)
                looks = 10 if warm else number
                await until(
                    lambda asked=asked, looks=looks: sum(store.asked.values()) - asked >= 2 * 3 * looks,
                    "every stage was looked at",
                )
                await until(lambda: not reader._schedule._under_way, "the last look has ended")
            gc.collect()
            # pathlib interns what it reads, and the interpreter's table of such texts grows in leaps.
            rest = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(False, pathlib.__file__)])
            used = sum(statistic.size for statistic in rest.statistics("filename"))
            tracemalloc.stop()
            assert used / number < 3 * 1024, f"{used / number:.0f} bytes a chain"

    run(scenario())


@pytest.mark.slow
@pytest.mark.xdist_group("seaweedfs")
def test_an_outage_of_a_real_store_delays_and_nothing_else(seaweedfs: SeaweedFS, s3_store: Store) -> None:
    async def scenario() -> None:
        async with reading() as reader:
            token = train(s3_store, CHAIN, TINY, 1)
            follow(reader, short_of_patience(s3_store), running={"tiny": 1})
            await until(lambda: step(reader) == 1, "it is followed")
            before = reader.snapshot(KEY).readable_since
            seaweedfs.kill()
            await until(lambda: problem(reader) is StoreProblem.UNAVAILABLE, "the outage is noticed")
            await asyncio.to_thread(seaweedfs.start)
            await asyncio.to_thread(advance, s3_store, TINY, token, 2)
            await until(lambda: step(reader) == 2, "it is followed again")
            assert reader.snapshot(KEY).readable_since > before

    run(scenario())


def short_of_patience(store: Store) -> Store:
    from modelchain.store import open_store
    from modelchain.store.s3 import S3Store

    assert isinstance(store, S3Store)
    access: ResolvedStore = store._access
    return open_store(access, patience_seconds=0.0)


@pytest.mark.parametrize("respond", [redirect(301), page], ids=["redirect", "page"])
def test_an_endpoint_that_is_no_store_is_told_without_its_words(respond: Respond) -> None:
    async def scenario(endpoint: str) -> None:
        access = ResolvedStore(uri="s3://bucket/chains", endpoint_url=endpoint)
        store = open_store(access, patience_seconds=0.0, credentials=Credentials("key", "secret"))
        async with reading() as reader:
            follow(reader, store)
            await until(lambda: problem(reader) is StoreProblem.MISCONFIGURED, "it is told")
            facts = fact(reader, "tiny")
            assert facts is not None
            assert "the endpoint" in facts.message
            assert "elsewhere.example" not in facts.message
        decision = decide(CHAIN, Observation(store=dict.fromkeys(("tiny", "small"), facts)), time.time())
        assert decision.status.stages[0].reason == "StoreMisconfigured"
        progressing = decision.status.condition(ConditionType.PROGRESSING)
        assert progressing is not None
        assert (progressing.status, progressing.reason) == ("False", "StoreMisconfigured")

    with serve(respond) as endpoint:
        run(scenario(endpoint))


def test_an_error_that_nobody_foresaw_is_told_too(store: FlakyStore) -> None:
    async def scenario() -> None:
        async with reading() as reader:
            store.problem = KeyError("ETag")
            follow(reader, store)
            await until(lambda: problem(reader) is StoreProblem.UNREADABLE, "it is told")
            store.problem = None
            await until(lambda: problem(reader) is None, "it is read again")

    run(scenario())
